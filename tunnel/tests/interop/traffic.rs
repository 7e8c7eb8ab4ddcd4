//! Bytes and their hash, through whatever lies between.

use std::net::SocketAddr;
use std::time::Duration;

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tunnel::{Listener, Tunnel};

use crate::stories::{HUB, NODE, PORT};

const PATIENCE: Duration = Duration::from_secs(20);
const BLOCK: usize = 64 * 1024;

/// Who dials. A node without a tunnel of ours is the system's own sockets.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) hub: Tunnel,
    pub(crate) node: Option<Tunnel>,
}

/// Sends so many bytes from the hub to the node, or the other way, and compares the hashes of both ends.
pub(crate) async fn carry(ends: Ends, is_down: bool, bytes: u64) {
    if is_down {
        let stream = ends.hub.connect(NODE, PORT, PATIENCE).await;
        send(stream.expect("the node's port"), bytes).await;
        return;
    }
    if let Some(node) = ends.node {
        let stream = node.connect(HUB, PORT, PATIENCE).await;
        send(stream.expect("the hub's port"), bytes).await;
        return;
    }
    let to = SocketAddr::from((HUB, PORT));
    let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await;
    let stream = stream.expect("no silence").expect("the hub's port");
    send(stream, bytes).await;
}

/// Blocks that differ everywhere.
struct Blocks(u64);

impl Blocks {
    fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

async fn send(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: u64) {
    let mut blocks = Blocks(0x9e37_79b9_7f4a_7c15);
    let mut block = vec![0; BLOCK];
    let mut hash = Context::new(&SHA256);
    let mut left = usize::try_from(bytes).expect("it fits");
    while left > 0 {
        blocks.fill(&mut block);
        let length = left.min(BLOCK);
        hash.update(&block[..length]);
        stream.write_all(&block[..length]).await.expect("room");
        left -= length;
    }
    stream.shutdown().await.expect("an end");
    let mut theirs = Vec::new();
    stream.read_to_end(&mut theirs).await.expect("their hash");
    assert_eq!(theirs.len(), SHA256_OUTPUT_LEN, "a hash");
    assert!(theirs == hash.finish().as_ref(), "bytes differ");
}

/// Reads to the end and answers with the hash of it.
async fn receive(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut hash = Context::new(&SHA256);
    loop {
        match stream.read(&mut block).await? {
            0 => break,
            length => hash.update(&block[..length]),
        }
    }
    stream.write_all(hash.finish().as_ref()).await?;
    stream.shutdown().await
}

/// Serves a port inside a tunnel of ours.
pub(crate) fn serve(listener: Listener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(receive(stream));
        }
    });
}

/// Serves a port of the system's.
pub(crate) fn serve_host(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(receive(stream));
        }
    });
}
