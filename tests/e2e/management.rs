//! What an operator types: keys, nodes, settings and state, for people and for scripts, with and without a running proxy.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::node::Node;
use tests::process::said;
use tests::proxy::Proxy;
use tests::wait::until;

/// The settings' problems of the fixture are told with their place.
fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../config/fixtures/invalid")
        .join(name);
    path.display().to_string()
}

/// A management command as a person types it: exit code and words.
fn typed(proxy: &Proxy, arguments: &[&str]) -> (Option<i32>, String) {
    let config = proxy.config().display().to_string();
    let mut all = arguments.to_vec();
    all.extend(["--config", &config]);
    said("hearth-proxy", &all)
}

fn done(proxy: &Proxy, arguments: &[&str]) -> String {
    let (code, words) = typed(proxy, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {words}");
    words
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_whether_or_not_the_proxy_runs() {
    let mut proxy = Proxy::start().await;
    let (id, key) = proxy.key("laptop");
    let laptop = proxy.stranger().with_bearer(&key);
    assert_eq!(laptop.get("/v1/models").await.status, 200);

    proxy.kill();
    let shown = done(&proxy, &["key", "create", "--name", "phone"]);
    let phone = shown
        .lines()
        .next()
        .expect("the key is the first line")
        .to_owned();
    assert!(phone.starts_with("hearth_sk_"), "{shown}");
    assert!(shown.contains("shown this once"), "{shown}");
    let table = done(&proxy, &["key", "list"]);
    assert!(
        table.starts_with("ID ") && table.contains("laptop") && table.contains("phone"),
        "{table}"
    );
    assert!(!table.contains(&key) && !table.contains(&phone), "{table}");
    let revoked = done(&proxy, &["key", "revoke", &id]);
    assert!(revoked.contains("revoked"), "{revoked}");

    proxy.restart().await;
    assert_eq!(laptop.get("/v1/models").await.status, 401, "revoked");
    let phone_client = proxy.stranger().with_bearer(&phone);
    assert_eq!(phone_client.get("/v1/models").await.status, 200);
    done(&proxy, &["key", "revoke", &phone]);
    assert_eq!(
        phone_client.get("/v1/models").await.status,
        401,
        "at once, while the proxy runs and knows the key"
    );
    let table = done(&proxy, &["key", "list"]);
    assert_eq!(table.matches("revoked").count(), 2, "{table}");
    let (code, words) = typed(&proxy, &["key", "revoke", "AAAAAAAAAA"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("hearth-proxy key list"),
        "what next: {words}"
    );
}

#[tokio::test]
async fn nodes_are_invited_listed_and_revoked_by_name() {
    let mut proxy = Proxy::start().await;
    assert!(done(&proxy, &["node", "list"]).contains("no nodes yet"));
    proxy.kill();
    let invite = done(&proxy, &["node", "invite", "--name", "den"]);
    let link = invite
        .lines()
        .next()
        .expect("the link is the first line")
        .to_owned();
    assert!(
        link.starts_with(&proxy.url()) && link.contains("&pin=sha256-"),
        "{invite}"
    );
    assert!(
        invite.contains(&format!("hearth-node join '{link}'")),
        "ready to paste: {invite}"
    );

    proxy.restart().await;
    let mut den = Node::named("den").tier("fast").prepare();
    let (code, words) = den.typed(&["status"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("hearth-node run"), "what next: {words}");
    den.join(&link);
    den.restart();
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let table = done(&proxy, &["node", "list"]);
    assert!(
        table.contains("den") && table.contains("online: fast ready tiny-fast"),
        "{table}"
    );
    until("the node says so too", Duration::from_secs(10), || async {
        let (code, words) = den.typed(&["status"]);
        (code == Some(0) && words.contains("connected") && words.contains("fast")).then_some(())
    })
    .await;
    assert_eq!(den.typed(&["config", "check"]).0, Some(0));

    assert!(done(&proxy, &["node", "revoke", "den"]).contains("revoked"));
    assert!(done(&proxy, &["node", "list"]).contains("revoked"));
    let (code, words) = typed(&proxy, &["node", "revoke", "attic"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("hearth-proxy node list"), "{words}");
}

#[test]
fn every_problem_of_the_settings_is_told_at_once_with_its_place() {
    for (program, file) in [
        ("hearth-proxy", "proxy-many.toml"),
        ("hearth-node", "node-many.toml"),
    ] {
        let path = fixture(file);
        let (code, words) = said(program, &["config", "check", &path]);
        assert_eq!(code, Some(64), "{program}: {words}");
        let places = words.lines().filter(|line| has_place(line, file)).count();
        assert!(places >= 5, "{program} told {places} places:\n{words}");
        let run = if program == "hearth-proxy" {
            "serve"
        } else {
            "run"
        };
        let (code, same) = said(program, &[run, "--config", &path]);
        assert_eq!(code, Some(64), "{same}");
        assert_eq!(same, words, "starting says the same");
    }
}

/// `…file:12:3…`
fn has_place(line: &str, file: &str) -> bool {
    let Some((_, rest)) = line.split_once(file) else {
        return false;
    };
    let mut parts = rest.trim_start_matches(':').split(':');
    let mut number = || {
        parts
            .next()
            .is_some_and(|part| part.trim().parse::<u32>().is_ok())
    };
    number() && number()
}

#[tokio::test]
async fn the_state_is_told_to_people_and_to_scripts() {
    let mut proxy = Proxy::start().await;
    let words = done(&proxy, &["status"]);
    assert!(
        words.contains("up ") && words.contains("ready  no: ") && words.contains("store  "),
        "{words}"
    );
    let status = proxy.manage(&["status"]);
    assert_eq!(status["nodes_online"], Value::from(0), "{status}");
    assert!(status["uptime_secs"].is_u64(), "{status}");
    assert!(done(&proxy, &["health"]).starts_with("ok "));
    let url = format!("{}/healthz", proxy.url());
    let (code, words) = said("hearth-proxy", &["health", "--url", &url]);
    assert_eq!(code, Some(1), "an unknown certificate: {words}");
    let (code, words) = said("hearth-proxy", &["health", "--url", &url, "--insecure"]);
    assert_eq!((code, words.trim()), (Some(0), "ok"));

    let easy = proxy.manage(&["route", "explain", "Hi!"]);
    let hard = done(
        &proxy,
        &[
            "route",
            "explain",
            "Prove step by step that there are infinitely many primes, then analyse the complexity of the sieve and refactor this code: fn f() {}",
        ],
    );
    assert_eq!(easy["verdict"]["class"], Value::from("fast"), "{easy}");
    assert!(
        hard.contains("class     heavy") && hard.contains("reasons  "),
        "{hard}"
    );

    proxy.kill();
    assert!(done(&proxy, &["status"]).contains("does not run"));
    let (code, words) = typed(&proxy, &["health"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("no proxy answers at"), "{words}");
}

#[test]
fn a_wrong_command_line_says_what_would_be_right() {
    for (program, wrong, hint) in [
        ("hearth-proxy", vec!["key", "lst"], "list"),
        ("hearth-node", vec!["statsu"], "status"),
    ] {
        let (code, words) = said(program, &wrong);
        assert_eq!(code, Some(64), "{program}: {words}");
        assert!(words.contains(hint), "{program}: {words}");
    }
}

/// Every command has an example, and the example is a command that exists.
#[test]
fn every_help_has_an_example_that_is_true() {
    for (program, commands) in [
        (
            "hearth-proxy",
            &[
                "",
                "serve",
                "config",
                "config check",
                "key",
                "key create",
                "key list",
                "key revoke",
                "node",
                "node invite",
                "node list",
                "node revoke",
                "route",
                "route explain",
                "status",
                "health",
            ][..],
        ),
        (
            "hearth-node",
            &["", "join", "run", "config", "config check", "status"][..],
        ),
    ] {
        for command in commands {
            let mut arguments: Vec<&str> = command.split_whitespace().collect();
            arguments.push("--help");
            let (code, words) = said(program, &arguments);
            assert_eq!(code, Some(0), "{program} {command}: {words}");
            let example = words.contains(&format!("\n  {program} {command}"))
                || words.contains(&format!(" {program} {command} "));
            assert!(
                words.contains("Example") && example,
                "{program} {command}: {words}"
            );
        }
    }
}

#[tokio::test]
async fn both_programs_log_the_same_lines_and_end_without_a_complaint() {
    let mut proxy = Proxy::start().await;
    let mut den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    assert_eq!(friend.ask("fast", "Hello").await.status, 200);
    den.process().signal("TERM");
    den.process().ended(Duration::from_secs(10)).await;
    proxy.process().signal("TERM");
    proxy.process().ended(Duration::from_secs(10)).await;

    for (program, log) in [
        ("hearth-proxy", proxy.process().log()),
        ("hearth-node", den.process().log()),
    ] {
        let mut requests = 0;
        for line in log.lines() {
            let line: Value =
                serde_json::from_str(line).unwrap_or_else(|_| panic!("{program}: {line}"));
            for field in ["ts", "level", "target", "msg"] {
                assert!(line[field].is_string(), "{program}: no {field} in {line}");
            }
            assert_ne!(line["level"], "ERROR", "{program}: {line}");
            for number in ["ms", "ttft_ms", "completion_tokens"] {
                let value = &line[number];
                assert!(value.is_null() || value.is_u64(), "{program}: {line}");
            }
            let answered = line["msg"] == "request" && line["completion_tokens"].is_u64();
            requests += usize::from(answered && line["tier"] == "fast");
        }
        assert_eq!(requests, 1, "{program} tells of the request once:\n{log}");
    }
}

/// What an operator types in a month with one person, on a server that runs.
#[tokio::test]
async fn a_person_s_keys_limits_and_usage_are_managed_from_the_command_line_to_the_end() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let made = proxy.manage(&["key", "create", "--name", "laptop", "--owner", "ben"]);
    let text = |value: &Value, field: &str| value[field].as_str().expect(field).to_owned();
    let (id, old) = (text(&made["record"], "id"), text(&made, "key"));
    let client = |key: &str| proxy.stranger().with_bearer(key);
    let reply = client(&old).ask("fast", "Hello").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let spent = reply.json()["usage"]["total_tokens"]
        .as_u64()
        .expect("tokens");

    usage_is_told_in_each_form(&proxy, spent).await;

    // No more than was spent already: the next answer is none.
    let tokens = spent.to_string();
    let set = done(&proxy, &["user", "set", "ben", "--tokens-per-day", &tokens]);
    assert!(set.contains("changed ben"), "{set}");
    assert!(done(&proxy, &["user", "list"]).contains(&tokens));
    let bound = Duration::from_secs(10);
    until("the new figure counts", bound, || async {
        let reply = client(&old).ask("fast", "Hello").await;
        assert!([200, 429].contains(&reply.status), "{}", reply.body);
        (reply.code() == "insufficient_quota").then_some(())
    })
    .await;
    done(&proxy, &["user", "set", "ben", "--no-figures"]);
    until("it counts no more", bound, || async {
        (client(&old).ask("fast", "Hello").await.status == 200).then_some(())
    })
    .await;

    let rotated = proxy.manage(&["key", "rotate", &id, "--grace", "1h"]);
    let new = text(&rotated, "key");
    assert_ne!(old, new);
    for good in [&old, &new] {
        assert_eq!(client(good).get("/v1/models").await.status, 200);
    }
    let again = proxy.manage(&["key", "rotate", &id, "--grace", "0s"]);
    let newest = text(&again, "key");
    for ended in [&old, &new] {
        assert_eq!(client(ended).get("/v1/models").await.status, 401);
    }
    assert_eq!(client(&newest).get("/v1/models").await.status, 200);

    let (code, words) = typed(&proxy, &["user", "erase", "ben"]);
    assert_eq!(code, Some(64), "without --yes nobody is forgotten: {words}");
    let erased = done(&proxy, &["user", "erase", "ben", "--yes"]);
    assert!(erased.contains("forgot ben: 1 keys ended"), "{erased}");
    assert_eq!(client(&newest).get("/v1/models").await.status, 401);
    let csv = done(
        &proxy,
        &["usage", "--user", "ben", "--per", "total", "--csv"],
    );
    let row = csv.lines().nth(1).expect("a row");
    assert!(row.split(',').nth(2) == Some("0"), "nothing is kept: {csv}");
    assert!(!done(&proxy, &["user", "list"]).contains("ben"));
    assert!(done(&proxy, &["audit", "list"]).contains("user.erase"));

    let (other, phone) = proxy.key("phone");
    assert!(done(&proxy, &["key", "revoke", &other]).contains("revoked"));
    assert_eq!(client(&phone).get("/v1/models").await.status, 401);
}

/// The sums of one answer: as lines for a spreadsheet, as a table a day, request by request.
async fn usage_is_told_in_each_form(proxy: &Proxy, spent: u64) {
    let asked = ["usage", "--user", "ben", "--per", "total", "--csv"];
    let csv = until("the books have it", Duration::from_secs(10), || async {
        let csv = done(proxy, &asked);
        let row: Vec<&str> = csv.lines().nth(1)?.split(',').collect();
        (row.get(2) == Some(&"1")).then_some(csv.clone())
    })
    .await;
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(',').collect();
    let row: Vec<&str> = lines.next().expect("a row").split(',').collect();
    assert_eq!(head.len(), row.len(), "{csv}");
    let figure = |name: &str| {
        let at = head.iter().position(|column| *column == name);
        row[at.unwrap_or_else(|| panic!("no {name} in {csv}"))]
            .parse::<u64>()
            .expect("a number")
    };
    assert_eq!(figure("tokens_in") + figure("tokens_out"), spent, "{csv}");
    let days = done(proxy, &["usage", "--by", "day", "--user", "ben"]);
    assert_eq!(days.lines().count(), 3, "head, today, all: {days}");
    assert!(days.starts_with("PERIOD"), "{days}");
    let records = done(proxy, &["usage", "--records", "--user", "ben"]);
    assert!(
        records.contains("ben") && records.contains("tiny-fast"),
        "{records}"
    );
}

#[tokio::test]
async fn the_doctor_asks_a_real_question_and_leaves_nothing_behind() {
    let proxy = Proxy::start().await;
    let (code, told) = typed(&proxy, &["doctor"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("FAIL  machines"), "{told}");
    assert!(told.contains("node invite"), "what next: {told}");

    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let told = done(&proxy, &["doctor"]);
    let (_, told_json) = typed(&proxy, &["doctor", "--json"]);
    for line in [
        "ok    settings",
        "ok    proxy",
        "ok    store       embedded",
        "ok    https",
        "ok    den         udp",
        "ok    answer      tiny-fast on den",
    ] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    assert!(
        told.contains("reading") && !told.contains("hearth_sk_"),
        "{told}"
    );
    let checks: Value = serde_json::from_str(&told_json).expect("JSON");
    let all = checks.as_array().expect("checks");
    assert!(all.iter().all(|check| check["verdict"] == "ok"), "{checks}");
    let keys = done(&proxy, &["key", "list", "--json"]);
    let keys: Value = serde_json::from_str(&keys).expect("JSON");
    let left = keys.as_array().expect("keys").iter();
    let left = left.filter(|key| key["name"] == "doctor" && key["revoked_unix"].is_null());
    assert_eq!(left.count(), 0, "its keys are taken back: {keys}");
}

/// Takes seconds: a path is measured every five.
#[tokio::test]
async fn the_way_to_a_node_is_known_before_anybody_has_asked_it_anything() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    // Unmeasured it counts as 30 ms; on loopback it is one or two.
    until("it was measured", Duration::from_secs(30), || async {
        let told = done(&proxy, &["route", "explain", "Hello", "--json"]);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let predicted = &told["route"]["steps"][0]["predicted"];
        let trip = predicted["round_trip_ms"].as_u64().expect("it is told");
        (trip < 30).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_doctor_of_a_stopped_proxy_says_how_to_start_it() {
    let mut proxy = Proxy::start().await;
    proxy.kill();
    let (code, told) = typed(&proxy, &["doctor"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("FAIL  proxy") && told.contains("journalctl"),
        "{told}"
    );
}
