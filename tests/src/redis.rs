//! A real redis-server on a port of its own, which a story may kill and bring back.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::process::{Process, free_tcp_port};
use crate::wait::until;

/// A redis-server with its own folder.
pub struct Redis {
    // Dropped first: a failing story shows the log before the folder goes.
    process: Option<Process>,
    folder: TempDir,
    port: u16,
}

impl Redis {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut redis = Self {
            folder,
            port: free_tcp_port(),
            process: None,
        };
        std::fs::write(redis.key_file(), format!("{}\n", "5a".repeat(32)))
            .expect("a key file can be written");
        redis.restart().await;
        redis
    }

    /// The key that every proxy of this Redis shares.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("store.key")
    }

    /// Starts it again on the same port, with what it had saved.
    pub async fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        command
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
            ])
            .args(["--appendfsync", "always", "--dir"])
            .arg(self.folder.path());
        self.process = Some(Process::start("redis", &mut command, self.folder.path()));
        let port = self.port;
        until(
            "redis-server answers",
            Duration::from_secs(10),
            || async move { TcpStream::connect(("127.0.0.1", port)).await.ok() },
        )
        .await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Gives the server an inline command and returns the first line of its answer.
    pub async fn tell(&self, command: &str) -> String {
        let talk = async {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let mut stream = BufReader::new(stream);
            stream
                .write_all(format!("{command}\r\n").as_bytes())
                .await?;
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            Ok::<_, std::io::Error>(line)
        };
        let line = tokio::time::timeout(Duration::from_secs(5), talk)
            .await
            .unwrap_or_else(|_late| panic!("redis-server says nothing to {command}"))
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(!line.starts_with('-'), "{command}: {line}");
        line.trim_end().to_owned()
    }

    /// As in `[store] url`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}
