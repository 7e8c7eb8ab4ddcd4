//! The text of a credential that Hearth issues: `hearth_sk_<id10>_<secret30><crc6>`. The prefix lets secret scanners find a leaked
//! one, the id is public, the check sum tells a typo from a revoked key without asking a store. Stores and compares nothing.

use std::fmt;
use std::str::FromStr;

use rand::Rng as _;
use rand::distr::Alphanumeric;
use zeroize::Zeroize as _;

use crate::secret::Secret;

/// Finds every token of Hearth in a text; for secret scanners.
pub const TOKEN_REGEX: &str = r"\bhearth_(?:sk|ak|nj)_[0-9A-Za-z]{10}_[0-9A-Za-z]{36}\b";
/// Characters of the id.
pub const ID_CHARS: usize = 10;
/// Characters of the secret: 62^30 is a little more than 2^178.
pub const SECRET_CHARS: usize = 30;
/// Characters of the check sum.
pub const CHECK_CHARS: usize = 6;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BRAND: &str = "hearth_";

/// What a token opens.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TokenKind {
    /// `hearth_sk_`: the API.
    Client,
    /// `hearth_ak_`: the API and administration.
    Admin,
    /// `hearth_nj_`: enrolling a node.
    Join,
}

impl TokenKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Client, Self::Admin, Self::Join];

    /// Everything before the id.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Client => "hearth_sk_",
            Self::Admin => "hearth_ak_",
            Self::Join => "hearth_nj_",
        }
    }
}

/// A token whose form and check sum are right; whether it opens anything is the store's word.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    kind: TokenKind,
    id: String,
    secret: Secret<String>,
}

/// Why a text is no token. Never quotes the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// Another system's key, or none at all.
    #[error("not a Hearth token: it starts with hearth_sk_, hearth_ak_ or hearth_nj_")]
    WrongPrefix,
    /// Too short, too long, or with characters that no token has.
    #[error(
        "not a whole token: after the prefix come 10 characters, _ and 36 characters, letters and digits alone"
    )]
    Malformed,
    /// The check sum is wrong.
    #[error("the token fails its check sum: a character was lost or changed while copying")]
    Typo,
}

impl Token {
    /// A new token from the operating system's randomness.
    pub fn generate(kind: TokenKind) -> Self {
        Self {
            kind,
            id: random(ID_CHARS),
            secret: Secret::new(random(SECRET_CHARS)),
        }
    }

    /// The token that this seed always makes: who asks twice with the same name for a request gets the same token. The seed must
    /// be as secret and as random as a token.
    pub fn from_seed(kind: TokenKind, seed: &[u8; 2 * (ID_CHARS + SECRET_CHARS)]) -> Self {
        let (pairs, _) = seed.as_chunks::<2>();
        let letter = |pair: &[u8; 2]| {
            // 65,536 is 1,057 times 62 and a little more: no letter is noticeably likelier than another.
            let at = usize::from(u16::from_be_bytes(*pair)) % ALPHABET.len();
            ALPHABET.get(at).map_or('0', |&byte| char::from(byte))
        };
        let mut letters = pairs.iter().map(letter);
        Self {
            kind,
            id: letters.by_ref().take(ID_CHARS).collect(),
            secret: Secret::new(letters.collect()),
        }
    }

    /// A new secret for a token that is there already: the public part stays, so people still recognise it.
    pub fn renew(kind: TokenKind, id: &str) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            secret: Secret::new(random(SECRET_CHARS)),
        }
    }

    /// What it opens.
    pub const fn kind(&self) -> TokenKind {
        self.kind
    }

    /// The public part, by which the store finds it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret part, of which the store keeps an HMAC.
    pub const fn secret(&self) -> &Secret<String> {
        &self.secret
    }

    /// Reads a token; the same as its `FromStr`.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let kind = TokenKind::ALL
            .into_iter()
            .find(|kind| text.starts_with(kind.prefix()))
            .ok_or(TokenError::WrongPrefix)?;
        let rest = text
            .strip_prefix(kind.prefix())
            .ok_or(TokenError::WrongPrefix)?;
        let (id, tail) = rest.split_once('_').ok_or(TokenError::Malformed)?;
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if id.len() != ID_CHARS
            || tail.len() != SECRET_CHARS + CHECK_CHARS
            || !plain(id)
            || !plain(tail)
        {
            return Err(TokenError::Malformed);
        }
        let (body, check) = text
            .split_at_checked(text.len() - CHECK_CHARS)
            .ok_or(TokenError::Malformed)?;
        if check_sum(body) != check {
            return Err(TokenError::Typo);
        }
        let (secret, _) = tail
            .split_at_checked(SECRET_CHARS)
            .ok_or(TokenError::Malformed)?;
        Ok(Self {
            kind,
            id: id.to_owned(),
            secret: Secret::new(secret.to_owned()),
        })
    }

    /// The whole text. Whoever shows it shows it once.
    pub fn reveal(&self) -> Secret<String> {
        let mut body = String::with_capacity(
            self.kind.prefix().len() + ID_CHARS + 1 + SECRET_CHARS + CHECK_CHARS,
        );
        body.push_str(self.kind.prefix());
        body.push_str(&self.id);
        body.push('_');
        body.push_str(self.secret.expose());
        let check = check_sum(&body);
        body.push_str(&check);
        Secret::new(body)
    }

    /// What may be shown in lists: prefix and id.
    pub fn public(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.id)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reveal().expose())
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

/// Whether a text claims to be a token of Hearth, so that the error can speak of one.
pub fn looks_like_token(text: &str) -> bool {
    text.starts_with(BRAND)
}

fn random(chars: usize) -> String {
    // ThreadRng is a ChaCha generator seeded by the operating system; Alphanumeric draws evenly from 62 characters.
    let mut bytes: Vec<u8> = rand::rng().sample_iter(Alphanumeric).take(chars).collect();
    let text = bytes.iter().copied().map(char::from).collect();
    bytes.zeroize();
    text
}

/// CRC-32 of everything before it, base 62, six digits: 62^6 is more than 2^32.
fn check_sum(text: &str) -> String {
    let mut rest = crc32(text.as_bytes());
    let mut digits = ['0'; CHECK_CHARS];
    for digit in digits.iter_mut().rev() {
        let value = usize::try_from(rest % 62).unwrap_or(0);
        *digit = char::from(ALPHABET.get(value).copied().unwrap_or(b'0'));
        rest /= 62;
    }
    digits.iter().collect()
}

/// CRC-32 as in ISO-HDLC (zlib, PNG): reflected, polynomial 0x04C11DB7.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0xEDB8_8320 & mask);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn crc_is_the_one_of_zlib() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_generated_token_is_read_back() {
        for kind in TokenKind::ALL {
            let token = Token::generate(kind);
            let text = token.to_string();
            assert_eq!(text.len(), kind.prefix().len() + 47);
            assert_eq!(Token::parse(&text).expect("parses"), token);
        }
    }

    #[test]
    fn two_tokens_differ() {
        let one = Token::generate(TokenKind::Client);
        let two = Token::generate(TokenKind::Client);
        assert_ne!(one.id(), two.id());
        assert_ne!(one.secret().expose(), two.secret().expose());
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = Token::generate(TokenKind::Admin);
        let debug = format!("{token:?}");
        assert!(!debug.contains(token.secret().expose().as_str()));
    }

    #[test]
    fn every_single_changed_character_is_a_typo_or_malformed() {
        let token = Token::generate(TokenKind::Client);
        let text = token.to_string();
        for at in TokenKind::Client.prefix().len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert!(Token::parse(&changed).is_err(), "position {at}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = Token::generate(TokenKind::Join).to_string();
        let cases = [
            ("sk-proj-abc".to_owned(), TokenError::WrongPrefix),
            (String::new(), TokenError::WrongPrefix),
            ("hearth_sk_".to_owned(), TokenError::Malformed),
            (format!("{text}0"), TokenError::Malformed),
            (format!(" {text}"), TokenError::WrongPrefix),
            (text.replacen("_nj_", "_sk_", 1), TokenError::Typo),
        ];
        for (text, want) in cases {
            assert_eq!(Token::parse(&text), Err(want));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(hearth_(sk|ak|nj)_)?.{0,60}") {
            prop_assert!(Token::parse(&text).is_err());
        }
    }
}
