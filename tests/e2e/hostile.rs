//! The house under attack: floods that cost others nothing, one join link for many thieves, and secrets that nobody finds in
//! what the programs write. What a single head or body can do is in `input`, what a token can do in `auth`.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::token::Token;
use config::wire::node::enroll_message;
use futures_util::future::join_all;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tests::node::Node;
use tests::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Frames after which an attack that still goes on has won.
const FRAMES_MAX: u32 = 200_000;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u64 = 4;

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are small");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A literal field that no table remembers (RFC 7541 section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short texts");
    let mut field = vec![0, length(name)];
    field.extend(name.bytes());
    field.push(length(value));
    field.extend(value.bytes());
    field
}

fn request() -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":authority", "localhost"),
        field(":path", "/v1/chat/completions"),
    ]
    .concat()
}

async fn http2(proxy: &Proxy) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let certificate =
        CertificateDer::from_pem_slice(proxy.certificate().as_bytes()).expect("a PEM certificate");
    roots.add(certificate).expect("a certificate");
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(proxy.address())
        .await
        .expect("the proxy listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .expect("TLS works");
    stream.write_all(PREFACE).await.expect("the proxy reads");
    stream
}

/// Sends frame after frame until the proxy has had enough; how many it took.
async fn flood(proxy: &Proxy, opening: &[u8], again: impl Fn(u32) -> Vec<u8>) -> u32 {
    let (mut answers, mut questions) = tokio::io::split(http2(proxy).await);
    let waste = tokio::spawn(async move {
        let mut piece = [0; 4096];
        while let Ok(1..) = answers.read(&mut piece).await {}
    });
    let mut sent = 0;
    if questions.write_all(opening).await.is_ok() {
        while sent < FRAMES_MAX && !waste.is_finished() {
            if questions.write_all(&again(sent)).await.is_err() {
                break;
            }
            sent += 1;
        }
    }
    waste.abort();
    sent
}

fn resident_kib(proxy: &mut Proxy) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", proxy.process().pid())).expect("Linux tells");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next())
        .and_then(|number| number.parse().ok())
        .expect("a number of KiB")
}

#[tokio::test]
async fn http2_floods_are_cut_and_cost_nobody_else_anything() {
    let mut proxy = Proxy::start().await;
    let stranger = proxy.stranger();
    assert_eq!(stranger.get("/healthz").await.status, 200);
    let before = resident_kib(&mut proxy);

    let open = |sent: u32| frame(HEADERS, END_HEADERS, 1 + 2 * sent, &request());
    let rapid_reset = flood(&proxy, b"", |sent| {
        let reset = frame(RST_STREAM, 0, 1 + 2 * sent, &8_u32.to_be_bytes());
        [open(sent), reset].concat()
    });
    // The client breaks a rule so that the server resets.
    let made_you_reset = flood(&proxy, b"", |sent| {
        let nothing = frame(WINDOW_UPDATE, 0, 1 + 2 * sent, &[0; 4]);
        [open(sent), nothing].concat()
    });
    let headless = frame(HEADERS, 0, 1, &request());
    let continuation = flood(&proxy, &headless, |_| {
        frame(CONTINUATION, 0, 1, &field("x", "y"))
    });
    let continuation_of_nothing = flood(&proxy, &headless, |_| frame(CONTINUATION, 0, 1, b""));
    let begun = open(0);
    let empty_data = flood(&proxy, &begun, |_| frame(DATA, 0, 1, b""));
    // One field of 4 KiB in the table, then named in every byte.
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    bomb.extend([b'b'; 4000]);
    let first = frame(HEADERS, END_HEADERS, 1, &[request(), bomb].concat());
    let header_bomb = flood(&proxy, &first, |sent| {
        let named = [request(), vec![0xbe; 15_000]].concat();
        frame(HEADERS, END_HEADERS, 3 + 2 * sent, &named)
    });
    for (name, frames) in [
        ("rapid reset", rapid_reset.await),
        ("MadeYouReset", made_you_reset.await),
        ("continuation", continuation.await),
        ("continuation of nothing", continuation_of_nothing.await),
        ("empty data", empty_data.await),
        ("header bomb", header_bomb.await),
    ] {
        assert!(frames < FRAMES_MAX, "{name} goes on after {frames} frames");
    }

    let begun = Instant::now();
    assert_eq!(stranger.get("/healthz").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let grown = resident_kib(&mut proxy).saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB for attackers");
}

/// Strangers who send bodies and take no answers fill exactly these windows.
#[tokio::test]
async fn one_http2_connection_can_make_the_proxy_hold_a_quarter_of_a_mebibyte() {
    const INITIAL: u64 = 65_535;
    let proxy = Proxy::start().await;
    let mut stream = http2(&proxy).await;
    let (mut connection, mut each) = (INITIAL, INITIAL);
    let mut head = [0; 9];
    // Until our own settings are acknowledged: the windows were told before.
    loop {
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("small")];
        stream.read_exact(&mut payload).await.expect("its payload");
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        match (head[3], head[4]) {
            (SETTINGS, 0) => {
                for setting in payload.chunks_exact(6) {
                    if number(&setting[..2]) == INITIAL_WINDOW_SIZE {
                        each = number(&setting[2..]);
                    }
                }
                let ping = frame(PING, 0, 0, &[7; 8]);
                stream.write_all(&ping).await.expect("the proxy reads");
            }
            (WINDOW_UPDATE, _) => connection += number(&payload),
            (PING, 1) => break,
            _ => {}
        }
    }
    assert!(
        connection <= 256 * 1024 && each <= 256 * 1024,
        "{connection}, {each}"
    );
}

struct Thief {
    pair: Ed25519KeyPair,
    nonce: String,
}

impl Thief {
    fn request(&self, token: &Token) -> Value {
        let identity = STANDARD.encode(self.pair.public_key());
        let message = enroll_message(token.id(), &identity, &self.nonce);
        json!({
            "version": 1,
            "token": token.reveal().expose(),
            "identity": identity,
            "name": "thief",
            "nonce": self.nonce,
            "signature": STANDARD.encode(self.pair.sign(&message)),
        })
    }
}

#[tokio::test]
async fn of_many_machines_with_the_same_join_link_exactly_one_gets_in() {
    let proxy = Proxy::start().await;
    let token: Token = proxy.manage(&["node", "invite"])["token"]
        .as_str()
        .and_then(|token| token.parse().ok())
        .expect("a join token");
    let stranger = proxy.stranger();
    let post = async |path: &'static str, body: Value| {
        let body = body.to_string().into_bytes();
        stranger.post_raw(path, "application/json", body).await
    };
    let mut thieves = Vec::new();
    for _ in 0..30 {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).expect("randomness");
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a key");
        let nonce = post("/v1/nodes/nonce", json!({})).await.json()["nonce"].clone();
        let nonce = nonce.as_str().expect("a nonce").to_owned();
        thieves.push(Thief { pair, nonce });
    }

    let races = thieves
        .iter()
        .map(|thief| post("/v1/nodes/enroll", thief.request(&token)));
    let replies = join_all(races).await;

    let entered = replies.iter().filter(|reply| reply.status == 201).count();
    let late = replies
        .iter()
        .filter(|reply| reply.status == 403 && reply.code() == "join_token_used");
    assert_eq!((entered, late.count()), (1, thieves.len() - 1));
    let nodes = proxy.manage(&["node", "list"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn no_secret_and_no_prompt_is_written_anywhere() {
    let mut proxy = Proxy::generous().log("debug").start().await;
    let invited = proxy.manage(&["node", "invite"]);
    let den = Node::named("den").tier("fast").prepare();
    den.join(invited["link"].as_str().expect("a link"));
    let mut den = den;
    den.restart();
    let (_, key) = proxy.key("friend");
    let friend = proxy.stranger().with_bearer(&key);
    proxy.serves(&friend, &["fast"]).await;

    let prompt = "Nobody may ever read violoncello-4711 in a log.";
    assert_eq!(friend.ask("fast", prompt).await.status, 200);
    drop(friend.stream("fast", prompt).await.collect().await);
    let broken = format!("{{\"model\":\"fast\",\"messages\":[\"{prompt}\"]}}");
    let refused = friend
        .post_raw(
            "/v1/chat/completions",
            "application/json",
            broken.into_bytes(),
        )
        .await;
    assert_eq!(refused.status, 400);
    let forged = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.Zm9yZ2Vk";
    let wrong = proxy.stranger().with_bearer(forged);
    assert_eq!(wrong.get("/v1/models").await.status, 401);
    let hidden = proxy
        .stranger()
        .get(&format!("/v1/models?api_key={key}"))
        .await;
    assert_eq!(hidden.status, 401, "a key in a query is no credential");

    let secret = |token: &str| token.rsplit('_').next().expect("a secret").to_owned();
    let join = invited["token"].as_str().expect("a token");
    let metrics = proxy.admin("/metrics").await.body;
    let told = refused.body;
    for (place, text) in [
        ("the proxy's log", proxy.process().log()),
        ("the node's log", den.process().log()),
        ("the metrics", metrics),
        ("an error", told),
    ] {
        for unwanted in [
            &secret(&key),
            &secret(join),
            "violoncello",
            forged,
            "Bearer ",
        ] {
            assert!(!text.contains(unwanted), "{unwanted} is in {place}");
        }
        assert!(!text.is_empty(), "{place} is empty");
    }
}
