//! An identity provider: three keys, a JWK set over HTTP, and tokens, good and bad, signed by hand.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Which key signs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Key {
    /// RSA 2,048 bits, RS256.
    Rsa,
    /// P-256, ES256.
    Ec,
    /// Ed25519, `EdDSA`.
    Ed,
}

impl Key {
    /// The `kid` in the JWK set.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Rsa => "rsa-1",
            Self::Ec => "ec-1",
            Self::Ed => "ed-1",
        }
    }

    const fn algorithm(self) -> &'static str {
        match self {
            Self::Rsa => "RS256",
            Self::Ec => "ES256",
            Self::Ed => "EdDSA",
        }
    }
}

/// An issuer that serves its keys on loopback.
pub struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    port: u16,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    /// The `aud` of its tokens.
    pub const AUDIENCE: &'static str = "hearth-tests";

    /// Makes keys and serves them.
    pub async fn start() -> Self {
        let random = SystemRandom::new();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .expect("a P-256 key");
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random)
            .expect("our own key");
        let ed = Ed25519KeyPair::generate_pkcs8(&random).expect("an Ed25519 key");
        let ed = Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("our own key");
        let rsa = RsaKeyPair::from_der(&rsa_key()).expect("openssl makes PKCS #1");
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has a free port");
        let port = listener
            .local_addr()
            .expect("a bound socket has an address")
            .port();
        let issuer = Self {
            rsa,
            ec,
            ed,
            port,
            fetches: Arc::default(),
        };
        tokio::spawn(serve(
            listener,
            issuer.jwks().to_string(),
            Arc::clone(&issuer.fetches),
        ));
        issuer
    }

    /// `iss` of its tokens.
    pub fn name(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where the JWK set is.
    pub fn jwks_url(&self) -> String {
        format!("{}/jwks.json", self.name())
    }

    /// How often the JWK set was asked for.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// Good claims for this person.
    pub fn claims(&self, sub: &str) -> Value {
        let now = unix_now();
        json!({"iss": self.name(), "aud": Self::AUDIENCE, "sub": sub, "iat": now - 5, "exp": now + 3600})
    }

    /// A good token for this person.
    pub fn token(&self, sub: &str) -> String {
        self.sign(Key::Rsa, &self.claims(sub))
    }

    /// The claims signed by the key under an honest header.
    pub fn sign(&self, key: Key, claims: &Value) -> String {
        self.sign_with_header(
            key,
            &json!({"alg": key.algorithm(), "kid": key.id(), "typ": "JWT"}),
            claims,
        )
    }

    /// The claims signed by the key under a header of the story's own.
    pub fn sign_with_header(&self, key: Key, header: &Value, claims: &Value) -> String {
        let text = format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims.to_string())
        );
        let signature = self.signature(key, text.as_bytes());
        format!("{text}.{}", encode(signature))
    }

    /// A token whose MAC was made with the RSA public key: the classic confusion of algorithms.
    pub fn hs256_with_the_public_key(&self, claims: &Value) -> String {
        let header = json!({"alg": "HS256", "kid": Key::Rsa.id(), "typ": "JWT"});
        let text = format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims.to_string())
        );
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.rsa.public_key().as_ref());
        format!("{text}.{}", encode(ring::hmac::sign(&key, text.as_bytes())))
    }

    fn signature(&self, key: Key, text: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match key {
            Key::Rsa => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                self.rsa
                    .sign(&RSA_PKCS1_SHA256, &random, text, &mut signature)
                    .expect("RSA signs");
                signature
            }
            Key::Ec => self
                .ec
                .sign(&random, text)
                .expect("P-256 signs")
                .as_ref()
                .to_vec(),
            Key::Ed => self.ed.sign(text).as_ref().to_vec(),
        }
    }

    fn jwks(&self) -> Value {
        let rsa = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        let point = &self.ec.public_key().as_ref()[1..];
        json!({"keys": [
            {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": Key::Rsa.id(), "n": encode(rsa.n), "e": encode(rsa.e)},
            {"kty": "EC", "use": "sig", "alg": "ES256", "kid": Key::Ec.id(), "crv": "P-256",
             "x": encode(&point[..32]), "y": encode(&point[32..])},
            {"kty": "OKP", "use": "sig", "alg": "EdDSA", "kid": Key::Ed.id(), "crv": "Ed25519", "x": encode(self.ed.public_key())},
        ]})
    }
}

/// Base64url without padding, as RFC 7515 section 2 wants it.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970")
        .as_secs()
}

/// ring makes no RSA keys; openssl does, anew for each run, so that none lies in the repository.
fn rsa_key() -> Vec<u8> {
    let made = Command::new("sh")
        .args([
            "-c",
            "openssl genrsa 2048 2>/dev/null | openssl rsa -traditional -outform DER 2>/dev/null",
        ])
        .output()
        .expect("a shell runs");
    assert!(
        made.status.success() && !made.stdout.is_empty(),
        "openssl makes no RSA key: is it installed?"
    );
    made.stdout
}

async fn serve(listener: TcpListener, keys: String, fetches: Arc<AtomicUsize>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        fetches.fetch_add(1, Ordering::SeqCst);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: max-age=3600\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{keys}",
            keys.len()
        );
        tokio::spawn(async move {
            let mut request = [0; 4096];
            if socket
                .read(&mut request)
                .await
                .is_ok_and(|length| length > 0)
            {
                socket.write_all(answer.as_bytes()).await.ok();
            }
        });
    }
}
