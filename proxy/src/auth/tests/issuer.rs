//! An issuer for tests: keys of every kind, tokens, and a server that can misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{AUDIENCE, ISSUER, now};

/// A private key of an issuer, with its name.
pub(super) struct Signer {
    pub(super) kid: String,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair, &'static str, usize),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub(super) fn rsa(kid: &str) -> Self {
        let pem = include_str!("../fixtures/rsa-for-tests.pem");
        let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = RsaKeyPair::from_pkcs8(&STANDARD.decode(text).unwrap()).unwrap();
        Self::new(kid, Pair::Rsa(Box::new(pair)))
    }

    pub(super) fn p256(kid: &str) -> Self {
        let method = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        Self::new(kid, Pair::Ec(ec(method), "P-256", 32))
    }

    pub(super) fn p384(kid: &str) -> Self {
        let method = &signature::ECDSA_P384_SHA384_FIXED_SIGNING;
        Self::new(kid, Pair::Ec(ec(method), "P-384", 48))
    }

    pub(super) fn ed(kid: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
        Self::new(kid, Pair::Ed(pair))
    }

    fn new(kid: &str, pair: Pair) -> Self {
        Self {
            kid: kid.into(),
            pair,
        }
    }

    /// The public half, without `alg`.
    pub(super) fn jwk(&self) -> Value {
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "kid": self.kid, "use": "sig", "n": text(&public.n), "e": text(&public.e)})
            }
            Pair::Ec(pair, curve, size) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "kid": self.kid, "crv": curve, "x": text(&point[1..=*size]), "y": text(&point[size + 1..])})
            }
            Pair::Ed(pair) => {
                let x = text(pair.public_key().as_ref());
                json!({"kty": "OKP", "kid": self.kid, "crv": "Ed25519", "x": x})
            }
        }
    }

    /// A token for the claims, with the algorithm that it names.
    pub(super) fn token(&self, alg: &str, claims: &Value) -> String {
        self.signed(&json!({"alg": alg, "kid": self.kid, "typ": "JWT"}), claims)
    }

    /// A token with any header; signed as its `alg` says.
    pub(super) fn signed(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", json_part(header), json_part(claims));
        let alg = header["alg"].as_str().unwrap_or_default();
        let signature = self.sign(alg, message.as_bytes());
        format!("{message}.{}", text(&signature))
    }

    fn sign(&self, alg: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let method: &dyn signature::RsaEncoding = match alg {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(method, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair, _, _) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }
}

fn ec(method: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(method, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(method, document.as_ref(), &random).unwrap()
}

pub(super) fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn json_part(value: &Value) -> String {
    text(value.to_string().as_bytes())
}

pub(super) fn key_set(jwks: &[Value]) -> Value {
    json!({ "keys": jwks })
}

/// Claims that pass.
pub(super) fn good_claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now() + 3_600, "iat": now() - 10})
}

/// What the server answers to one path.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<String>,
    pub(super) body: String,
}

/// A tiny HTTP server on loopback that counts.
pub(super) struct KeyServer {
    pub(super) url: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    hits: Arc<Mutex<HashMap<String, usize>>>,
    task: tokio::task::JoinHandle<()>,
}

impl KeyServer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let hits: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let (known, counted) = (Arc::clone(&answers), Arc::clone(&hits));
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (known, counted) = (Arc::clone(&known), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut head = vec![0; 4_096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    *counted.lock().unwrap().entry(path.clone()).or_default() += 1;
                    let answer = known.lock().unwrap().get(&path).cloned();
                    let reply = reply(answer);
                    // Whoever asked may have had enough.
                    let _sent = stream.write_all(reply.as_bytes()).await;
                    let _closed = stream.shutdown().await;
                });
            }
        });
        Self {
            url,
            answers,
            hits,
            task,
        }
    }

    pub(super) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(super) fn answers(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.into(), answer);
    }

    pub(super) fn serves(&self, path: &str, body: &Value) {
        let answer = Answer {
            status: 200,
            headers: Vec::new(),
            body: body.to_string(),
        };
        self.answers(path, answer);
    }

    pub(super) fn hits(&self, path: &str) -> usize {
        self.hits.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn reply(answer: Option<Answer>) -> String {
    let answer = answer.unwrap_or(Answer {
        status: 404,
        headers: Vec::new(),
        body: String::new(),
    });
    let mut text = format!(
        "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for header in &answer.headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text + "\r\n" + &answer.body
}
