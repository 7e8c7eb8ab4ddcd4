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

#[tokio::test]
async fn a_server_that_scales_from_zero_is_started_and_stopped() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let port = free_tcp_port();
    let pid = folder.path().join("pid");
    let script = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a script can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may run");
        path.display().to_string()
    };
    // It is slow to rise: only when the test has read that the client was told why it waits.
    let may_rise = folder.path().join("may-rise");
    let up = script(
        "up",
        format!(
            "#!/bin/sh\n(until [ -e \"{}\" ]; do sleep 0.05; done\nexec \"{}\" serve --config \"{}\" --listen 127.0.0.1:{port}) >/dev/null 2>&1 &\necho $! > \"{}\"\n",
            may_rise.display(),
            program("hearth-node").display(),
            server_settings(folder.path()),
            pid.display()
        ),
    );
    let down = script(
        "down",
        format!(
            "#!/bin/sh\nkill \"$(cat '{0}')\" && rm '{0}'\n",
            pid.display()
        ),
    );
    let burst = format!(
        "[remote.burst]\nstart_command = [\"{up}\"]\nstop_command = [\"{down}\"]\nidle_stop_secs = 10\ntakes_secs = 5\n"
    );
    let proxy = remote(port, &burst)
        .routing("commit_after_ms = 100")
        .routing("keepalive_secs = 1")
        .start()
        .await;
    let friend = proxy.friend();
    until("it is asleep", Duration::from_secs(20), || async {
        let list = friend.get("/v1/models").await.json();
        status_of(&list, "big").filter(|state| state == "sleeping")
    })
    .await;
    assert!(!pid.exists(), "nobody has wanted it yet");

    let body = json!({"model": "big", "messages": [{"role": "user", "content": "Which tier are you?"}], "stream": true, "temperature": 0});
    let mut stream = friend.stream_body(body).await;
    stream.text_until(": keep-alive load ").await;
    fs::write(&may_rise, "").expect("it can be written");
    let said = stream.rest().await;
    assert!(said.contains("[DONE]"), "{said}");
    assert!(pid.exists(), "it runs");

    until("it is stopped again", Duration::from_secs(40), || async {
        (!pid.exists()).then_some(())
    })
    .await;
    assert!(proxy.metric("hearth_wakes_total").await >= 2.0);
}

fn status_of(list: &Value, id: &str) -> Option<String> {
    let data = list["data"].as_array()?;
    let found = data.iter().find(|entry| entry["id"] == id)?;
    Some(found["status"]["value"].as_str()?.to_owned())
}

#[tokio::test]
async fn a_machine_that_sleeps_is_woken_by_its_neighbour_for_the_request_that_needs_it() {
    let bed = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("a socket can be bound");
    let port = bed.local_addr().expect("it is bound").port();
    let proxy = Proxy::generous()
        .tunnel("heartbeat_secs = 1")
        .tunnel("silent_after_secs = 2")
        .routing("commit_after_ms = 100")
        .routing("keepalive_secs = 1")
        .start()
        .await;
    let mut workstation = Node::named("workstation")
        .section(&format!(
            "[wake]\nmacs = [\"3c:7c:3f:12:34:56\"]\nbroadcast = \"127.0.0.1\"\nport = {port}\nsecure_on = \"01:02:03:04:05:06\"\ntakes_secs = 20\nsite = \"attic\""
        ))
        .tier("heavy")
        .join(&proxy);
    let _neighbour = Node::named("nas")
        .section("[wake]\nwakes_others = true\nsite = \"attic\"")
        .tier("fast")
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "heavy"]).await;

    workstation.kill();
    until(
        "it is asleep, not gone",
        Duration::from_secs(20),
        || async {
            let list = friend.get("/v1/models").await.json();
            status_of(&list, "heavy").filter(|state| state == "sleeping")
        },
    )
    .await;
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

    let body = json!({"model": "heavy", "messages": [{"role": "user", "content": "Which tier are you?"}], "stream": true, "temperature": 0});
    let waits = async {
        let mut stream = friend.stream_body(body).await;
        stream.text_until(": keep-alive load ").await;
        stream
    };
    let is_called = async {
        let mut packet = [0; 200];
        let heard = tokio::time::timeout(Duration::from_secs(20), bed.recv(&mut packet));
        let length = heard.await.expect("a packet comes").expect("it is read");
        let mac = [0x3c, 0x7c, 0x3f, 0x12, 0x34, 0x56];
        let mut wanted = vec![0xff; 6];
        wanted.extend(mac.repeat(16));
        wanted.extend([1, 2, 3, 4, 5, 6]);
        assert_eq!(packet[..length], wanted);
    };
    // It rises only when the client was told why it waits: a fast machine is up before that.
    let (stream, ()) = tokio::join!(waits, is_called);
    workstation.restart();
    let said = stream.rest().await;
    assert!(said.contains("\"node\":\"workstation\""), "{said}");
    assert!(said.contains("[DONE]"), "{said}");
}
