//! The join link: `https://HOST[:PORT]/join#hearth_nj_…[&pin=sha256-…]`. Parses it, and redeems it for a place with the proxy.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use config::token::{Token, TokenError, TokenKind};

use crate::hub::{Hub, HubError};
use crate::identity::{Identity, Member, StateError};

/// What comes before the hash of a pin.
const PIN_PREFIX: &str = "sha256-";

/// The SHA-256 of the key that a proxy must show.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Reads `sha256-<base64url>`.
    pub fn parse(text: &str) -> Option<Self> {
        let hash = text.strip_prefix(PIN_PREFIX)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(hash)
            .or_else(|_padded| URL_SAFE.decode(hash))
            .ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// The hash.
    pub const fn sha256(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A parsed join link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinLink {
    /// `https://host[:port]`, the proxy's origin.
    pub proxy: String,
    /// The token; its `Debug` hides the secret.
    pub token: Token,
    /// Set if the proxy's certificate is self-signed.
    pub pin: Option<Pin>,
}

/// What is wrong with a join link. Never quotes it: it holds a secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LinkError {
    /// Another scheme, or none.
    #[error(
        "a join link starts with https://; copy the whole line that `hearth-proxy node invite` printed, in quotes"
    )]
    NotHttps,
    /// The part after `#` is missing, as when a shell cut the link at `&` or `#`.
    #[error("the join link has no token after #; put the link in quotes")]
    NoToken,
    /// The host is missing or odd.
    #[error("the join link names no host: copy it whole, from https:// on")]
    NoHost,
    /// The token is damaged.
    #[error("the token of the join link is damaged: {0}")]
    Token(TokenError),
    /// The token opens something else.
    #[error("the link holds another kind of token; a join token starts with hearth_nj_")]
    WrongKind,
    /// The pin is damaged.
    #[error("the pin of the join link is damaged; it reads pin=sha256- and 43 characters")]
    Pin,
    /// Something else follows the token.
    #[error("the join link holds something unknown after the token; is the link whole?")]
    Unknown,
}

impl JoinLink {
    /// Reads a link.
    pub fn parse(text: &str) -> Result<Self, LinkError> {
        let rest = text
            .trim()
            .strip_prefix("https://")
            .ok_or(LinkError::NotHttps)?;
        let (place, fragment) = rest.split_once('#').ok_or(LinkError::NoToken)?;
        let authority = place.split(['/', '?']).next().unwrap_or_default();
        let uri: http::Uri = format!("https://{authority}/")
            .parse()
            .map_err(|_error| LinkError::NoHost)?;
        if uri.host().is_none_or(str::is_empty) || authority.contains('@') {
            return Err(LinkError::NoHost);
        }
        let mut parts = fragment.split('&');
        let token = parts.next().filter(|token| !token.is_empty());
        let token = Token::parse(token.ok_or(LinkError::NoToken)?).map_err(LinkError::Token)?;
        if token.kind() != TokenKind::Join {
            return Err(LinkError::WrongKind);
        }
        let mut pin = None;
        for part in parts {
            let value = part.strip_prefix("pin=").ok_or(LinkError::Unknown)?;
            pin = Some(Pin::parse(value).ok_or(LinkError::Pin)?);
        }
        Ok(Self {
            proxy: format!("https://{authority}"),
            token,
            pin,
        })
    }
}

/// Why a join failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The proxy did not take the token, or was not there.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The state directory is broken.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Redeems a link and keeps the membership. Doing it again with the same machine gives the same place.
pub async fn join(
    link: &JoinLink,
    identity: &Identity,
    name: &str,
    state_dir: &Path,
) -> Result<Joined, JoinError> {
    let hub = Hub::new(&link.proxy, link.pin)?;
    let reply = hub.enrol(identity, &link.token, name).await?;
    let pin = link.pin.map(|pin| pin.to_string());
    let member = Member::new(link.proxy.clone(), pin, reply.node_id, name.to_owned());
    member.save(state_dir)?;
    Ok(Joined {
        member,
        approved: reply.approved,
    })
}

/// How a join ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Joined {
    /// The membership, which is kept.
    pub member: Member,
    /// False: an administrator must approve it first.
    pub approved: bool,
}

/// Waits until an administrator has approved the node. A proxy that is not there meanwhile is asked again.
pub async fn approval(
    link: &JoinLink,
    identity: &Identity,
    name: &str,
    every: Duration,
) -> Result<(), JoinError> {
    let hub = Hub::new(&link.proxy, link.pin)?;
    loop {
        tokio::time::sleep(every).await;
        match hub.enrol(identity, &link.token, name).await {
            Ok(reply) if reply.approved => return Ok(()),
            Ok(_) => {}
            Err(error) if error.is_passing() => tracing::debug!(%error, "not approved yet"),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "sha256-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn token(kind: TokenKind) -> String {
        Token::generate(kind).reveal().expose().clone()
    }

    #[test]
    fn a_link_gives_proxy_token_and_pin() {
        let token = token(TokenKind::Join);
        let link = JoinLink::parse(&format!(
            "https://home.example:8443/join#{token}&pin={PIN}\n"
        ))
        .expect("parses");
        assert_eq!(link.proxy, "https://home.example:8443");
        assert_eq!(link.pin.map(|pin| pin.to_string()).as_deref(), Some(PIN));
        let plain = JoinLink::parse(&format!("https://[::1]/join#{token}")).expect("parses");
        assert_eq!((plain.proxy.as_str(), plain.pin), ("https://[::1]", None));
    }

    #[test]
    fn every_damage_has_its_message_and_none_shows_the_secret() {
        let good = token(TokenKind::Join);
        let other = token(TokenKind::Client);
        let mut typo = good.clone();
        typo.pop();
        for (text, want) in [
            ("http://a/join#x".to_owned(), LinkError::NotHttps),
            ("https://a/join".to_owned(), LinkError::NoToken),
            ("https://a/join#".to_owned(), LinkError::NoToken),
            (format!("https:///join#{good}"), LinkError::NoHost),
            (format!("https://u:p@a/join#{good}"), LinkError::NoHost),
            (
                format!("https://a/join#{typo}"),
                LinkError::Token(TokenError::Malformed),
            ),
            (format!("https://a/join#{other}"), LinkError::WrongKind),
            (
                format!("https://a/join#{good}&pin=sha256-AA"),
                LinkError::Pin,
            ),
            (format!("https://a/join#{good}&x=1"), LinkError::Unknown),
        ] {
            let error = JoinLink::parse(&text).expect_err("damaged");
            assert_eq!(error, want);
            assert!(!error.to_string().contains(&good));
        }
    }
}
