//! The route table: which method and path mean which operation, and what each operation demands. A route without a stated
//! policy cannot be written: a line of the table needs an operation, and every operation is open or has a scope. Never reads a
//! header or a body.

use config::wire::node::CARRIER_PATH;
use config::wire::valid::AskKind;
use http::Method;
use policy::identity::Scope;

/// The word for everything under `/admin/v1`, whose errors are told as RFC 9457 has it.
pub const ADMIN: &str = "admin";

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
    /// `GET /v1/nodes/carrier`: the front takes the upgrade; here it lacks one. A node proves itself by its identity.
    NodeCarrier,
}

/// What takes a credential. The halves differ in what they cost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Closed {
    /// Runs a model: charged as text or media, once the body says which.
    Ask(Surface),
    /// `/admin/v1/...`: which path and method mean what is the table of `admin::routes`.
    Admin,
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
    /// Vectors, ranks, tokens, a rendered prompt, the middle of a text.
    Other(AskKind),
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
    /// `GET /api/user`: who asks, and what is left.
    Profile,
    /// `GET /v1/usage`, `GET /api/user/usage`: what the caller used.
    Usage,
    /// `POST /v1/classify`: what the classifier thinks of a text. No model runs.
    Classify,
}

impl Closed {
    /// The scope that the credential must have.
    pub const fn scope(&self) -> Scope {
        match self {
            Self::Ask(Surface::Chat | Surface::Completion | Surface::Other(_))
            | Self::Look(Look::Classify) => Scope::Inference,
            Self::Look(
                Look::Models | Look::Model(_) | Look::Health | Look::Profile | Look::Usage,
            ) => Scope::Models,
            Self::Admin => Scope::Admin,
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
            Self::Closed(Closed::Ask(Surface::Other(kind))) => kind.label(),
            Self::Closed(Closed::Look(Look::Models)) => "models",
            Self::Closed(Closed::Look(Look::Model(_))) => "model",
            Self::Closed(Closed::Look(Look::Health)) => "health",
            Self::Closed(Closed::Look(Look::Metrics)) => "metrics",
            Self::Closed(Closed::Look(Look::Profile)) => "profile",
            Self::Closed(Closed::Look(Look::Usage)) => "usage",
            Self::Closed(Closed::Look(Look::Classify)) => "classify",
            Self::Closed(Closed::Admin) => ADMIN,
            Self::Open(Open::Alive) => "healthz",
            Self::Open(Open::Ready) => "readyz",
            Self::Open(Open::Page(_)) => "page",
            Self::Open(Open::PageConfig) => "page_config",
            Self::Open(Open::NodeNonce) => "node_nonce",
            Self::Open(Open::NodeEnroll) => "node_enroll",
            Self::Open(Open::NodeRegister) => "node_register",
            Self::Open(Open::NodeCarrier) => "node_carrier",
        }
    }

    /// The methods it answers, as in `Allow`.
    pub const fn allow(&self) -> &'static str {
        match self {
            Self::Closed(Closed::Ask(_) | Closed::Look(Look::Classify)) => "POST, OPTIONS",
            Self::Open(Open::NodeNonce | Open::NodeEnroll | Open::NodeRegister) => "POST, OPTIONS",
            Self::Closed(Closed::Admin) => "GET, HEAD, POST, PATCH, DELETE, OPTIONS",
            Self::Closed(Closed::Look(_)) => "GET, HEAD, OPTIONS",
            Self::Open(
                Open::Alive | Open::Ready | Open::Page(_) | Open::PageConfig | Open::NodeCarrier,
            ) => "GET, HEAD, OPTIONS",
        }
    }

    /// The operation about what the path names.
    fn about(self, id: &str) -> Self {
        match self {
            Self::Closed(Closed::Look(Look::Model(_))) => {
                Self::Closed(Closed::Look(Look::Model(model_id(id))))
            }
            other @ (Self::Open(_) | Self::Closed(_)) => other,
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

/// Every path that is ours and what it means; the chat page's files come besides. `{id}` stands for the rest of the path.
/// Whoever adds a line says with the operation who may ask: there is no line without. Paths under `/v1` that take a credential
/// are found without it too: clients disagree on whether their base URL ends in `/v1`.
static ROUTES: [(&str, Operation); 25] = [
    ("/admin/v1/{id}", Operation::Closed(Closed::Admin)),
    ("/api/user", Operation::Closed(Closed::Look(Look::Profile))),
    (
        "/api/user/usage",
        Operation::Closed(Closed::Look(Look::Usage)),
    ),
    ("/v1/usage", Operation::Closed(Closed::Look(Look::Usage))),
    ("/healthz", Operation::Open(Open::Alive)),
    ("/readyz", Operation::Open(Open::Ready)),
    ("/config.json", Operation::Open(Open::PageConfig)),
    ("/v1/nodes/nonce", Operation::Open(Open::NodeNonce)),
    ("/v1/nodes/enroll", Operation::Open(Open::NodeEnroll)),
    ("/v1/nodes/register", Operation::Open(Open::NodeRegister)),
    (CARRIER_PATH, Operation::Open(Open::NodeCarrier)),
    ("/metrics", Operation::Closed(Closed::Look(Look::Metrics))),
    (
        "/v1/chat/completions",
        Operation::Closed(Closed::Ask(Surface::Chat)),
    ),
    (
        "/v1/completions",
        Operation::Closed(Closed::Ask(Surface::Completion)),
    ),
    (
        "/v1/embeddings",
        Operation::Closed(Closed::Ask(Surface::Other(AskKind::Embeddings))),
    ),
    (
        "/v1/rerank",
        Operation::Closed(Closed::Ask(Surface::Other(AskKind::Rerank))),
    ),
    (
        "/v1/infill",
        Operation::Closed(Closed::Ask(Surface::Other(AskKind::Infill))),
    ),
    (
        "/v1/tokenize",
        Operation::Closed(Closed::Ask(Surface::Other(AskKind::Tokenize))),
    ),
    (
        "/v1/detokenize",
        Operation::Closed(Closed::Ask(Surface::Other(AskKind::Detokenize))),
    ),
    (
        "/v1/apply-template",
        Operation::Closed(Closed::Ask(Surface::Other(AskKind::ApplyTemplate))),
    ),
    (
        "/v1/classify",
        Operation::Closed(Closed::Look(Look::Classify)),
    ),
    ("/v1/models", Operation::Closed(Closed::Look(Look::Models))),
    (
        "/v1/models/{id}",
        Operation::Closed(Closed::Look(Look::Model(String::new()))),
    ),
    ("/health", Operation::Closed(Closed::Look(Look::Health))),
    ("/v1/health", Operation::Closed(Closed::Look(Look::Health))),
];
/// The rest of a path.
const ID: &str = "{id}";

/// Every path with its operation, for tests that walk them all.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static Operation)> {
    ROUTES.iter().map(|(path, operation)| (*path, operation))
}

fn operation_of(path: &str, is_page_file: impl Fn(&str) -> bool) -> Option<Operation> {
    ROUTES
        .iter()
        .find_map(|(known, operation)| matched(known, operation, path))
        .or_else(|| is_page_file(path).then(|| Operation::Open(Open::Page(path.to_owned()))))
}

fn matched(known: &str, operation: &Operation, path: &str) -> Option<Operation> {
    let bare = match operation {
        Operation::Open(_) => None,
        Operation::Closed(_) => known.strip_prefix("/v1"),
    };
    let Some(known) = known.strip_suffix(ID) else {
        return (path == known || Some(path) == bare).then(|| operation.clone());
    };
    let bare = bare.and_then(|bare| bare.strip_suffix(ID));
    let id = path
        .strip_prefix(known)
        .or_else(|| path.strip_prefix(bare?))
        .filter(|id| !id.is_empty())?;
    Some(operation.clone().about(id))
}

/// The path a client most likely meant, for the message of a 404.
fn nearest(path: &str) -> &'static str {
    let known = || {
        ROUTES
            .iter()
            .map(|(path, _)| *path)
            .filter(|path| !path.ends_with(ID))
    };
    // Longer than any of ours can match: the rest of a long path tells nothing.
    let asked: String = path.trim_end_matches('/').chars().take(64).collect();
    let asked = asked.replace("//", "/");
    // What begins so and asks a model is meant more often than what begins so and looks at something.
    let begun = || known().filter(|path| path.starts_with(&asked));
    if let Some(begun) = begun()
        .find(|path| path.starts_with("/v1/chat"))
        .or_else(|| begun().min_by_key(|path| path.len()))
    {
        return begun;
    }
    known()
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
