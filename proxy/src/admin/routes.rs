//! The table of `/admin/v1`: the one place that says which method and path mean which act, what it takes and what it answers. The
//! router, the `OpenAPI` description and the audit log are made from it. Does nothing itself.

mod act;
mod url;

use http::Method;

pub use act::{Act, BookAct, DenialAct, InviteAct, KeyAct, NodeAct, UserAct};
pub(crate) use url::{decoded, encoded, query};

/// The beginning of every path.
pub const PREFIX: &str = "/admin/v1";
/// What stands for a name in a path.
const ID: &str = "{id}";

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The verb.
    pub method: &'static str,
    /// Behind [`PREFIX`]; `{id}` is one segment, decoded.
    pub path: &'static str,
    /// What it means.
    pub act: Act,
    /// For the description, the audit log and completions: `key.create`.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Schema of the body, if it takes one.
    pub order: Option<&'static str>,
    /// Status and schema of the answer.
    pub answer: (u16, &'static str),
    /// Query parameters.
    pub asks: &'static [Param],
}

/// A query parameter.
#[derive(Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// JSON schema, as text.
    pub schema: &'static str,
    /// One sentence.
    pub about: &'static str,
}

const fn param(name: &'static str, schema: &'static str, about: &'static str) -> Param {
    Param {
        name,
        schema,
        about,
    }
}

/// The header that makes creating safe to repeat.
pub(crate) const IDEMPOTENCY_KEY: Param = param(
    "Idempotency-Key",
    r#"{"type":"string","minLength":1,"maxLength":255,"pattern":"^[!-~]+$","description":"Printable ASCII without spaces."}"#,
    "The same name and order again make nothing new and answer the same.",
);
const LIMIT: Param = param(
    "limit",
    r#"{"type":"integer","minimum":1,"maximum":1000,"default":100}"#,
    "Rows of one page.",
);
const CURSOR: Param = param(
    "cursor",
    r#"{"type":"string","minLength":1,"maxLength":512,"pattern":"^[A-Za-z0-9_-]*$","description":"The next_cursor of a page of this list."}"#,
    "`next_cursor` of the page before.",
);
const DAY: &str = r#"{"type":"string","format":"date"}"#;
const TEXT: &str = r#"{"type":"string","minLength":1,"maxLength":512,"pattern":"^[^\u0000-\u001f\u007f-\u009f]*$","description":"Text without control characters."}"#;
const PAGED: &[Param] = &[LIMIT, CURSOR];
const FROM: Param = param(
    "from",
    DAY,
    "The first day; default 29 days before the last.",
);
const TO: Param = param("to", DAY, "The last day; default today.");
const USER: Param = param("user", TEXT, "Only this person.");
const KEY: Param = param("key", TEXT, "Only this key.");
const MODEL: Param = param("model", TEXT, "Only this model.");
const TIER: Param = param(
    "tier",
    r#"{"type":"string","enum":["fast","primary","heavy"]}"#,
    "Only this tier.",
);
const PLANNED: &[Param] = &[
    param(
        "tier",
        r#"{"type":"string","enum":["fast","primary","heavy"]}"#,
        "The request asks for this tier.",
    ),
    param("model", TEXT, "The request asks for this model."),
    param(
        "class",
        r#"{"type":"string","enum":["fast","primary","heavy"]}"#,
        "What the classifier says, where the request leaves it open.",
    ),
    param(
        "local_only",
        r#"{"type":"string","enum":["true","false"]}"#,
        "Whether it must stay at home.",
    ),
    param(
        "prompt_tokens",
        r#"{"type":"integer","minimum":0,"maximum":4294967295,"default":0}"#,
        "Tokens of its prompt, estimated.",
    ),
];
const NODE: Param = param("node", TEXT, "Only this node.");
const TENANT: Param = param(
    "tenant",
    r#"{"type":"string","pattern":"^[a-z0-9-]{1,32}$","description":"1 to 32 of a-z, 0-9 and -.","default":"home"}"#,
    "Whose house.",
);
const FORMAT: Param = param(
    "format",
    r#"{"type":"string","enum":["json","csv"],"default":"json"}"#,
    "JSON, or lines for a spreadsheet.",
);
/// Query parameters of sums.
pub const SUMS: &[Param] = &[
    FROM,
    TO,
    param(
        "per",
        r#"{"type":"string","enum":["day","month","total"],"default":"day"}"#,
        "A row for each day, for each month, or for the whole time.",
    ),
    param(
        "by",
        r#"{"type":"string","enum":["user","key","model","tier","node"]}"#,
        "A row for each of these.",
    ),
    USER,
    KEY,
    MODEL,
    TIER,
    NODE,
    TENANT,
    FORMAT,
];
const RECORDS: &[Param] = &[
    FROM, TO, USER, KEY, MODEL, TIER, NODE, TENANT, FORMAT, LIMIT, CURSOR,
];

const fn route(
    method: &'static str,
    path: &'static str,
    (act, name): (Act, &'static str),
    summary: &'static str,
    answer: (u16, &'static str),
) -> Route {
    Route {
        method,
        path,
        act,
        name,
        summary,
        order: None,
        answer,
        asks: &[],
    }
}

const fn ordered(route: Route, order: &'static str) -> Route {
    Route {
        order: Some(order),
        ..route
    }
}

const fn asking(route: Route, asks: &'static [Param]) -> Route {
    Route { asks, ..route }
}

const GET: &str = "GET";
const POST: &str = "POST";
const PATCH: &str = "PATCH";
const DELETE: &str = "DELETE";

/// Everything there is.
pub static ROUTES: [Route; 32] = [
    route(
        GET,
        "/openapi.json",
        (Act::Describe, "openapi"),
        "This description.",
        (200, "Any"),
    ),
    route(
        GET,
        "/status",
        (Act::Status, "status"),
        "The proxy at a glance.",
        (200, "Status"),
    ),
    asking(
        route(
            GET,
            "/route",
            (Act::Route, "route.plan"),
            "The route that a request would take now; nothing is sent.",
            (200, "RouteView"),
        ),
        PLANNED,
    ),
    asking(
        route(
            GET,
            "/keys",
            (Act::Key(KeyAct::List), "key.list"),
            "All API keys; their secrets are nowhere.",
            (200, "KeyPage"),
        ),
        PAGED,
    ),
    ordered(
        route(
            POST,
            "/keys",
            (Act::Key(KeyAct::Create), "key.create"),
            "Makes a key. The answer holds it, once.",
            (201, "KeyMade"),
        ),
        "KeyOrder",
    ),
    route(
        GET,
        "/keys/{id}",
        (Act::Key(KeyAct::Show), "key.show"),
        "One key.",
        (200, "Key"),
    ),
    ordered(
        route(
            PATCH,
            "/keys/{id}",
            (Act::Key(KeyAct::Patch), "key.patch"),
            "Changes what a key may do.",
            (200, "Key"),
        ),
        "KeyPatch",
    ),
    route(
        DELETE,
        "/keys/{id}",
        (Act::Key(KeyAct::Revoke), "key.revoke"),
        "Ends a key, at once and for ever.",
        (200, "Key"),
    ),
    ordered(
        route(
            POST,
            "/keys/{id}/rotate",
            (Act::Key(KeyAct::Rotate), "key.rotate"),
            "Gives a key a new secret; the old one stays good for a while.",
            (200, "KeyMade"),
        ),
        "RotateOrder",
    ),
    asking(
        route(
            GET,
            "/users",
            (Act::User(UserAct::List), "user.list"),
            "Everybody who came through an issuer or owns a key.",
            (200, "UserPage"),
        ),
        PAGED,
    ),
    route(
        GET,
        "/users/{id}",
        (Act::User(UserAct::Show), "user.show"),
        "One person.",
        (200, "User"),
    ),
    ordered(
        route(
            PATCH,
            "/users/{id}",
            (Act::User(UserAct::Patch), "user.patch"),
            "Changes plan, limits or groups of a person, or closes the account.",
            (200, "User"),
        ),
        "UserPatch",
    ),
    route(
        GET,
        "/users/{id}/export",
        (Act::User(UserAct::Export), "user.export"),
        "Everything that is kept about a person.",
        (200, "Any"),
    ),
    route(
        DELETE,
        "/users/{id}",
        (Act::User(UserAct::Erase), "user.erase"),
        "Forgets a person: account, keys and usage.",
        (200, "Erased"),
    ),
    ordered(
        route(
            POST,
            "/backups",
            (Act::Backup, "store.backup"),
            "Copies the embedded store into a file of the proxy's machine; through the local socket only.",
            (201, "Backup"),
        ),
        "BackupOrder",
    ),
    route(
        GET,
        "/plans",
        (Act::PlanList, "plan.list"),
        "The plans of the settings.",
        (200, "PlanPage"),
    ),
    route(
        GET,
        "/denials",
        (Act::Denial(DenialAct::List), "denial.list"),
        "Whom nobody lets in.",
        (200, "DenialPage"),
    ),
    ordered(
        route(
            POST,
            "/denials",
            (Act::Denial(DenialAct::Put), "denial.put"),
            "Shuts somebody out, on every proxy.",
            (201, "Denial"),
        ),
        "DenialOrder",
    ),
    route(
        DELETE,
        "/denials/{id}",
        (Act::Denial(DenialAct::Remove), "denial.remove"),
        "Lets somebody in again.",
        (200, "Denial"),
    ),
    asking(
        route(
            GET,
            "/join-tokens",
            (Act::Invite(InviteAct::List), "invite.list"),
            "Join links, without their secrets.",
            (200, "JoinTokenPage"),
        ),
        PAGED,
    ),
    ordered(
        route(
            POST,
            "/join-tokens",
            (Act::Invite(InviteAct::Create), "invite.create"),
            "Makes a join link. The answer holds it, once.",
            (201, "Invite"),
        ),
        "InviteOrder",
    ),
    route(
        DELETE,
        "/join-tokens/{id}",
        (Act::Invite(InviteAct::End), "invite.end"),
        "Ends a join link.",
        (200, "JoinToken"),
    ),
    asking(
        route(
            GET,
            "/nodes",
            (Act::Node(NodeAct::List), "node.list"),
            "All home machines.",
            (200, "NodePage"),
        ),
        PAGED,
    ),
    route(
        GET,
        "/nodes/{id}",
        (Act::Node(NodeAct::Show), "node.show"),
        "One machine, by id or by a name that one has.",
        (200, "Node"),
    ),
    route(
        POST,
        "/nodes/{id}/approve",
        (Act::Node(NodeAct::Approve), "node.approve"),
        "Lets a machine in that waits for approval; compare its fingerprint first.",
        (200, "Node"),
    ),
    route(
        POST,
        "/nodes/{id}/drain",
        (Act::Node(NodeAct::Drain), "node.drain"),
        "Gives a machine no new work until it is told otherwise; what runs there finishes.",
        (200, "Node"),
    ),
    route(
        POST,
        "/nodes/{id}/undrain",
        (Act::Node(NodeAct::Undrain), "node.undrain"),
        "Gives a drained machine work again.",
        (200, "Node"),
    ),
    route(
        DELETE,
        "/nodes/{id}",
        (Act::Node(NodeAct::Revoke), "node.revoke"),
        "Cuts a machine off, at once and for ever.",
        (200, "Node"),
    ),
    asking(
        route(
            GET,
            "/usage",
            (Act::Book(BookAct::Usage), "usage"),
            "What was used, summed.",
            (200, "Usage"),
        ),
        SUMS,
    ),
    asking(
        route(
            GET,
            "/usage/records",
            (Act::Book(BookAct::Records), "usage.records"),
            "What was used, request by request.",
            (200, "RecordPage"),
        ),
        RECORDS,
    ),
    asking(
        route(
            GET,
            "/audit",
            (Act::Book(BookAct::AuditList), "audit.list"),
            "Every administrative act, the oldest first.",
            (200, "AuditPage"),
        ),
        PAGED,
    ),
    route(
        GET,
        "/audit/verify",
        (Act::Book(BookAct::AuditVerify), "audit.verify"),
        "Whether a line of the audit log was changed or removed.",
        (200, "AuditCheck"),
    ),
];

/// What a method and a path mean.
#[derive(Debug)]
pub enum Found {
    /// An act, and the name in the path.
    Route(&'static Route, String),
    /// The path is there, the method is not; those that are.
    Methods(String),
    /// Nothing.
    Nothing,
}

/// Looks up a method and a whole path. `HEAD` is `GET`.
pub fn find(method: &Method, path: &str) -> Found {
    let Some(path) = path.strip_prefix(PREFIX) else {
        return Found::Nothing;
    };
    let method = if *method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    // A path without a name in it is meant before one with a name.
    for route in in_order() {
        if route.method == method.as_str()
            && let Some(id) = matched(route.path, path)
        {
            return Found::Route(route, id);
        }
    }
    allowed(path).map_or(Found::Nothing, Found::Methods)
}

fn in_order() -> impl Iterator<Item = &'static Route> {
    let named = |with_name: bool| {
        ROUTES
            .iter()
            .filter(move |route| route.path.contains(ID) == with_name)
    };
    named(false).chain(named(true))
}

/// The methods of a whole path, as in `Allow`; `None`: there is no such path.
pub fn allow(path: &str) -> Option<String> {
    allowed(path.strip_prefix(PREFIX)?)
}

fn allowed(path: &str) -> Option<String> {
    let mut methods = Vec::new();
    // Of paths without a name in them and with one, the first that fits is the one that is there.
    let there = in_order().find(|route| matched(route.path, path).is_some())?;
    for route in ROUTES.iter().filter(|route| route.path == there.path) {
        methods.push(route.method);
        if route.method == GET {
            methods.push("HEAD");
        }
    }
    methods.push("OPTIONS");
    Some(methods.join(", "))
}

fn matched(known: &str, path: &str) -> Option<String> {
    let Some((before, after)) = known.split_once(ID) else {
        return (known == path).then(String::new);
    };
    let id = path.strip_prefix(before)?.strip_suffix(after)?;
    if id.is_empty() || id.contains('/') {
        return None;
    }
    decoded(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: &str, path: &str) -> Option<(Act, String)> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        match find(&method, path) {
            Found::Route(route, id) => Some((route.act, id)),
            Found::Methods(_) | Found::Nothing => None,
        }
    }

    #[test]
    fn a_name_in_a_path_is_one_segment_and_is_decoded() {
        let user = "https://idp.example.org/x|ada%";
        let path = format!("/admin/v1/users/{}", encoded(user));
        assert_eq!(
            at("GET", &path),
            Some((Act::User(UserAct::Show), user.to_owned()))
        );
        assert_eq!(at("GET", "/admin/v1/users/a/b"), None);
        assert_eq!(at("GET", "/admin/v1/users/%ff"), None, "no text");
        assert_eq!(at("GET", "/admin/v1/users/"), None);
    }

    #[test]
    fn a_path_without_a_name_is_meant_before_one_with_a_name() {
        assert_eq!(
            at("GET", "/admin/v1/audit/verify").unwrap().0,
            Act::Book(BookAct::AuditVerify)
        );
        assert_eq!(
            at("HEAD", "/admin/v1/usage/records").unwrap().0,
            Act::Book(BookAct::Records)
        );
        assert_eq!(
            at("POST", "/admin/v1/keys/k1/rotate").unwrap(),
            (Act::Key(KeyAct::Rotate), "k1".into())
        );
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let found = find(&Method::DELETE, "/admin/v1/keys");
        assert!(matches!(found, Found::Methods(methods) if methods == "GET, HEAD, POST, OPTIONS"));
        let allowed = allow("/admin/v1/usage/records");
        assert_eq!(allowed.as_deref(), Some("GET, HEAD, OPTIONS"));
        assert_eq!(allow("/admin/v1/nothing"), None);
        assert_eq!(allow("/v1/models"), None);
    }

    #[test]
    fn every_act_has_one_line_and_every_name_is_its_own() {
        let names: std::collections::BTreeSet<_> = ROUTES.iter().map(|route| route.name).collect();
        assert_eq!(names.len(), ROUTES.len());
    }
}
