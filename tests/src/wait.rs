//! Waiting on facts, with a deadline and a name. Never sleeps to let things happen.

use std::future::Future;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One answer of an administrator's listener may take so long on a busy machine.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The body of a page on this machine, `None` unless it is there with 200. Bare HTTP: a look must not cost more than what is looked at, and a
/// client that knows TLS takes tens of milliseconds to be made.
pub async fn page(port: u16, path: &str) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: 127.0.0.1:{port}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let is_fine = head.split(' ').nth(1) == Some("200");
        is_fine.then(|| body.to_owned())
    };
    tokio::time::timeout(LOOK_MAX, asked).await.ok()?
}

/// Asks until the answer is there; panics with the name of the fact after the deadline.
pub async fn until<T, F, Fut>(fact: &str, deadline: Duration, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            started.elapsed() < deadline,
            "not within {deadline:?}: {fact}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
