//! The program itself: commands, exit codes, signals.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::fake_proxy::{FakeProxy, NODE};
use crate::support::{PATIENCE, model};

pub(crate) fn write_settings(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("node.toml");
    let text = format!(
        "[node]\nname = \"den\"\nstate_dir = \"{}\"\nbind = \"127.0.0.1:0\"\n\n[[tiers]]\ntier = \"fast\"\nmodel = \"{}\"\nmodel_id = \"tiny-fast\"\nthreads = 1\ngpu_layers = 0\n",
        folder.join("state").display(),
        model("tiny-fast-q8_0.gguf").display(),
    );
    std::fs::write(&path, text).expect("writes");
    path
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-node"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for (name, _value) in std::env::vars().filter(|(name, _value)| name.starts_with("HEARTH_")) {
        command.env_remove(name);
    }
    command
}

/// Exit code and what was said.
pub(crate) async fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = timeout(PATIENCE, command(arguments).output())
        .await
        .expect("ends")
        .expect("starts");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

async fn terminate(child: &mut Child) -> Option<i32> {
    let pid = child.id().expect("runs").to_string();
    let sent = Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .await
        .expect("kill runs");
    assert!(sent.success());
    timeout(PATIENCE, child.wait())
        .await
        .expect("ends in time")
        .expect("ended")
        .code()
}

#[tokio::test]
async fn join_run_status_and_a_signal() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let settings = write_settings(folder.path());
    let settings = settings.to_str().expect("text");
    let (code, said) = run(&["status", "--config", settings]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no agent answers"), "{said}");
    let (code, said) = run(&["run", "--config", settings]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("has not joined a proxy yet"), "{said}");

    let (code, said) = run(&["join", &proxy.link(), "--config", settings]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(NODE), "{said}");
    assert!(
        !said.contains("hearth_nj_"),
        "the token is not repeated: {said}"
    );

    let mut agent = command(&["run", "--config", settings]);
    let mut agent = agent
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let ready = |told: &crate::fake_proxy::Told| {
        let ready = |report: &config::wire::node::Report| report.tiers[0].model.is_some();
        told.reports.last().is_some_and(ready)
    };
    proxy.wait_for("the tier is ready", ready).await;
    let (code, said) = run(&["status", "--config", settings, "--output", "json"]).await;
    assert_eq!(code, Some(0), "{said}");
    let status: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(status["standing"], json!("connected"));
    let (code, said) = run(&["status", "--config", settings]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("fast     ready tiny-fast"), "{said}");
    let (code, said) = run(&["run", "--config", settings]).await;
    assert_eq!(code, Some(1), "a second agent with the same state: {said}");

    assert_eq!(terminate(&mut agent).await, Some(0));
    assert!(
        proxy
            .told()
            .reports
            .last()
            .is_some_and(|report| report.draining)
    );
}

#[tokio::test]
async fn wrong_settings_are_told_all_at_once_with_code_64() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("node.toml");
    std::fs::write(&path, "[node]\nnane = \"x\"\n[[tiers]]\ntier = \"huge\"\n").expect("writes");
    let path = path.to_str().expect("text");
    let (code, said) = run(&["config", "check", path]).await;
    assert_eq!(code, Some(64), "{said}");
    assert!(
        said.contains("nane") && said.contains("huge") && said.contains("model"),
        "{said}"
    );
    let (code, said) = run(&["run", "--config", path]).await;
    assert_eq!(code, Some(64), "{said}");

    let good = write_settings(folder.path());
    let good = good.to_str().expect("text");
    assert_eq!(run(&["config", "check", good]).await.0, Some(0));
    let missing = std::fs::read_to_string(good)
        .expect("reads")
        .replace("tiny-fast-q8_0.gguf", "README.md");
    std::fs::write(good, missing).expect("writes");
    let (code, said) = run(&["config", "check", good]).await;
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("is not a GGUF file"), "{said}");

    assert_eq!(run(&["--help"]).await.0, Some(0));
    assert!(
        !run(&["--help"]).await.1.contains("worker"),
        "not for people"
    );
    assert_eq!(run(&["dance"]).await.0, Some(64));
}

#[tokio::test]
async fn help_says_what_the_doctor_sees_how_approval_goes_and_how_to_keep_a_key() {
    for (command, words) in [
        (
            "doctor",
            ["joined", "handshake", "round trip", "https", "clock"].as_slice(),
        ),
        ("join", &["six words", "waits", "hearth-proxy node approve"]),
        ("config", &["(umask 077; hearth-node config --wg-quick"]),
    ] {
        let (code, said) = run(&[command, "--help"]).await;
        assert_eq!(code, Some(0), "{said}");
        for word in words {
            assert!(said.contains(word), "{word} in {said}");
        }
    }
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_worker_does_not_outlive_a_killed_agent() {
    let proxy = FakeProxy::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let settings = write_settings(folder.path());
    let settings = settings.to_str().expect("text");
    let link = proxy.link();
    let mut agent = command(&["run", "--config", settings, "--join", &link]);
    let mut agent = agent
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    // A worker starts when its model has been admitted, which is later than the first report.
    let ready = |told: &crate::fake_proxy::Told| {
        let ready = |report: &config::wire::node::Report| report.tiers[0].model.is_some();
        told.reports.last().is_some_and(ready)
    };
    proxy.wait_for("the tier is ready", ready).await;
    let agent_pid = agent.id().expect("runs");
    // Any thread of the agent may have started the worker, and the tunnel has a helper of its own.
    let threads = std::fs::read_dir(format!("/proc/{agent_pid}/task")).expect("threads");
    let children: Vec<u32> = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect();
    let is_worker = |child: &&u32| {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"worker")
    };
    let workers = children.iter().filter(is_worker).count();
    assert_eq!(workers, 1, "one worker among {children:?}");
    agent.kill().await.expect("is killed");
    let gone = timeout(PATIENCE, async {
        for child in &children {
            while Path::new(&format!("/proc/{child}/exe")).exists() {
                tokio::task::yield_now().await;
            }
        }
    });
    assert!(gone.await.is_ok(), "some of {children:?} still run");
}
