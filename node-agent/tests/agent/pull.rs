//! `hearth-node pull` as a program: what it says while it downloads, when it is stopped, and when the disk takes no more.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

use crate::program::command;
use crate::support::{PATIENCE, model};

/// Serves one file by ranges; `sends`: bytes of each answer after which nothing more comes.
async fn serve(bytes: Vec<u8>, sends: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let bytes: &'static [u8] = bytes.leak();
    tokio::spawn(async move {
        while let Ok((stream, _from)) = listener.accept().await {
            tokio::spawn(answer(stream, bytes, sends));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, bytes: &'static [u8], sends: usize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_closed) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let last = bytes.len() - 1;
    let asked = head
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="));
    let (from, to) = asked
        .and_then(|asked| asked.split_once('-'))
        .map_or((0, last), |(from, to)| {
            (from.parse().unwrap_or(0), to.parse().unwrap_or(last))
        });
    let whole = head.starts_with("head ");
    let status = if asked.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{to}/{}\r\nconnection: close\r\n\r\n",
        to - from + 1,
        bytes.len()
    )
    .into_bytes();
    let body = &bytes[from..=to];
    let sent = body.len().min(sends);
    if !whole {
        answer.extend_from_slice(&body[..sent]);
    }
    if stream.write_all(&answer).await.is_err() || whole || sent == body.len() {
        return;
    }
    // It says nothing more until the other side leaves.
    let _left = stream.read_u8().await;
}

/// More than one piece, and so much that it does not fit below the limit.
fn bytes() -> Vec<u8> {
    std::fs::read(model("tiny-heavy-q8_0.gguf")).expect("there")
}

fn pull(address: SocketAddr, home: &Path) -> Command {
    let url = format!("http://{address}/m.gguf");
    let mut command = command(&["pull", &url, "--progress-every", "0.1"]);
    command
        .env("HF_HOME", home)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn a_download_tells_how_far_it_is_and_what_stopping_it_leaves() {
    let home = tempfile::tempdir().expect("folder");
    let address = serve(bytes(), 2 * 1024 * 1024).await;
    let mut child = pull(address, home.path()).spawn().expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let event = async {
        loop {
            let line = lines.next_line().await.expect("reads").expect("goes on");
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["done"].as_u64().is_some_and(|done| done > 0) {
                return event;
            }
        }
    };
    let event = timeout(PATIENCE, event).await.expect("in time");
    assert_eq!(event["event"], "download_progress");
    assert_eq!(event["total"], bytes().len());
    assert!(
        event["file"] == "m.gguf" && event["bytes_per_second"].is_u64(),
        "{event}"
    );

    let pid = child.id().expect("runs").to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(sent.expect("kill runs").success());
    let ended = timeout(PATIENCE, child.wait()).await.expect("in time");
    assert_eq!(ended.expect("ended").code(), Some(1));
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.expect("reads") {
        said.push_str(&line);
    }
    assert!(
        said.contains("the same command goes on from there"),
        "{said}"
    );

    let address = serve(bytes(), usize::MAX).await;
    let done = pull(address, home.path()).output().await.expect("runs");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[tokio::test]
async fn a_disk_that_takes_no_more_says_so_and_the_same_command_goes_on() {
    let home = tempfile::tempdir().expect("folder");
    let address = serve(bytes(), usize::MAX).await;
    // A limit on files ends a write as a full disk does, with an error from the system.
    let script = "ulimit -f 1024; exec \"$0\" pull \"$1\"";
    let url = format!("http://{address}/m.gguf");
    let limited = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_hearth-node"), &url])
        .env("HF_HOME", home.path())
        .output();
    let limited = timeout(PATIENCE, limited)
        .await
        .expect("ends")
        .expect("runs");
    let said = String::from_utf8_lossy(&limited.stderr).into_owned();
    assert_eq!(
        limited.status.code(),
        Some(1),
        "an error, not a signal: {said}"
    );
    assert!(said.contains("ulimit -f"), "{said}");
    let done = pull(address, home.path()).output().await.expect("runs");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let path = String::from_utf8(done.stdout).expect("text");
    assert_eq!(std::fs::read(path.trim()).expect("reads"), bytes());
}
