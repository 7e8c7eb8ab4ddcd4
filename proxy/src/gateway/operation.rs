//! The route table: which method and path mean which operation, and what each operation demands. A route without a
//! stated policy cannot be written: `policy` matches every operation. Never reads a header or a body.

use http::Method;
use policy::identity::Scope;

/// What a client can ask for. Which half an operation is in says whether a stranger may ask.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Answered without a credential; bounded by the guard alone.
    Open(Open),
    /// Answered to whoever shows a credential with the operation's scope.
    Closed(Closed),
}

/// What everybody may ask for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Open {
    /// `GET /healthz`: this process lives.
    Alive,
    /// `GET /readyz`: this proxy can serve.
    Ready,
    /// `GET /` and the chat page's other files.
    Page(String),
    /// `GET /config.json`: what the page may know before anybody signed in.
    PageConfig,
    /// `POST /v1/nodes/nonce`
    NodeNonce,
    /// `POST /v1/nodes/enroll`
    NodeEnroll,
    /// `POST /v1/nodes/register`
    NodeRegister,
}

/// What takes a credential. The halves differ in what they cost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Closed {
    /// Runs a model: charged as text or media, once the body says which.
    Ask(Surface),
    /// Runs nothing: charged to the counters for health and lists.
    Look(Look),
}

/// The forms in which a model can be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Surface {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completion,
}

/// What can be looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Look {
    /// `GET /v1/models`
    Models,
    /// `GET /v1/models/{id}`; the id may hold `/` and `:`.
    Model(String),
    /// `GET /health`: llama-server's form.
    Health,
    /// `GET /metrics`
    Metrics,
}

impl Closed {
    /// The scope that the credential must have.
    pub const fn scope(&self) -> Scope {
        match self {
            Self::Ask(Surface::Chat | Surface::Completion) => Scope::Inference,
            Self::Look(Look::Models | Look::Model(_) | Look::Health) => Scope::Models,
            Self::Look(Look::Metrics) => Scope::Metrics,
        }
    }
}

impl Operation {
    /// The word for logs and metrics; never what the client sent.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Closed(Closed::Ask(Surface::Chat)) => "chat_completions",
            Self::Closed(Closed::Ask(Surface::Completion)) => "completions",
            Self::Closed(Closed::Look(Look::Models)) => "models",
            Self::Closed(Closed::Look(Look::Model(_))) => "model",
            Self::Closed(Closed::Look(Look::Health)) => "health",
            Self::Closed(Closed::Look(Look::Metrics)) => "metrics",
            Self::Open(Open::Alive) => "healthz",
            Self::Open(Open::Ready) => "readyz",
            Self::Open(Open::Page(_)) => "page",
            Self::Open(Open::PageConfig) => "page_config",
            Self::Open(Open::NodeNonce) => "node_nonce",
            Self::Open(Open::NodeEnroll) => "node_enroll",
            Self::Open(Open::NodeRegister) => "node_register",
        }
    }

    /// The methods it answers, as in `Allow`.
    const fn allow(&self) -> &'static str {
        match self {
            Self::Closed(Closed::Ask(_)) => "POST, OPTIONS",
            Self::Open(Open::NodeNonce | Open::NodeEnroll | Open::NodeRegister) => "POST, OPTIONS",
            Self::Closed(Closed::Look(_)) => "GET, HEAD, OPTIONS",
            Self::Open(Open::Alive | Open::Ready | Open::Page(_) | Open::PageConfig) => {
                "GET, HEAD, OPTIONS"
            }
        }
    }

    fn answers(&self, method: &Method) -> bool {
        self.allow()
            .split(", ")
            .any(|allowed| allowed == method.as_str())
    }
}

/// What a method and a path mean.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Resolved {
    /// An operation.
    Found(Operation),
    /// The path is one of ours, the method is not.
    WrongMethod {
        /// For the `Allow` header.
        allow: &'static str,
        /// Whether a stranger may learn that the path exists.
        is_open: bool,
    },
    /// No such path; the nearest one that exists.
    Unknown {
        /// A path to try instead.
        hint: &'static str,
    },
}

/// Looks up a method and a path. Paths are compared as they are: no decoding, no folding of dots or slashes.
/// `is_page_file` says whether the chat page has a file of that path.
pub fn resolve(method: &Method, path: &str, is_page_file: impl Fn(&str) -> bool) -> Resolved {
    let Some(operation) = operation_of(path, is_page_file) else {
        return Resolved::Unknown {
            hint: nearest(path),
        };
    };
    if operation.answers(method) {
        return Resolved::Found(operation);
    }
    let is_open = matches!(operation, Operation::Open(_));
    Resolved::WrongMethod {
        allow: operation.allow(),
        is_open,
    }
}

fn operation_of(path: &str, is_page_file: impl Fn(&str) -> bool) -> Option<Operation> {
    if let Some(open) = open_operation(path) {
        return Some(Operation::Open(open));
    }
    if let Some(closed) = closed_operation(path) {
        return Some(Operation::Closed(closed));
    }
    is_page_file(path).then(|| Operation::Open(Open::Page(path.to_owned())))
}

fn open_operation(path: &str) -> Option<Open> {
    match path {
        "/healthz" => Some(Open::Alive),
        "/readyz" => Some(Open::Ready),
        "/config.json" => Some(Open::PageConfig),
        "/v1/nodes/nonce" => Some(Open::NodeNonce),
        "/v1/nodes/enroll" => Some(Open::NodeEnroll),
        "/v1/nodes/register" => Some(Open::NodeRegister),
        _ => None,
    }
}

fn closed_operation(path: &str) -> Option<Closed> {
    if path == "/metrics" {
        return Some(Closed::Look(Look::Metrics));
    }
    // Clients disagree on whether their base URL ends in /v1.
    let rest = path.strip_prefix("/v1").unwrap_or(path);
    match rest {
        "/chat/completions" => Some(Closed::Ask(Surface::Chat)),
        "/completions" => Some(Closed::Ask(Surface::Completion)),
        "/models" => Some(Closed::Look(Look::Models)),
        "/health" => Some(Closed::Look(Look::Health)),
        _ => rest
            .strip_prefix("/models/")
            .filter(|id| !id.is_empty())
            .map(|id| Closed::Look(Look::Model(model_id(id)))),
    }
}

/// The path a client most likely meant, for the message of a 404.
fn nearest(path: &str) -> &'static str {
    const PATHS: [&str; 5] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/health",
        "/v1/nodes/register",
    ];
    // Longer than any of ours can match: the rest of a long path tells nothing.
    let asked: String = path.trim_end_matches('/').chars().take(64).collect();
    let asked = asked.replace("//", "/");
    if let Some(begun) = PATHS.into_iter().find(|known| known.starts_with(&asked)) {
        return begun;
    }
    PATHS
        .into_iter()
        .min_by_key(|known| distance(&asked, known))
        .unwrap_or("/v1/chat/completions")
}

/// Edits between two short strings (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, other) in to.iter().enumerate() {
            let substitute = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = substitute.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The name of a model in a path, decoded: SDKs percent-encode `/` and `:` in ids.
fn model_id(raw: &str) -> String {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let decoded = (first == b'%').then(|| after.split_at_checked(2)).flatten();
        let decoded = decoded.and_then(|(digits, after)| Some((hex_byte(digits)?, after)));
        let (byte, after) = decoded.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let mut out = [0];
    hex::decode_to_slice(digits, &mut out).ok()?;
    Some(out[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: &str, path: &str) -> Resolved {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        resolve(&method, path, |path| matches!(path, "/" | "/chat.js"))
    }

    fn found(method: &str, path: &str) -> Operation {
        match at(method, path) {
            Resolved::Found(operation) => operation,
            other @ (Resolved::WrongMethod { .. } | Resolved::Unknown { .. }) => {
                panic!("{method} {path} is {other:?}")
            }
        }
    }

    #[test]
    fn both_spellings_of_every_inference_path_are_found() {
        for path in [
            "/chat/completions",
            "/completions",
            "/v1/chat/completions",
            "/v1/completions",
        ] {
            let chat = path.contains("chat");
            let surface = if chat {
                Surface::Chat
            } else {
                Surface::Completion
            };
            assert_eq!(found("POST", path), Operation::Closed(Closed::Ask(surface)));
        }
        assert_eq!(
            found("GET", "/models"),
            Operation::Closed(Closed::Look(Look::Models))
        );
        assert_eq!(
            found("HEAD", "/v1/health"),
            Operation::Closed(Closed::Look(Look::Health))
        );
        assert_eq!(
            found("GET", "/chat.js"),
            Operation::Open(Open::Page("/chat.js".into()))
        );
    }

    #[test]
    fn a_model_id_may_hold_slashes_and_colons() {
        for path in [
            "/v1/models/hf.co/user/repo:Q4_K_M",
            "/v1/models/hf.co%2Fuser%2Frepo%3AQ4_K_M",
        ] {
            let expected = Closed::Look(Look::Model("hf.co/user/repo:Q4_K_M".into()));
            assert_eq!(found("GET", path), Operation::Closed(expected));
        }
        assert_eq!(
            model_id("%zz%4"),
            "%zz%4",
            "what is no escape stays as it is"
        );
    }

    #[test]
    fn a_wrong_method_names_the_right_ones() {
        let allow = "POST, OPTIONS";
        assert_eq!(
            at("GET", "/v1/chat/completions"),
            Resolved::WrongMethod {
                allow,
                is_open: false
            }
        );
        let allow = "GET, HEAD, OPTIONS";
        assert_eq!(
            at("TRACE", "/"),
            Resolved::WrongMethod {
                allow,
                is_open: true
            }
        );
    }

    #[test]
    fn an_unknown_path_is_told_the_nearest_one() {
        for (path, hint) in [
            ("/v1/chat/completion", "/v1/chat/completions"),
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("//v1//models", "/v1/models"),
            ("/healt", "/health"),
            ("/v1", "/v1/chat/completions"),
            ("/v1/chat/", "/v1/chat/completions"),
            ("/v1/v1/models", "/v1/models"),
        ] {
            assert_eq!(at("GET", path), Resolved::Unknown { hint }, "{path}");
        }
        assert!(matches!(
            at("GET", &"/x".repeat(4000)),
            Resolved::Unknown { .. }
        ));
        assert!(matches!(at("GET", "/v1/models/"), Resolved::Unknown { .. }));
        assert!(
            matches!(at("GET", "/V1/models"), Resolved::Unknown { .. }),
            "paths are compared as they are"
        );
    }

    #[test]
    fn a_client_key_reads_no_metrics() {
        let operation = found("GET", "/metrics");
        assert!(matches!(operation, Operation::Closed(closed) if closed.scope() == Scope::Metrics));
    }
}
