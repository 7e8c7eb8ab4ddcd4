//! The gate as a table: what is refused, what passes, what the gateway gets to see.

use http::Version;
use proptest::prelude::*;

use super::*;
use crate::front::head::RawHead;

fn admit(head: &str) -> Result<Admitted, HeadRefusal> {
    let head = head.replace('\n', "\r\n") + "\r\n\r\n";
    let raw = RawHead::parse(head.as_bytes())?;
    let candidate = Candidate {
        version: raw.version,
        method: raw.method,
        target: raw.target,
        authority: None,
        fields: raw.fields,
    };
    candidate.admit(None)
}

#[test]
fn ambiguous_heads_are_refused() {
    let table = [
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\nHost: a\nHost: a",
        "GET / HTTP/1.1\nHost:",
        "GET / HTTP/1.1\nHost: a b",
        "GET / HTTP/1.1\nHost: a/b",
        "GET / HTTP/1.1\nHost: u@a",
        "GET / HTTP/1.1\nHost: [::1",
        "GET / HTTP/1.1\nHost: [::1]x",
        "GET / HTTP/1.1\nHost: a:70000",
        "GET / HTTP/1.1\nHost: a:+1",
        "GET / HTTP/1.0",
        "GET http://b/ HTTP/1.1\nHost: a",
        "GET file://a/ HTTP/1.1\nHost: a",
        "GET a HTTP/1.1\nHost: a",
        "OPTIONS * HTTP/1.1\nHost: a",
        "GET /%0 HTTP/1.1\nHost: a",
        "GET /%00 HTTP/1.1\nHost: a",
        "GET /%zz HTTP/1.1\nHost: a",
        "GET /a#b HTTP/1.1\nHost: a",
        "GET /a\\b HTTP/1.1\nHost: a",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 1\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 1",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 1, 1",
        "POST / HTTP/1.1\nHost: a\nContent-Length: +1",
        "POST / HTTP/1.1\nHost: a\nContent-Length: -1",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 0x1",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 1 1",
        "POST / HTTP/1.1\nHost: a\nContent-Length:",
        "POST / HTTP/1.1\nHost: a\nContent-Length: 99999999999999999999",
        "POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked",
        "GET / HTTP/1.1\nHost: a\nX_User_Id: root",
        "GET / HTTP/1.1\nHost: a\nAuthorization: Bearer a\nAuthorization: Bearer b",
        "GET / HTTP/1.1\nHost: a\nContent-Type: a\nContent-Type: b",
    ];
    for head in table {
        let outcome = admit(head);
        assert!(
            matches!(outcome, Err(HeadRefusal::Malformed(_))),
            "{head:?} gave {outcome:?}"
        );
    }
}

#[test]
fn each_other_refusal_has_its_own_reason() {
    let long = format!("GET /{} HTTP/1.1\nHost: a", "a".repeat(5000));
    let wide = format!("GET / HTTP/1.1\nHost: a\nX: {}", "a".repeat(9000));
    let many = format!("GET / HTTP/1.1\nHost: a{}", "\nX: y".repeat(101));
    let table: [(&str, HeadRefusal); 12] = [
        ("TRACE / HTTP/1.1\nHost: a", HeadRefusal::MethodNotAllowed),
        (
            "CONNECT a:443 HTTP/1.1\nHost: a:443",
            HeadRefusal::MethodNotAllowed,
        ),
        ("PUT / HTTP/1.1\nHost: a", HeadRefusal::MethodNotAllowed),
        ("get / HTTP/1.1\nHost: a", HeadRefusal::MethodUnknown),
        (
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked",
            HeadRefusal::TransferCoding,
        ),
        (
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: identity",
            HeadRefusal::TransferCoding,
        ),
        (
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked",
            HeadRefusal::TransferCoding,
        ),
        (
            "POST / HTTP/1.1\nHost: a\nContent-Encoding: gzip",
            HeadRefusal::ContentEncoding,
        ),
        (
            "POST / HTTP/1.1\nHost: a\nExpect: 200-ok",
            HeadRefusal::Expectation,
        ),
        (&long, HeadRefusal::TargetTooLong),
        (
            &wide,
            HeadRefusal::TooLarge("a header value is longer than 8 KiB"),
        ),
        (&many, HeadRefusal::TooLarge("more than 100 header fields")),
    ];
    for (head, reason) in table {
        assert_eq!(admit(head).err(), Some(reason), "{head:.60?}");
    }
}

#[test]
fn ordinary_requests_pass_with_their_raw_path() {
    let table = [
        ("GET / HTTP/1.1\nHost: llm.example.org", "/"),
        (
            "GET /v1/models/a%2Fb?x=/../ HTTP/1.1\nHost: [::1]:8443",
            "/v1/models/a%2Fb",
        ),
        ("GET /a/../b//c HTTP/1.1\nHost: a", "/a/../b//c"),
        ("GET https://A:1/x HTTP/1.1\nHost: a:1", "/x"),
        ("GET / HTTP/1.0\nHost: a", "/"),
    ];
    for (head, path) in table {
        assert_eq!(admit(head).expect(head).path, path);
    }
    let post = admit("POST / HTTP/1.1\nHost: a\nContent-Length: 12\nExpect: 100-Continue").unwrap();
    assert_eq!(
        (post.framing, post.expects_continue),
        (Framing::Length(12), true)
    );
    let chunked = admit("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked").unwrap();
    assert_eq!(chunked.framing, Framing::Chunked);
}

#[test]
fn the_gateway_sees_allow_listed_headers_only() {
    let admitted = admit(
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 1.2.3.4\nForwarded: for=1.2.3.4\nX-Real-IP: 1.2.3.4\n\
         X-User-Id: root\nX-Hearth-Tier: heavy\nCookie: a=b\nConnection: authorization\n\
         Authorization: Bearer t\nUser-Agent: x",
    )
    .unwrap();
    let mut names: Vec<_> = admitted.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["authorization", "user-agent"],
        "nominated by Connection, yet still there"
    );
    assert!(admitted.headers[header::AUTHORIZATION].is_sensitive());
}

#[test]
fn a_request_id_is_taken_only_if_it_is_harmless() {
    let id = |value: &str| {
        admit(&format!("GET / HTTP/1.1\nHost: a\nX-Request-Id: {value}"))
            .unwrap()
            .request_id
    };
    assert_eq!(id("req-12345678").as_deref(), Some("req-12345678"));
    assert_eq!(id("short"), None);
    assert_eq!(id("with blank 123"), None);
    assert_eq!(id(&"a".repeat(129)), None);
}

#[test]
fn a_loopback_listener_knows_only_its_own_names() {
    let hosts = ["localhost".to_owned(), "[::1]".to_owned()];
    let ask = |host: &'static str| {
        let fields = vec![("host", host.as_bytes())];
        let (version, target) = (Version::HTTP_11, "/");
        Candidate {
            version,
            method: "GET",
            target,
            authority: None,
            fields,
        }
        .admit(Some(&hosts))
        .err()
    };
    assert_eq!(ask("LocalHost:8443"), None);
    assert_eq!(ask("[::1]"), None);
    assert_eq!(ask("[::1]:8443"), None);
    assert_eq!(ask("evil.example"), Some(HeadRefusal::WrongHost));
}

#[test]
fn http2_must_agree_with_itself() {
    let ask = |authority, host: Option<&'static str>| {
        let fields = host
            .map(|host| ("host", host.as_bytes()))
            .into_iter()
            .collect();
        let (version, target) = (Version::HTTP_2, "/");
        Candidate {
            version,
            method: "GET",
            target,
            authority,
            fields,
        }
        .admit(None)
        .is_ok()
    };
    assert!(ask(Some("a"), None) && ask(Some("a"), Some("a")) && ask(None, Some("a")));
    assert!(!ask(Some("a"), Some("b")) && !ask(None, None));
}

proptest! {
    #[test]
    fn whatever_passes_has_a_plain_path_and_no_forbidden_header(
        target in "[ -~]{1,40}",
        fields in proptest::collection::vec(("[A-Za-z_-]{1,20}", "[ -~]{0,30}"), 0..12),
    ) {
        let mut all: Vec<(&str, &[u8])> = vec![("host", b"a")];
        all.extend(fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        let candidate = Candidate { version: Version::HTTP_11, method: "POST", target: &target, authority: None, fields: all };
        if let Ok(admitted) = candidate.admit(None) {
            prop_assert!(admitted.path.starts_with('/') && !admitted.path.contains(['?', ' ', '#']));
            prop_assert!(admitted.headers.keys().all(|name| PASSED.contains(&name.as_str())));
        }
    }
}
