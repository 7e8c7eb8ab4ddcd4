//! A worker that a crafted model has taken over: what it can still reach.

use std::collections::HashMap;
use std::process::Command;

use crate::support::models;

fn tried() -> HashMap<String, bool> {
    let folder = tempfile::tempdir().expect("a folder");
    let forbidden = folder.path().join("identity.key");
    std::fs::write(&forbidden, "secret").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_hearth-worker"))
        .arg("escape")
        .arg(models().join("tiny-fast-q8_0.gguf"))
        .arg(&forbidden)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines
        .map(|(what, could)| (what.to_owned(), could == "true"))
        .collect()
}

#[test]
fn a_worker_reaches_its_model_and_nothing_else() {
    let tried = tried();
    assert!(tried["reads its model"]);
    assert!(tried["reads the machine's memory"]);
    if tried["calls"] {
        for what in ["runs a program", "connects", "listens", "opens UDP"] {
            assert!(!tried[what], "{what}");
        }
    }
    if tried["files"] {
        for what in ["reads another file", "writes its model", "makes a file"] {
            assert!(!tried[what], "{what}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_walls_stand_on_this_system() {
    let tried = tried();
    assert!(
        tried["calls"],
        "every Linux that Hearth supports has seccomp"
    );
    let landlock = std::fs::read_to_string("/sys/kernel/security/lsm");
    if landlock.is_ok_and(|modules| modules.contains("landlock")) {
        assert!(tried["files"]);
    }
}
