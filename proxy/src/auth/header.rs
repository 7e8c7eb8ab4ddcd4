//! Finds the one credential of a request. Looks at headers only; never at the query, a cookie or a body.

use config::token::{Token, looks_like_token};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use policy::refusal::Refusal;

/// A credential at most (contract A2.2).
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Azure's spelling, where the settings allow it.
const AZURE_KEY: HeaderName = HeaderName::from_static("api-key");
/// Names the end user of a trusted front end.
const END_USER: HeaderName = HeaderName::from_static("x-hearth-user");

/// What was shown.
pub(super) enum Credential<'a> {
    /// An API key whose checksum is right.
    Key(Token),
    /// Something with two dots.
    Jwt(&'a str),
}

/// The credential of a request. The same one twice counts once.
pub(super) fn credential(headers: &HeaderMap, azure: bool) -> Result<Credential<'_>, Refusal> {
    let mut shown = None;
    for value in headers.get_all(AUTHORIZATION) {
        keep(&mut shown, bearer(text(value)?)?)?;
    }
    for value in headers.get_all(API_KEY) {
        keep(&mut shown, text(value)?.trim())?;
    }
    for value in headers.get_all(AZURE_KEY).iter().filter(|_| azure) {
        keep(&mut shown, text(value)?.trim())?;
    }
    let text = shown.ok_or(Refusal::MissingCredential)?;
    if looks_like_token(text) {
        return key(text).map(Credential::Key);
    }
    if text.bytes().filter(|byte| *byte == b'.').count() == 2 {
        return Ok(Credential::Jwt(text));
    }
    Err(invalid(
        "it is neither an API key (hearth_sk_...) nor a JWT",
    ))
}

/// The end user that the request names; `None` when it names none.
pub(super) fn end_user(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let malformed = |why: &str| Refusal::BadRequest {
        code: "invalid_value".into(),
        param: Some(END_USER.as_str().to_owned()),
        message: format!("`x-hearth-user` {why}"),
    };
    let mut named: Option<&str> = None;
    for value in headers.get_all(END_USER) {
        // HeaderValue::to_str takes visible ASCII alone; names are UTF-8.
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| malformed("is not UTF-8"))?;
        if named.is_some_and(|known| known != text) {
            return Err(malformed("stands twice with two names: send one"));
        }
        named = Some(text);
    }
    Ok(named)
}

/// A refusal whose reason the caller may read.
pub(super) fn invalid(why: &'static str) -> Refusal {
    Refusal::InvalidCredential { why: why.into() }
}

fn keep<'a>(shown: &mut Option<&'a str>, text: &'a str) -> Result<(), Refusal> {
    if text.is_empty() {
        return Ok(());
    }
    match shown {
        Some(known) if *known != text => Err(Refusal::AmbiguousCredential),
        Some(_) => Ok(()),
        None => {
            *shown = Some(text);
            Ok(())
        }
    }
}

fn text(value: &HeaderValue) -> Result<&str, Refusal> {
    if value.len() > CREDENTIAL_BYTES_MAX {
        return Err(Refusal::HeaderTooLarge);
    }
    value
        .to_str()
        .map_err(|_| invalid("it holds characters that no credential has"))
}

/// RFC 9110 section 11.1: the scheme's case does not matter.
fn bearer(value: &str) -> Result<&str, Refusal> {
    let value = value.trim();
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.is_empty() || scheme.eq_ignore_ascii_case("bearer") {
        return Ok(rest.trim());
    }
    Err(invalid("use `authorization: Bearer ...`"))
}

fn key(text: &str) -> Result<Token, Refusal> {
    Token::parse(text).map_err(|error| Refusal::InvalidCredential {
        why: error.to_string().into(),
    })
}
