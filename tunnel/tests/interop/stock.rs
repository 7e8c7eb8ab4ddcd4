//! wireguard-go as a node: its device, its addresses, and what it is told over its configuration socket.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tunnel::{PresharedKey, PrivateKey, PublicKey};

use crate::stories::{HUB, Hub, NODE, PORT};
use crate::traffic::serve_host;

const DEVICE: &str = "wg0";
const SOCKET: &str = "/run/wireguard/wg0.sock";
const PATIENCE: Duration = Duration::from_secs(10);

/// A running wireguard-go. It ends with its owner's interest in it.
pub(crate) struct Stock {
    key: PrivateKey,
    child: Child,
}

impl Drop for Stock {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Stock {
    pub(crate) async fn start() -> Self {
        let child = Command::new("wireguard-go")
            .args(["-f", DEVICE])
            .env("WG_PROCESS_FOREGROUND", "1")
            .env("LOG_LEVEL", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("it is installed");
        let stock = Self {
            key: PrivateKey::generate(),
            child,
        };
        let give_up = Instant::now() + PATIENCE;
        while UnixStream::connect(SOCKET).await.is_err() {
            assert!(Instant::now() < give_up, "wireguard-go does not come up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (node, hub) = (format!("{NODE}/128"), format!("{HUB}/128"));
        ip(&["-6", "addr", "add", &node, "dev", DEVICE, "nodad"]);
        ip(&["link", "set", DEVICE, "mtu", "1280", "up"]);
        ip(&["-6", "route", "add", &hub, "dev", DEVICE]);
        let private = hex(&stock.key.to_bytes());
        stock
            .say(&format!("private_key={private}\nlisten_port=0\n"))
            .await;
        let own = SocketAddr::from((NODE, PORT));
        serve_host(TcpListener::bind(own).await.expect("its own address"));
        stock
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// Forgets whatever session there was, and begins one: it is told to send something every second.
    pub(crate) async fn dial(&self, hub: &Hub) {
        let endpoint = hub.tunnel.local_addr();
        let lines = format!("endpoint={endpoint}\npersistent_keepalive_interval=1\n");
        self.know(hub, &lines).await;
    }

    /// Forgets whatever session there was, and where the hub is.
    pub(crate) async fn wait_for_a_call(&self, hub: &Hub) {
        self.know(hub, "").await;
    }

    async fn know(&self, hub: &Hub, lines: &str) {
        let public = hex(&hub.tunnel.public_key().to_bytes());
        let psk = hub.psk.as_ref().map_or([0; 32], PresharedKey::to_bytes);
        let psk = hex(&psk);
        self.say(&format!(
            "replace_peers=true\npublic_key={public}\npreshared_key={psk}\n{lines}replace_allowed_ips=true\nallowed_ip={HUB}/128\n"
        ))
        .await;
    }

    async fn say(&self, lines: &str) {
        let mut socket = UnixStream::connect(SOCKET).await.expect("it listens");
        let words = format!("set=1\n{lines}\n");
        socket.write_all(words.as_bytes()).await.expect("it reads");
        let mut answer = [0; 64];
        let length = socket.read(&mut answer).await.expect("it answers");
        let said = String::from_utf8_lossy(&answer[..length]);
        assert!(said.starts_with("errno=0\n"), "{said} to {lines}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn ip(words: &[&str]) {
    let done = Command::new("ip")
        .args(words)
        .output()
        .expect("it is installed");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {words:?}: {said}");
}
