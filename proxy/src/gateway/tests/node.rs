//! A node on loopback that does what it is told, one act a request, and remembers what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nserver-timing: queue;dur=7\r\ntransfer-encoding: chunked\r\n\r\n";

/// What the node does with one request.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// A whole answer.
    Reply(u16, Value),
    /// A stream of these events and then the end.
    Stream(Vec<String>),
    /// These events after a pause each, and then the end.
    Slowly(Duration, Vec<String>),
    /// These events, then the connection breaks.
    Break(Vec<String>),
    /// These events after a pause each, then nothing more until the proxy leaves.
    Stall(Duration, Vec<String>),
    /// These events, then nothing more until the proxy leaves.
    Hang(Vec<String>),
    /// The connection breaks before any answer.
    Die,
    /// A whole answer, from where the request says that it was cut; the connection breaks after so many bytes, if at all.
    Twin(Arc<Script>, Option<usize>),
    /// These bytes, whatever they are, and then the other bytes again and again until the proxy leaves.
    Raw(Vec<u8>, Vec<u8>),
}

/// An answer that any node can begin and any other go on with.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// The first event, which only the node that begins says.
    pub(super) role: String,
    /// Events, and the tokens that each is made of.
    pub(super) pieces: Vec<(Vec<i32>, String)>,
    /// What follows the last token.
    pub(super) tail: Vec<String>,
}

impl Script {
    /// How many bytes of a whole answer end with so many pieces.
    pub(super) fn ends_after(&self, pieces: usize) -> usize {
        let begun = Self {
            pieces: self.pieces[..pieces].to_vec(),
            tail: Vec::new(),
            role: self.role.clone(),
        };
        let nobody = Seen {
            head: String::new(),
            body: Value::Null,
        };
        begun.bytes(&nobody).len() - LAST_CHUNK.len()
    }

    /// The bytes of a node that is asked for all of it, or for what follows the tokens told.
    fn bytes(&self, seen: &Seen) -> Vec<u8> {
        let told = seen
            .body
            .pointer("/_resume/tokens")
            .and_then(Value::as_array);
        let mut skip = told.map_or(0, Vec::len);
        let mut events = Vec::new();
        if told.is_none() {
            events.push(self.role.clone());
        }
        for (tokens, event) in &self.pieces {
            if skip >= tokens.len() {
                skip -= tokens.len();
                continue;
            }
            assert_eq!(skip, 0, "told ends within a piece");
            let ids: Vec<String> = tokens.iter().map(ToString::to_string).collect();
            events.push(format!(": tokens {}\ndata: {event}", ids.join(",")));
        }
        events.extend(self.tail.iter().cloned());
        let mut bytes = Vec::new();
        for event in events {
            let event = if event.starts_with(':') {
                format!("{event}\n\n")
            } else {
                format!("data: {event}\n\n")
            };
            bytes.extend(format!("{:x}\r\n{event}\r\n", event.len()).into_bytes());
        }
        bytes.extend(LAST_CHUNK);
        bytes
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: Value,
}

impl Seen {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// The node.
pub(super) struct Node {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: watch::Receiver<usize>,
    left: watch::Receiver<usize>,
}

impl Node {
    pub(super) async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (connected, connections) = watch::channel(0);
        let (leaving, left) = watch::channel(0);
        let stage = Arc::new(Stage {
            acts: Mutex::new(acts.into()),
            seen: Arc::clone(&seen),
            leaving,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connected.send_modify(|count| *count += 1);
                tokio::spawn(Arc::clone(&stage).play(stream));
            }
        });
        Self {
            address,
            seen,
            connections,
            left,
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Waits until somebody has asked something.
    pub(super) async fn was_asked(&self) {
        let asked = async {
            while self.seen().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(5), asked).await;
        waited.expect("nobody asks");
    }

    /// Waits until the proxy has left an answer in the middle.
    pub(super) async fn was_left(&self) {
        let mut left = self.left.clone();
        let waited =
            tokio::time::timeout(Duration::from_secs(5), left.wait_for(|count| *count > 0)).await;
        waited.expect("the proxy does not leave").unwrap();
    }
}

struct Stage {
    acts: Mutex<VecDeque<Act>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    leaving: watch::Sender<usize>,
}

impl Stage {
    async fn play(self: Arc<Self>, mut stream: TcpStream) {
        while let Some(seen) = read(&mut stream).await {
            self.seen.lock().unwrap().push(seen.clone());
            let act = {
                let mut acts = self.acts.lock().unwrap();
                let next = acts
                    .pop_front()
                    .expect("the node was asked more often than it has acts");
                if acts.is_empty() {
                    acts.push_back(next.clone());
                }
                next
            };
            if !self.perform(act, &seen, &mut stream).await {
                return;
            }
        }
    }

    /// Whether the connection can carry another request.
    async fn perform(&self, act: Act, seen: &Seen, stream: &mut TcpStream) -> bool {
        let (pause, events, end) = match act {
            Act::Reply(status, body) => {
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nserver: secret\r\n\r\n",
                    body.len()
                );
                return stream
                    .write_all(format!("{head}{body}").as_bytes())
                    .await
                    .is_ok();
            }
            Act::Die => return false,
            Act::Twin(script, cut) => {
                let bytes = script.bytes(seen);
                let end = cut.unwrap_or(bytes.len()).min(bytes.len());
                let sent = stream.write_all(STREAM_HEAD.as_bytes()).await.is_ok()
                    && stream.write_all(&bytes[..end]).await.is_ok();
                return sent && cut.is_none();
            }
            Act::Raw(first, again) => {
                let mut open = stream.write_all(&first).await.is_ok();
                while open && !again.is_empty() {
                    open = stream.write_all(&again).await.is_ok();
                }
                return open;
            }
            Act::Stream(events) => (Duration::ZERO, events, End::Clean),
            Act::Slowly(pause, events) => (pause, events, End::Clean),
            Act::Break(events) => (Duration::ZERO, events, End::Broken),
            Act::Hang(events) => (Duration::ZERO, events, End::Never),
            Act::Stall(pause, events) => (pause, events, End::Never),
        };
        stream.write_all(STREAM_HEAD.as_bytes()).await.unwrap();
        for event in events {
            tokio::time::sleep(pause).await;
            // An event that brings its own comments is written as it is.
            let event = if event.starts_with(':') {
                format!("{event}\n\n")
            } else {
                format!("data: {event}\n\n")
            };
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                self.leaving.send_modify(|count| *count += 1);
                return false;
            }
        }
        match end {
            End::Clean => stream.write_all(b"0\r\n\r\n").await.is_ok(),
            End::Broken => false,
            End::Never => {
                let mut byte = [0];
                let _closed = stream.read(&mut byte).await;
                self.leaving.send_modify(|count| *count += 1);
                false
            }
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Clean,
    Broken,
    Never,
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let seen = Seen {
        head,
        body: Value::Null,
    };
    let length: usize = seen
        .header("content-length")
        .unwrap_or("0")
        .parse()
        .unwrap();
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let body = match &bytes[head_end..head_end + length] {
        [] => Value::Null,
        body => serde_json::from_slice(body).unwrap(),
    };
    Some(Seen { body, ..seen })
}

/// A chunk with a piece of text.
pub(super) fn piece(text: &str) -> String {
    chunk(&json!({"content": text}), None)
}

/// The first chunk of a stream.
pub(super) fn role() -> String {
    chunk(&json!({"role": "assistant", "content": ""}), None)
}

/// The chunk with the `finish_reason`.
pub(super) fn finish() -> String {
    chunk(&json!({}), Some("stop"))
}

fn chunk(delta: &Value, finish_reason: Option<&str>) -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": null,
    })
    .to_string()
}

/// The chunk with the usage.
pub(super) fn usage() -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        "timings": {"predicted_per_second": 50.0},
    })
    .to_string()
}

/// A whole stream that says `text`.
pub(super) fn says(text: &str) -> Vec<String> {
    vec![role(), piece(text), finish(), usage(), "[DONE]".to_owned()]
}

/// A whole answer that says `text`.
pub(super) fn answer(text: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    })
}

/// An error as a node words it.
pub(super) fn error(kind: &str, code: &str) -> Value {
    json!({"error": {"message": format!("node says {code}"), "type": kind, "param": null, "code": code}})
}
