//! A machine without an agent: a stock WireGuard configuration, any server behind it, looked at by the proxy.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use tests::node::model;
use tests::process::{Process, free_tcp_port, program};
use tests::proxy::Proxy;
use tests::wait::until;
use tokio::net::TcpStream;
use tunnel::{Peer, PrivateKey, Settings, Tunnel};

/// What `wg-quick` would read.
struct Stock {
    text: String,
}

impl Stock {
    fn word(&self, name: &str) -> &str {
        let start = format!("{name} = ");
        let found = self.text.lines().find_map(|line| line.strip_prefix(&start));
        found.unwrap_or_else(|| panic!("no {name} in {}", self.text))
    }

    fn address(&self, name: &str) -> Ipv6Addr {
        let (address, bits) = self
            .word(name)
            .split_once('/')
            .expect("an address with its bits");
        assert_eq!(bits, "128");
        address.parse().expect("an address")
    }

    /// A WireGuard peer as these lines describe it, with a server on loopback behind its port.
    async fn up(&self, port: u16, server: u16) -> Tunnel {
        let bind: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let key: [u8; 32] = tunnel_key(self.word("PrivateKey"));
        let settings = Settings::new(bind, PrivateKey::from_bytes(key), self.address("Address"));
        let tunnel = Tunnel::start(settings).await.expect("it starts");
        let secs = self.word("PersistentKeepalive").parse().expect("seconds");
        let hub = Peer {
            public_key: self.word("PublicKey").parse().expect("a key"),
            preshared_key: None,
            address: self.address("AllowedIPs"),
            endpoint: self.word("Endpoint").parse().ok(),
            keepalive: Some(Duration::from_secs(secs)),
            initiates: true,
        };
        tunnel.set_peer(hub).await.expect("it is a peer");
        let listener = tunnel.listen(port).await.expect("the port is free");
        tokio::spawn(async move {
            while let Ok((mut inside, _from)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut outside = TcpStream::connect(("127.0.0.1", server)).await?;
                    tokio::io::copy_bidirectional(&mut inside, &mut outside).await
                });
            }
        });
        tunnel
    }
}

fn tunnel_key(text: &str) -> [u8; 32] {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    bytes.expect("base64").try_into().expect("32 bytes")
}

/// A stock configuration by a fresh link.
async fn configured(proxy: &Proxy, port: u16) -> Stock {
    let link = proxy.invite();
    let port = port.to_string();
    let said = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(program("hearth-node"));
        command.args(["config", "--wg-quick", &link, "--tier", "heavy"]);
        command.args(["--port", &port, "--name", "attic"]);
        command.output().expect("it runs")
    });
    let said = said.await.expect("it ends");
    let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{complaints}");
    Stock {
        text: String::from_utf8(said.stdout).expect("it is text"),
    }
}

#[tokio::test]
async fn any_server_behind_a_stock_wireguard_is_a_node_until_it_is_revoked() {
    let mut proxy = Proxy::generous().start().await;
    let stock = configured(&proxy, 11_434).await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let port = free_tcp_port();
    let settings = folder.path().join("server.toml");
    let text = format!(
        "[node]\nstate_dir = \"{}\"\n[[tiers]]\ntier = \"heavy\"\nmodel = '{}'\n",
        folder.path().join("state").display(),
        model("heavy").display()
    );
    std::fs::write(&settings, text).expect("settings can be written");
    let listen = format!("127.0.0.1:{port}");
    let mut command = Command::new(program("hearth-node"));
    command
        .args(["serve", "--listen", &listen, "--config"])
        .arg(&settings);
    let _server = Process::start("server", &mut command, folder.path());
    let _peer = stock.up(11_434, port).await;
    let friend = proxy.friend();
    proxy.serves(&friend, &["heavy"]).await;

    let reply = friend.ask("heavy", "Which tier are you?").await;
    assert_eq!(reply.text(), "I am the heavy tier.");
    assert_eq!(reply.routing()["node"], "attic");
    let nodes = proxy.manage(&["node", "list"]);
    let shown = nodes.as_array().expect("a list");
    assert_eq!(shown.len(), 1, "{nodes}");
    assert_eq!(shown[0]["agent_version"], "unmanaged");
    assert_eq!(shown[0]["state"], "approved");
    assert_eq!(shown[0]["tunnel"]["back_end"], "stock", "{nodes}");
    assert_eq!(shown[0]["tunnel"]["carrier"], "udp", "{nodes}");
    assert_eq!(shown[0]["now"]["outside"], false, "{nodes}");
    let id = shown[0]["id"].as_str().expect("an id");
    assert!(
        stock.text.contains(&format!("node revoke {id}")),
        "how to end it: {}",
        stock.text
    );

    // The hub knows its key and where it was: nobody at the machine does anything.
    proxy.remembers_its_nodes().await;
    proxy.restart().await;
    proxy.serves(&friend, &["heavy"]).await;
    let streamed = friend
        .stream("heavy", "Which tier are you?")
        .await
        .collect()
        .await;
    assert_eq!(streamed.text, "I am the heavy tier.");

    proxy.manage(&["node", "revoke", "attic"]);
    until("it is gone", Duration::from_secs(10), || async {
        let gone = friend.complete(serde_json::json!({
            "model": "heavy", "messages": [{"role": "user", "content": "Which tier are you?"}],
        }));
        (gone.await.status == 503).then_some(())
    })
    .await;
}
