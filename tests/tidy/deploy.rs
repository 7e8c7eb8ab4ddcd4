//! What `deploy/` and the README promise: every command exists, every path that is copied is built, every port and variable is ours.

use std::collections::BTreeSet;
use std::fs;

use tests::process::said;

use super::{assert_none, files, root};

const PROGRAMS: [&str; 2] = ["hearth-proxy", "hearth-node"];

/// Everything an operator is told to type, as (place, line).
fn promises() -> Vec<(String, String)> {
    let mut pages: Vec<(String, String)> =
        [".service", ".yaml", ".plist", ".Dockerfile", ".sh", ".toml"]
            .iter()
            .flat_map(|ending| {
                let mut found = files("deploy", ending);
                found.extend(files("config", &format!("example{ending}")));
                found
            })
            .collect();
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README.md");
    pages.push(("README.md".to_owned(), readme));
    pages
        .into_iter()
        .flat_map(|(path, text)| {
            let lines: Vec<String> = text.lines().map(flat).collect();
            lines.into_iter().map(move |line| (path.clone(), line))
        })
        .collect()
}

/// JSON-ish lists (`["serve", "--config"]`), quotes and paths become plain words.
fn flat(line: &str) -> String {
    line.replace("\", \"", " ")
        .replace(['"', '[', ']', '`', '\'', ','], " ")
        .replace("/usr/local/bin/", "")
        .replace("$bin/", "")
}

/// The words after each mention of a program, up to the first that cannot belong to a command.
fn commands(line: &str) -> Vec<(&'static str, Vec<String>)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let Some(program) = PROGRAMS.into_iter().find(|program| program == word) else {
            continue;
        };
        let rest = words
            .iter()
            .skip(at + 1)
            .take_while(|word| {
                word.chars()
                    .all(|letter| letter.is_ascii_lowercase() || letter == '-')
            })
            .map(|word| (*word).to_owned());
        found.push((program, rest.collect()));
    }
    found
}

/// The names that `--help` lists under a heading.
fn listed(program: &str, command: &[&str], heading: &str) -> BTreeSet<String> {
    let mut arguments = command.to_vec();
    arguments.push("--help");
    let (code, help) = said(program, &arguments);
    assert_eq!(code, Some(0), "{program} {command:?}: {help}");
    help.lines()
        .skip_while(|line| !line.starts_with(heading))
        .skip(1)
        .take_while(|line| !line.is_empty() || heading == "Options:")
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches(',').to_owned())
        .collect()
}

#[test]
fn every_command_that_is_promised_exists() {
    let mut offenders = Vec::new();
    let mut seen = 0;
    for (path, line) in promises() {
        for (program, words) in commands(&line) {
            let (flags, names): (Vec<&String>, Vec<&String>) =
                words.iter().partition(|word| word.starts_with("--"));
            let mut command: Vec<&str> = Vec::new();
            for name in names {
                let subcommands = listed(program, &command, "Commands:");
                if subcommands.is_empty() || !subcommands.contains(name.as_str()) {
                    break;
                }
                command.push(name);
            }
            // Prose names a program without a command; a command in a list of alternatives is `key create`, not `key`.
            if command.is_empty() {
                continue;
            }
            seen += 1;
            let options = listed(program, &command, "Options:");
            for flag in flags {
                if !options.contains(flag.as_str()) {
                    offenders.push(format!(
                        "{path}: {program} {} has no {flag}",
                        command.join(" ")
                    ));
                }
            }
        }
    }
    assert!(seen >= 15, "only {seen} commands were found");
    assert_none(&offenders, "deploy/ and README.md name what exists");
}

#[test]
fn services_and_images_start_what_exists() {
    let starts = promises()
        .into_iter()
        .filter(|(path, line)| {
            (path.starts_with("deploy/systemd") && line.starts_with("Exec"))
                || (path.ends_with(".Dockerfile") && line.starts_with("ENTRYPOINT"))
        })
        .map(|(path, line)| (path, line.replace('=', " ")))
        .filter(|(_, line)| !line.contains("/bin/kill"));
    let mut offenders = Vec::new();
    let mut seen = 0;
    for (path, line) in starts {
        seen += 1;
        let good = match commands(&line).first() {
            None => false,
            Some((_, words)) if line.starts_with("ENTRYPOINT") => words.is_empty(),
            Some((program, words)) => words
                .first()
                .is_some_and(|word| listed(program, &[], "Commands:").contains(word.as_str())),
        };
        if !good {
            offenders.push(format!("{path}: {line}"));
        }
    }
    assert_eq!(seen, 4, "two units, two images");
    assert_none(&offenders, "what is started exists");
}

#[test]
fn images_copy_what_their_build_made() {
    let mut offenders = Vec::new();
    for (path, text) in files("deploy/docker", ".Dockerfile") {
        for line in text.lines().filter(|line| line.starts_with("COPY")) {
            let from: Vec<&str> = line
                .split_whitespace()
                .skip(1)
                .filter(|word| !word.starts_with("--"))
                .collect();
            let (Some(source), Some(target)) = (from.first(), from.get(1)) else {
                offenders.push(format!("{path}: {line}"));
                continue;
            };
            let made = if line.contains("--from=build") {
                let program = text.contains(&format!("cp target/release{source} {source}"))
                    && text.contains(&format!("ENTRYPOINT [\"{target}\"]"));
                // A folder for the state, owned by the user of the image.
                let folder = text.contains(&format!("install -d -m 700 {source}"))
                    && text.contains(&format!("VOLUME {target}"));
                program || folder
            } else {
                root().join(source).exists()
            };
            if !made {
                offenders.push(format!("{path}: {line}"));
            }
        }
        for line in text.lines().filter(|line| line.contains("cargo build")) {
            let package = line
                .split_once("-p ")
                .map_or("", |(_, rest)| rest.split_whitespace().next().unwrap_or(""));
            if !root().join(package).join("Cargo.toml").exists() {
                offenders.push(format!("{path}: no package {package}"));
            }
        }
    }
    assert_none(&offenders, "an image holds what was built for it");
}

#[test]
fn the_stack_publishes_the_ports_that_the_proxy_listens_on() {
    let compose =
        fs::read_to_string(root().join("deploy/compose.yaml")).expect("there is a compose.yaml");
    let image = fs::read_to_string(root().join("deploy/docker/proxy.Dockerfile"))
        .expect("there is an image");
    let example = fs::read_to_string(root().join("config/proxy.example.toml"))
        .expect("there are example settings");
    for (port, kind) in [("8443", "tcp"), ("51820", "udp")] {
        assert!(example.contains(&format!("0.0.0.0:{port}\"")), "{port}");
        assert!(image.contains(&format!("{port}/{kind}")), "{port}");
        assert!(compose.contains(&format!(":{port}/{kind}\"")), "{port}");
    }
    assert!(
        image.contains("ENV HEARTH_PROXY_CONFIG=/etc/hearth/proxy.toml")
            && compose.contains(":/etc/hearth/proxy.toml:ro"),
        "so that management commands and the health check find the settings"
    );
    let file = compose
        .lines()
        .find_map(|line| line.trim().strip_prefix("dockerfile: "))
        .expect("the proxy is built here");
    assert!(root().join(file).exists(), "{file}");
}

/// One unit name, one state directory: what systemd makes is where the settings point.
#[test]
fn units_keep_their_state_where_the_example_settings_say() {
    for (unit, example, folder) in [
        ("hearth-proxy", "proxy", "/var/lib/hearth-proxy"),
        ("hearth-node", "node", "/var/lib/hearth-node"),
    ] {
        let text = fs::read_to_string(root().join(format!("deploy/systemd/{unit}.service")))
            .expect("there is a unit");
        assert!(text.contains(&format!("StateDirectory={unit}\n")), "{unit}");
        assert!(text.contains("DynamicUser=yes"), "{unit}");
        let settings = fs::read_to_string(root().join(format!("config/{example}.example.toml")))
            .expect("there are example settings");
        assert!(
            settings.contains(&format!("state_dir = \"{folder}\"")),
            "{example}.example.toml"
        );
    }
}
