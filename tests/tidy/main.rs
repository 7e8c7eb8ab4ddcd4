//! The walls of the house, checked: sizes, floors, doors, first lines. Prose forgets; this does not.

mod deploy;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Ours, and the floor each crate stands on: a crate imports only from floors below its own.
const FLOORS: [(&str, &str, u8); 10] = [
    ("config", "config", 0),
    ("fair", "config/fair", 0),
    ("journal", "config/journal", 1),
    ("tunnel", "tunnel", 1),
    ("policy", "proxy/policy", 1),
    ("scheduler", "node-agent/scheduler", 1),
    ("engine", "node-agent/engine", 2),
    ("proxy", "proxy", 3),
    ("node-agent", "node-agent", 3),
    ("tests", "tests", 4),
];

/// A vendor's name in Rust code, and the only places that may say it.
const DOORS: [(&str, &[&str]); 8] = [
    ("pingora::", &["proxy/src/front"]),
    ("redis::", &["proxy/src/store/redis"]),
    ("redb::", &["proxy/src/store/embedded"]),
    ("jsonwebtoken::", &["proxy/src/auth"]),
    ("governor::", &["proxy/src/front"]),
    ("boringtun::", &["tunnel/"]),
    ("smoltcp::", &["tunnel/"]),
    ("llama_cpp_2::", &["node-agent/engine/src/llama"]),
];

const FILE_LINES_MAX: usize = 600;
const README_LINES_MAX: usize = 200;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file below `folder` with the ending, as (path from the root, text); build output and packages left out.
fn files(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .expect("the folder can be read")
            .flatten()
        {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                let shown = path
                    .strip_prefix(root())
                    .expect("inside the root")
                    .display()
                    .to_string();
                found.insert(shown, fs::read_to_string(&path).expect("source is UTF-8"));
            }
        }
    }
    found
}

fn rust() -> BTreeMap<String, String> {
    FLOORS
        .iter()
        .filter(|(name, ..)| !["policy", "scheduler", "engine"].contains(name))
        .flat_map(|(_, folder, _)| files(folder, ".rs"))
        .collect()
}

fn assert_none(offenders: &[String], rule: &str) {
    assert!(
        offenders.is_empty(),
        "{rule}:\n  {}",
        offenders.join("\n  ")
    );
}

#[test]
fn no_file_outgrows_its_room() {
    let offenders: Vec<_> = rust()
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    assert_none(
        &offenders,
        "a file over 600 lines hides a room that has not been named",
    );
}

/// A room's `tests.rs` needs no words of its own: the room says what it is.
#[test]
fn every_file_says_what_it_is_for() {
    let offenders: Vec<_> = rust()
        .into_iter()
        .filter(|(path, text)| {
            !text.starts_with("//!") && !path.ends_with("/tests.rs") && !path.contains("/tests/")
        })
        .map(|(path, _)| path)
        .collect();
    assert_none(
        &offenders,
        "a file opens with `//!`: what this room does and must never do",
    );
}

#[test]
fn modules_are_files_with_names() {
    let offenders: Vec<_> = rust()
        .into_keys()
        .filter(|path| path.ends_with("/mod.rs"))
        .collect();
    assert_none(&offenders, "foo.rs and foo/, never mod.rs");
}

#[test]
fn vendors_come_through_one_door() {
    let mut offenders = Vec::new();
    for (path, text) in rust() {
        if path.starts_with("tests/tidy") {
            continue;
        }
        for (vendor, doors) in DOORS {
            let named = text.lines().any(|line| {
                let code = line.trim_start();
                !code.starts_with("//") && names(code, vendor)
            });
            if named && !doors.iter().any(|door| path.starts_with(door)) {
                offenders.push(format!("{path} names {vendor}"));
            }
        }
    }
    assert_none(&offenders, "one vendor, one door");
}

/// Whether the code names the crate itself, not a longer name or a module of ours (`store::redis::`).
fn names(code: &str, vendor: &str) -> bool {
    code.match_indices(vendor).any(|(at, _)| {
        let before = code
            .as_bytes()
            .get(at.wrapping_sub(1))
            .copied()
            .unwrap_or(b' ');
        !(before.is_ascii_alphanumeric() || before == b'_' || before == b':')
    })
}

#[test]
fn floors_import_only_what_lies_below() {
    let mut offenders = Vec::new();
    for (name, folder, floor) in FLOORS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))
            .expect("each crate has a manifest");
        let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        for (other, _, other_floor) in FLOORS {
            let named = dependencies.is_some_and(|table| table.contains_key(other));
            if named && other_floor >= floor {
                offenders.push(format!(
                    "{name} (floor {floor}) imports {other} (floor {other_floor})"
                ));
            }
        }
    }
    assert_none(&offenders, "a crate imports only from floors below its own");
}

#[test]
fn every_crate_lives_under_the_same_lints() {
    let offenders: Vec<_> = FLOORS
        .iter()
        .filter(|(_, folder, _)| {
            let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))
                .expect("each crate has a manifest");
            !manifest.contains("[lints]\nworkspace = true")
        })
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    assert_none(&offenders, "each Cargo.toml says [lints] workspace = true");
}

#[test]
fn pure_floors_know_no_clock_and_no_runtime() {
    for folder in ["proxy/policy", "node-agent/scheduler"] {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))
            .expect("each crate has a manifest");
        assert!(
            !manifest.contains("tokio"),
            "{folder} decides; it does not wait"
        );
        let rules = fs::read_to_string(root().join(folder).join("clippy.toml"))
            .expect("a pure crate has its own clippy.toml");
        assert!(
            rules.contains("Instant::now"),
            "{folder}/clippy.toml bans the clock"
        );
    }
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["TO", "FIX", "X"].map(|half| {
        half.to_owned()
            + if half == "TO" {
                "DO"
            } else if half == "FIX" {
                "ME"
            } else {
                "XX"
            }
    });
    let offenders: Vec<_> = rust()
        .iter()
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .map(move |(at, line)| (path, at, line))
        })
        .filter(|(_, _, line)| marks.iter().any(|mark| line.contains(mark.as_str())))
        .map(|(path, at, _)| format!("{path}:{}", at + 1))
        .collect();
    assert_none(&offenders, "unfinished work is an issue, not a comment");
}

#[test]
fn the_readme_is_a_page_and_its_links_lead_somewhere() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README.md");
    let lines = readme.lines().count();
    assert!(
        lines <= README_LINES_MAX,
        "README.md is the user's page, not a book: {lines} lines"
    );
    let map =
        fs::read_to_string(root().join("ARCHITECTURE.md")).expect("there is an ARCHITECTURE.md");
    let mut offenders = Vec::new();
    for (page, text) in [("README.md", readme), ("ARCHITECTURE.md", map)] {
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !root().join(target).exists() {
                offenders.push(format!("{page} -> {target}"));
            }
        }
    }
    assert_none(&offenders, "a link leads somewhere");
}

#[test]
fn the_page_has_no_inline_code_and_no_third_party() {
    let page =
        fs::read_to_string(root().join("proxy/web/index.html")).expect("there is a chat page");
    for banned in [
        "<style",
        " style=",
        " onclick",
        " onload",
        "javascript:",
        "http://",
        "https://",
    ] {
        assert!(
            !page.contains(banned),
            "the page's policy forbids `{banned}`"
        );
    }
    assert!(
        !page.contains("<script>"),
        "scripts come from files of our own"
    );
}
