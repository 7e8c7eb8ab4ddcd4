//! Beyond the nodes of the tunnel: real servers that speak `OpenAI`'s API, one that scales from zero, and a machine that sleeps until a
//! neighbour wakes it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::node::{Node, model};
use tests::process::{Process, free_tcp_port, program};
use tests::proxy::{Builder, Proxy};
use tests::wait::until;

/// Settings of a server of our own that knows no proxy.
fn server_settings(folder: &Path) -> String {
    let path = folder.join("server.toml");
    let settings = format!(
        "[node]\nstate_dir = \"{}\"\n[[tiers]]\ntier = \"heavy\"\nmodel = '{}'\n",
        folder.join("state").display(),
        model("heavy").display()
    );
    fs::write(&path, settings).expect("settings can be written");
    path.display().to_string()
}

/// A server of our own that knows no proxy: it speaks `OpenAI`'s API on loopback, as llama-server does.
fn server(folder: &TempDir, port: u16) -> Process {
    let listen = format!("127.0.0.1:{port}");
    let settings = server_settings(folder.path());
    let mut command = Command::new(program("hearth-node"));
    command.args(["serve", "--config", &settings, "--listen", &listen]);
    Process::start("server", &mut command, folder.path())
}

fn remote(port: u16, more: &str) -> Builder {
    Proxy::generous().sections(&format!(
        "[[remote]]\nname = \"cellar\"\ntier = \"heavy\"\nurl = \"http://127.0.0.1:{port}/v1\"\nmodel = \"tiny-heavy\"\nmodel_id = \"big\"\nhealth_secs = 1\n{more}"
    ))
}

#[tokio::test]
async fn a_server_outside_the_tunnel_serves_a_tier() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let port = free_tcp_port();
    let mut running = server(&folder, port);
    let proxy = remote(port, "local = false\n").start().await;
    let _home = Node::named("laptop").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "heavy", "big"]).await;

    let whole = friend.ask("heavy", "Which tier are you?").await;
    assert_eq!(whole.text(), "I am the heavy tier.");
    assert_eq!(whole.routing()["node"], "cellar");
    assert_eq!(whole.json()["model"], "big");
    let streamed = friend.stream("big", "Which tier are you?").await;
    let streamed = streamed.collect().await;
    assert_eq!(streamed.text, "I am the heavy tier.");
    assert_eq!(streamed.routing()["node"], "cellar");
    assert!(streamed.usage()["completion_tokens"].as_u64() > Some(0));

    let nodes = proxy.manage(&["node", "list"]);
    let listed = nodes
        .as_array()
        .and_then(|nodes| nodes.iter().find(|node| node["id"] == "cellar"));
    assert_eq!(
        listed.map(|node| node["state"].clone()),
        Some(json!("outside"))
    );

    let made = proxy.manage(&["key", "create", "--name", "diary", "--local-only"]);
    assert_eq!(made["record"]["local_only"], true);
    let diary = proxy
        .stranger()
        .with_bearer(made["key"].as_str().expect("a key"));
    let stayed = diary.ask("heavy", "Which tier are you?").await;
    assert_eq!(stayed.text(), "I am the fast tier.");
    assert_eq!(stayed.routing()["fallback"], "heavy->fast");
    let profile = diary.get("/api/user").await;
    assert_eq!(profile.json()["local_only"], true);
    let nowhere = diary.ask("big", "Which tier are you?").await;
    assert!(
        nowhere.status == 503 || nowhere.routing()["node"] == "laptop",
        "{}",
        nowhere.body
    );
    proxy.manage(&["user", "set", "friend", "--local-only", "true"]);
    until(
        "the person's residency counts",
        Duration::from_secs(10),
        || async {
            let reply = friend.ask("heavy", "Which tier are you?").await;
            (reply.routing()["node"] == "laptop").then_some(())
        },
    )
    .await;
    proxy.manage(&["user", "set", "friend", "--local-only", "false"]);

    running.kill();
    let reply = friend.ask("heavy", "Which tier are you?").await;
    assert_eq!(reply.text(), "I am the fast tier.");
}

/// A server that scripts start and stop.
struct Scaled {
    folder: TempDir,
    port: u16,
}

impl Scaled {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder can be made"),
            port: free_tcp_port(),
        }
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("a script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may run");
        path.display().to_string()
    }

    /// A proxy in front of it. It is slow to rise: only when the test has read that the client was told why it waits.
    fn proxy(&self) -> Builder {
        let up = format!(
            "#!/bin/sh\n(until [ -e \"{}\" ]; do sleep 0.05; done\nexec \"{}\" serve --config \"{}\" --listen 127.0.0.1:{}) >/dev/null 2>&1 &\necho $! > \"{}\"\n",
            self.folder.path().join("may-rise").display(),
            program("hearth-node").display(),
            server_settings(self.folder.path()),
            self.port,
            self.pid().display()
        );
        let down = format!(
            "#!/bin/sh\n[ -e '{0}' ] || exit 0\nkill \"$(cat '{0}')\" && rm '{0}'\n",
            self.pid().display()
        );
        let (up, down) = (self.script("up", &up), self.script("down", &down));
        let burst = format!(
            "[remote.burst]\nstart_command = [\"{up}\"]\nstop_command = [\"{down}\"]\nidle_stop_secs = 10\ntakes_secs = 5\n"
        );
        remote(self.port, &burst)
            .routing("commit_after_ms = 100")
            .routing("keepalive_secs = 1")
    }

    fn rises(&self) {
        fs::write(self.folder.path().join("may-rise"), "").expect("it can be written");
    }

    /// There while it costs money.
    fn pid(&self) -> std::path::PathBuf {
        self.folder.path().join("pid")
    }

    async fn is_stopped(&self) {
        until("it is stopped again", Duration::from_mins(1), || async {
            (!self.pid().exists()).then_some(())
        })
        .await;
    }
}

async fn is_asleep(friend: &tests::client::Client, model: &str) {
    until("it is asleep", Duration::from_secs(20), || async {
        let list = friend.get("/v1/models").await.json();
        status_of(&list, model).filter(|state| state == "sleeping")
    })
    .await;
}

fn question(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Which tier are you?"}], "stream": true, "temperature": 0})
}

#[tokio::test]
async fn a_server_that_scales_from_zero_is_started_and_stopped() {
    let scaled = Scaled::new();
    let proxy = scaled.proxy().start().await;
    let friend = proxy.friend();
    is_asleep(&friend, "big").await;
    assert!(!scaled.pid().exists(), "nobody has wanted it yet");

    let mut stream = friend.stream_body(question("big")).await;
    stream.text_until(": keep-alive load ").await;
    scaled.rises();
    let said = stream.rest().await;
    assert!(said.contains("[DONE]"), "{said}");
    assert!(scaled.pid().exists(), "it runs");
    let paid = proxy.manage(&["status"]);
    assert_eq!(paid["bursts"][0]["name"], "cellar", "{paid}");
    assert_eq!(paid["bursts"][0]["stage"], "ready");

    scaled.is_stopped().await;
    until("nobody pays", Duration::from_secs(10), || async {
        let status = proxy.manage(&["status"]);
        status["bursts"].as_array()?.is_empty().then_some(())
    })
    .await;
    assert!(proxy.metric("hearth_wakes_total").await >= 2.0);
}

#[tokio::test]
async fn a_server_whose_proxy_was_killed_while_it_started_it_is_stopped_all_the_same() {
    let scaled = Scaled::new();
    let mut proxy = scaled.proxy().start().await;
    let friend = proxy.friend();
    is_asleep(&friend, "big").await;
    let mut stream = friend.stream_body(question("big")).await;
    stream.text_until(": keep-alive load ").await;
    until("it runs", Duration::from_secs(10), || async {
        scaled.pid().exists().then_some(())
    })
    .await;
    proxy.kill();
    drop(stream);
    proxy.restart().await;
    assert!(
        scaled.pid().exists(),
        "it costs money, and nobody asks for it"
    );
    let paid = proxy.manage(&["status"]);
    assert_eq!(paid["bursts"][0]["stage"], "starting", "{paid}");
    scaled.is_stopped().await;
}

fn status_of(list: &Value, id: &str) -> Option<String> {
    let data = list["data"].as_array()?;
    let found = data.iter().find(|entry| entry["id"] == id)?;
    Some(found["status"]["value"].as_str()?.to_owned())
}

/// A machine that may sleep, its neighbour, and the socket that the packets for it come to.
struct Attic {
    bed: tokio::net::UdpSocket,
    proxy: Proxy,
    workstation: Node,
    _neighbour: Node,
    friend: tests::client::Client,
}

impl Attic {
    /// `silent_after`: seconds without a report until a machine counts as gone.
    async fn new(
        silent_after: u32,
        heavy: impl FnOnce(tests::node::Builder) -> tests::node::Builder,
    ) -> Self {
        let bed = tokio::net::UdpSocket::bind("127.0.0.1:0")
            .await
            .expect("a socket can be bound");
        let port = bed.local_addr().expect("it is bound").port();
        let proxy = Proxy::generous()
            .tunnel("heartbeat_secs = 1")
            .tunnel(&format!("silent_after_secs = {silent_after}"))
            .routing("commit_after_ms = 100")
            .routing("keepalive_secs = 1")
            .start()
            .await;
        let workstation = Node::named("workstation").section(&format!(
            "[wake]\nmacs = [\"3c:7c:3f:12:34:56\"]\nbroadcast = \"127.0.0.1\"\nport = {port}\nsecure_on = \"01:02:03:04:05:06\"\ntakes_secs = 20\nsite = \"attic\""
        ));
        let workstation = heavy(workstation).join(&proxy);
        let neighbour = Node::named("nas")
            .section("[wake]\nwakes_others = true\nsite = \"attic\"")
            .tier("fast")
            .join(&proxy);
        let friend = proxy.friend();
        proxy.serves(&friend, &["fast", "heavy"]).await;
        Self {
            bed,
            proxy,
            workstation,
            _neighbour: neighbour,
            friend,
        }
    }

    /// A packet for the workstation comes.
    async fn is_called(&self) {
        let mut packet = [0; 200];
        let heard = tokio::time::timeout(Duration::from_secs(20), self.bed.recv(&mut packet));
        let length = heard.await.expect("a packet comes").expect("it is read");
        let mac = [0x3c, 0x7c, 0x3f, 0x12, 0x34, 0x56];
        let mut wanted = vec![0xff; 6];
        wanted.extend(mac.repeat(16));
        wanted.extend([1, 2, 3, 4, 5, 6]);
        assert_eq!(packet[..length], wanted);
    }

    /// Asks for its tier; it rises only when the client was told why it waits: a fast machine is up before that.
    async fn wakes_for_a_request(&mut self) {
        let waits = async {
            let mut stream = self.friend.stream_body(question("heavy")).await;
            stream.text_until(": keep-alive load ").await;
            stream
        };
        let (stream, ()) = tokio::join!(waits, self.is_called());
        self.workstation.restart();
        let said = stream.rest().await;
        assert!(said.contains("\"node\":\"workstation\""), "{said}");
        assert!(said.contains("[DONE]"), "{said}");
    }
}

#[tokio::test]
async fn a_machine_that_falls_asleep_at_work_is_woken_for_the_next_request() {
    let slow = tests::node::slow(200, 50);
    let mut attic = Attic::new(60, |node| node.tier_from("heavy", &slow, 1)).await;
    let mut stream = attic.friend.stream_body(question("heavy")).await;
    stream.text_until("\"content\"").await;
    attic.workstation.kill();
    let said = stream.rest().await;
    assert!(!said.contains("[DONE]") || said.contains("error"), "{said}");
    // Long before its reports are missed.
    is_asleep(&attic.friend, "heavy").await;
    attic.wakes_for_a_request().await;
}

#[tokio::test]
async fn a_machine_that_its_administrator_drained_is_not_woken_until_it_may_work_again() {
    let mut attic = Attic::new(2, |node| node.tier("heavy")).await;
    attic.proxy.manage(&["node", "drain", "workstation"]);
    attic.workstation.kill();
    until("it sleeps", Duration::from_secs(20), || async {
        let nodes = attic.proxy.manage(&["node", "list"]);
        let mut nodes = nodes.as_array()?.iter();
        let shown = nodes.find(|node| node["name"] == "workstation")?;
        (shown["now"]["asleep"] == true).then_some(())
    })
    .await;
    let elsewhere = attic.friend.ask("heavy", "Which tier are you?").await;
    assert_eq!(elsewhere.routing()["fallback"], "heavy->fast");
    let mut packet = [0; 200];
    assert!(attic.bed.try_recv(&mut packet).is_err(), "nobody wakes it");
    attic.proxy.manage(&["node", "undrain", "workstation"]);
    is_asleep(&attic.friend, "heavy").await;
    until("it gets work again", Duration::from_secs(10), || async {
        let route = attic
            .proxy
            .manage(&["route", "explain", "--tier", "heavy", "hello"]);
        let mut steps = route["route"]["steps"].as_array()?.iter();
        steps
            .any(|step| step["node"] == "workstation")
            .then_some(())
    })
    .await;
    attic.wakes_for_a_request().await;
}

#[tokio::test]
async fn a_machine_that_sleeps_is_woken_by_its_neighbour_for_the_request_that_needs_it() {
    let mut attic = Attic::new(2, |node| node.tier("heavy")).await;
    attic.workstation.kill();
    is_asleep(&attic.friend, "heavy").await;
    let (proxy, friend) = (&attic.proxy, &attic.friend);
    let asleep = proxy.manage(&["node", "list"]);
    let shown = asleep
        .as_array()
        .and_then(|nodes| nodes.iter().find(|node| node["name"] == "workstation"));
    assert_eq!(
        shown.map(|node| node["now"]["asleep"].clone()),
        Some(json!(true))
    );

    let quick = friend.complete(json!({
        "model": "heavy", "messages": [{"role": "user", "content": "Which tier are you?"}], "temperature": 0,
        "hearth": {"priority": "interactive"},
    }));
    let quick = quick.await;
    assert_eq!(quick.routing()["fallback"], "heavy->fast", "it cannot wait");

    attic.wakes_for_a_request().await;
}
