//! Birth and death of a worker.

use std::process::Command;
use std::time::Duration;

use engine::Event;
use engine::LoadError;
use engine::LoadSpec;
use engine::Refusal;
use engine::Script;
use engine::Worker;
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::answer;
use crate::support::ask;
use crate::support::first_piece;
use crate::support::load;
use crate::support::next;
use crate::support::play;
use crate::support::until;

fn endless() -> Script {
    Script {
        say: "on and on ".repeat(700),
        step_ms: 1,
        ..Script::default()
    }
}

fn is_alive(pid: u32) -> bool {
    let status = Command::new("kill").args(["-0", &pid.to_string()]).status();
    status.expect("there is a kill program").success()
}

async fn until_dead(pid: u32) {
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone)
        .await
        .expect("the process ends in time");
}

#[tokio::test]
async fn a_killed_worker_ends_every_answer_with_worker_gone() {
    let worker = play(&endless()).await;
    let mut running = worker.generate(ask("go")).await.expect("the worker lives");
    first_piece(&mut running).await;
    let pid = worker.pid().expect("it runs").to_string();

    let killed = Command::new("kill").args(["-9", &pid]).status();

    assert!(killed.expect("there is a kill program").success());
    let last = loop {
        match next(&mut running).await {
            Some(Event::Piece { .. }) => {}
            other => break other,
        }
    };
    let Some(Event::Refused(Refusal::WorkerGone { reason })) = last else {
        panic!("{last:?}");
    };
    assert!(reason.contains("signal 9"), "{reason}");
    assert_eq!(next(&mut running).await, None);
    assert!(
        timeout(PATIENCE, worker.exited())
            .await
            .expect("known at once")
            .contains("signal 9")
    );
    let late = answer(&worker, ask("hello")).await;
    assert!(matches!(late.refusal(), Refusal::WorkerGone { .. }));
    assert!(worker.tokenize("x", false, false).await.is_err());
    until(&worker, |stats| stats.slots_busy == 0).await;
}

#[tokio::test]
async fn a_crash_in_a_step_is_noticed() {
    let mut script = endless();
    script.crash_on = Some("boom".to_owned());
    let worker = play(&script).await;
    let mut running = worker.generate(ask("go")).await.expect("the worker lives");
    first_piece(&mut running).await;

    let crashed = answer(&worker, ask("boom")).await;

    assert!(matches!(crashed.refusal(), Refusal::WorkerGone { .. }));
    while let Some(event) = next(&mut running).await {
        assert!(matches!(
            event,
            Event::Piece { .. } | Event::Refused(Refusal::WorkerGone { .. })
        ));
    }
}

#[tokio::test]
async fn a_dropped_worker_is_killed() {
    let worker = play(&endless()).await;
    let mut running = worker.generate(ask("go")).await.expect("the worker lives");
    first_piece(&mut running).await;
    let pid = worker.pid().expect("it runs");

    drop(worker);

    until_dead(pid).await;
    while let Some(event) = next(&mut running).await {
        assert!(matches!(
            event,
            Event::Piece { .. } | Event::Refused(Refusal::WorkerGone { .. })
        ));
    }
}

#[tokio::test]
async fn shutdown_waits_for_the_end() {
    let worker = play(&Script::say("hi")).await;
    let pid = worker.pid().expect("it runs");

    timeout(PATIENCE, worker.shutdown())
        .await
        .expect("it ends by itself");

    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_worker_does_not_outlive_its_agent() {
    // The agent here is a socket that closes; the worker is in the middle of a very long step.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    let mut child = Command::new(env!("CARGO_BIN_EXE_hearth-worker"))
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(
            theirs,
        )))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the worker starts");
    let mut script = Script::say("x");
    script.step_ms = 60_000;
    let mut bytes = Vec::new();
    let load = engine::protocol::ToWorker::Load {
        version: engine::protocol::VERSION,
        spec: Box::new(LoadSpec::new(script.path())),
    };
    let generate = engine::protocol::ToWorker::Generate {
        job: 1,
        spec: Box::new(ask("go")),
    };
    engine::protocol::encode(&load, &mut bytes).expect("small");
    engine::protocol::encode(&generate, &mut bytes).expect("small");
    std::io::Write::write_all(&mut &ours, &bytes).expect("the worker reads");

    drop(ours);

    let ended = tokio::task::spawn_blocking(move || child.wait());
    timeout(PATIENCE, ended)
        .await
        .expect("it ends in time")
        .expect("no panic")
        .expect("it is our child");
}

#[tokio::test]
async fn failed_loads_have_a_reason() {
    let refused = load(LoadSpec::new(Script::refuse_load("no such weights").path())).await;
    assert!(
        matches!(&refused, Err(LoadError::Model { reason, .. }) if reason == "no such weights"),
        "{refused:?}"
    );

    let mut crashing = Script::say("x");
    crashing.crash_on_load = true;
    let crashed = load(LoadSpec::new(crashing.path())).await;
    assert!(
        matches!(&crashed, Err(LoadError::Crashed { reason }) if reason.contains("signal 6")),
        "{crashed:?}"
    );

    let mut wrong = LoadSpec::new("script:hi");
    wrong.slots = 0;
    let wrong = load(wrong).await;
    assert!(
        matches!(&wrong, Err(LoadError::Invalid { field, .. }) if field == "slots"),
        "{wrong:?}"
    );

    let missing = Worker::spawn(
        "/no/such/program",
        [] as [&str; 0],
        LoadSpec::new("script:hi"),
    )
    .await;
    assert!(
        matches!(&missing, Err(LoadError::Spawn { .. })),
        "{missing:?}"
    );

    let not_a_worker = Worker::spawn("true", [] as [&str; 0], LoadSpec::new("script:hi")).await;
    assert!(
        matches!(&not_a_worker, Err(LoadError::Crashed { .. })),
        "{not_a_worker:?}"
    );
}
