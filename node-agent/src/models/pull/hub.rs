//! A model hub on loopback that misbehaves as told: cuts, lies about ranges, sends other bytes, stalls, redirects, asks to wait. Tests only.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How downloads go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Mood {
    #[default]
    Fair,
    /// The first answers for each range break in the middle.
    Cuts,
    /// 200 with everything, whatever was asked for.
    IgnoresRanges,
    /// 206, but from another place than it says; the header tells.
    WrongPlace,
    /// Other bytes of the same length.
    OtherBytes,
    /// The first answer says nothing after its head.
    Stalls,
    /// The first answer is 429 with Retry-After.
    Busy,
    /// To another host, without its token.
    Redirects,
    /// 403.
    Gated,
    /// Always breaks after this many bytes and then says 503.
    Dies,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<(usize, usize)>,
    pub(super) token: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) mood: Mood,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) asked: Vec<Asked>,
    failed: BTreeMap<String, u32>,
    elsewhere: Option<SocketAddr>,
}

/// The hub; it ends with the test's runtime.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    pub(super) address: SocketAddr,
    pub(super) state: Arc<Mutex<State>>,
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes).as_ref())
}

impl Hub {
    pub(super) async fn start(mood: Mood, files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let other = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let state = State {
            mood,
            files: files
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), bytes.clone()))
                .collect(),
            elsewhere: Some(other.local_addr().expect("bound")),
            ..State::default()
        };
        let hub = Self {
            address: listener.local_addr().expect("bound"),
            state: Arc::new(Mutex::new(state)),
        };
        for listener in [listener, other] {
            let hub = hub.clone();
            tokio::spawn(async move {
                while let Ok((stream, _peer)) = listener.accept().await {
                    let hub = hub.clone();
                    tokio::spawn(async move { hub.serve(stream).await });
                }
            });
        }
        hub
    }

    pub(super) fn set(&self, mood: Mood) {
        self.state.lock().expect("works").mood = mood;
    }

    pub(super) fn downloads(&self) -> usize {
        let state = self.state.lock().expect("works");
        state
            .asked
            .iter()
            .filter(|asked| asked.path.contains("/resolve/"))
            .count()
    }

    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut asked = Asked {
            path: String::new(),
            range: None,
            token: None,
        };
        let mut line = String::new();
        let mut head = false;
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let text = line.trim_end();
            if asked.path.is_empty() {
                head = text.starts_with("HEAD");
                text.split(' ')
                    .nth(1)
                    .unwrap_or_default()
                    .clone_into(&mut asked.path);
            }
            let lower = text.to_ascii_lowercase();
            if let Some(range) = lower.strip_prefix("range: bytes=") {
                let (from, to) = range.split_once('-').unwrap_or_default();
                asked.range = Some((from.parse().unwrap_or(0), to.parse().unwrap_or(usize::MAX)));
            }
            if lower.starts_with("authorization: ") {
                asked.token = text.split_once(": ").map(|(_name, value)| value.to_owned());
            }
            if text.is_empty() {
                break;
            }
        }
        let answer = self.answer(&asked);
        self.state.lock().expect("works").asked.push(asked);
        stream.write_all(answer.head.as_bytes()).await?;
        if answer.hang {
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        if !head {
            stream.write_all(&answer.body).await?;
        }
        stream.shutdown().await
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let mut state = self.state.lock().expect("works");
        let path = asked.path.split('?').next().unwrap_or_default();
        if path.ends_with("/refs") {
            let refs = serde_json::json!({"branches": [{"name": "main", "targetCommit": COMMIT}]});
            return Answer::whole(refs.to_string().into_bytes());
        }
        if path.contains("/tree/") {
            let entry = |(name, bytes): (&String, &Vec<u8>)| serde_json::json!({"type": "file", "path": name, "size": bytes.len(), "lfs": {"oid": sha256(bytes), "size": bytes.len()}});
            let tree: Vec<_> = state.files.iter().map(entry).collect();
            return Answer::whole(serde_json::Value::from(tree).to_string().into_bytes());
        }
        let name = path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .replace("%20", " ");
        let Some(bytes) = state.files.get(&name).cloned() else {
            return Answer::status("404 Not Found", "");
        };
        let tries = state
            .failed
            .entry(format!("{name}{:?}", asked.range.map(|(_from, to)| to)))
            .or_default();
        *tries += 1;
        let first = *tries == 1;
        let elsewhere = state.elsewhere;
        misbehave(state.mood, first, asked, bytes, elsewhere)
    }
}

fn misbehave(
    mood: Mood,
    first: bool,
    asked: &Asked,
    mut bytes: Vec<u8>,
    elsewhere: Option<SocketAddr>,
) -> Answer {
    let range = asked.range;
    match mood {
        Mood::Busy if first => {
            return Answer::status("429 Too Many Requests", "Retry-After: 0\r\n");
        }
        Mood::Gated => return Answer::status("403 Forbidden", ""),
        Mood::Redirects if !asked.path.starts_with("/cdn") => {
            let place = elsewhere
                .map(|address| format!("Location: http://{address}/cdn{}\r\n", asked.path));
            return Answer::status("302 Found", &place.unwrap_or_default());
        }
        Mood::IgnoresRanges => return Answer::whole(bytes),
        Mood::OtherBytes => bytes.iter_mut().for_each(|byte| *byte = !*byte),
        Mood::Fair
        | Mood::Cuts
        | Mood::WrongPlace
        | Mood::Stalls
        | Mood::Busy
        | Mood::Redirects
        | Mood::Dies => {}
    }
    let Some((from, to)) = range else {
        return Answer::whole(bytes).cut(mood == Mood::Cuts && first);
    };
    let end = to.saturating_add(1).min(bytes.len());
    let shown = if mood == Mood::WrongPlace {
        from + 1
    } else {
        from
    };
    let content_range = format!(
        "Content-Range: bytes {shown}-{}/{}\r\n",
        end.saturating_sub(1),
        bytes.len()
    );
    let part = bytes.get(from..end).unwrap_or_default().to_vec();
    let mut answer = Answer::of("206 Partial Content", &content_range, part);
    answer.hang = mood == Mood::Stalls && first;
    if mood == Mood::Dies {
        if !first {
            return Answer::status("503 Service Unavailable", "");
        }
        answer.body.truncate(answer.body.len().min(100_000));
    }
    answer.cut(mood == Mood::Cuts && first)
}

struct Answer {
    head: String,
    body: Vec<u8>,
    hang: bool,
}

impl Answer {
    fn of(status: &str, headers: &str, body: Vec<u8>) -> Self {
        Self {
            head: format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
                body.len()
            ),
            body,
            hang: false,
        }
    }

    fn whole(body: Vec<u8>) -> Self {
        Self::of("200 OK", "", body)
    }

    fn status(status: &str, headers: &str) -> Self {
        Self::of(status, headers, Vec::new())
    }

    fn cut(mut self, yes: bool) -> Self {
        if yes {
            self.body.truncate(self.body.len() / 2);
        }
        self
    }
}
