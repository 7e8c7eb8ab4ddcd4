//! Stories of the settings: examples, fixtures, the environment, and every problem at once.

use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::settings::proxy::{IssuerKeys, Servers, Store, Tls};

const PROXY_EXAMPLE: &str = include_str!("../../../proxy.example.toml");
const NODE_EXAMPLE: &str = include_str!("../../../node.example.toml");

fn no_files(_: &Path) -> io::Result<String> {
    Err(io::Error::new(io::ErrorKind::NotFound, "no such file"))
}

fn outside<'a>(variables: &[(&str, &str)]) -> Outside<'a> {
    Outside {
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        read: &no_files,
        machine: Machine {
            host_name: "den.example.org".to_owned(),
            data_home: Some(PathBuf::from("/home/me/.local/share")),
            state_directory: None,
            root: false,
            cores: 4,
        },
    }
}

fn proxy_of(text: &str) -> proxy::Settings {
    match parse_proxy("proxy.toml", text, &outside(&[])) {
        Ok(settings) => settings,
        Err(problems) => panic!("{problems}"),
    }
}

fn proxy_problems(text: &str) -> Problems {
    parse_proxy("proxy.toml", text, &outside(&[])).expect_err("wrong settings are refused")
}

/// Takes the `# ` off every line that holds a key or a section.
fn uncommented(example: &str) -> String {
    let code = |line: &str| {
        let head = line.split_once(['=', '#']).map_or(line, |(head, _)| head);
        line.starts_with('[')
            || (line.contains(" = ") && !head.trim().is_empty() && !head.trim().contains(' '))
    };
    let lines: Vec<&str> = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if code(rest) => rest,
            _ => line,
        })
        .collect();
    lines.join("\n")
}

#[test]
fn proxy_example_equals_the_defaults() {
    let example = format!("{:#?}", proxy_of(PROXY_EXAMPLE));
    assert_eq!(example, format!("{:#?}", proxy_of("")));
}

#[test]
fn node_example_equals_the_defaults() {
    let parse = |text| {
        format!(
            "{:#?}",
            parse_node("node.toml", text, &outside(&[])).expect("right")
        )
    };
    let shortest = "[[tiers]]\ntier = \"primary\"\nmodel = \"/models/gemma-3-4b-it-Q4_K_M.gguf\"\n";
    assert_eq!(parse(NODE_EXAMPLE), parse(shortest));
}

/// The keys that exist, and those that a text sets.
fn keys(text: &str, prefix: &'static str) -> (BTreeSet<String>, BTreeSet<String>, Vec<String>) {
    let outside = outside(&[]);
    let document = Document::new("example", text, prefix, &outside);
    if prefix == PROXY_PREFIX {
        drop(resolve::proxy::settings(document.root()));
    } else {
        drop(resolve::node::settings(document.root()));
    }
    let (known, present) = document.keys();
    let unknown = match document.finish() {
        Ok(()) => Vec::new(),
        Err(problems) => problems
            .iter()
            .filter(|problem| problem.message == "no such key")
            .map(|problem| problem.key.clone())
            .collect(),
    };
    (known, present, unknown)
}

#[test]
fn examples_name_every_key_that_exists_and_no_other() {
    for (example, prefix) in [(PROXY_EXAMPLE, PROXY_PREFIX), (NODE_EXAMPLE, NODE_PREFIX)] {
        let (known, present, unknown) = keys(&uncommented(example), prefix);
        let forgotten: Vec<&String> = known.difference(&present).collect();
        assert!(forgotten.is_empty(), "not in the example: {forgotten:?}");
        assert!(unknown.is_empty(), "only in the example: {unknown:?}");
    }
}

#[test]
fn valid_fixtures_are_read() {
    insta::glob!("../../../fixtures/valid", "*.toml", |path| {
        let text = fs::read_to_string(path).expect("a fixture");
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let settings = if name.starts_with("proxy") {
            parse_proxy(&name, &text, &outside(&[])).map(|settings| format!("{settings:#?}"))
        } else {
            parse_node(&name, &text, &outside(&[])).map(|settings| format!("{settings:#?}"))
        };
        match settings {
            Ok(settings) => insta::assert_snapshot!(settings),
            Err(problems) => panic!("{problems}"),
        }
    });
}

#[test]
fn invalid_fixtures_print_every_problem_at_once() {
    insta::glob!("../../../fixtures/invalid", "*.toml", |path| {
        let text = fs::read_to_string(path).expect("a fixture");
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let problems = if name.starts_with("proxy") {
            parse_proxy(&name, &text, &outside(&[])).err()
        } else {
            parse_node(&name, &text, &outside(&[])).err()
        };
        let printed = problems.expect("wrong settings are refused").to_string();
        assert!(!printed.contains("hunter2"), "a secret was printed");
        insta::assert_snapshot!(printed);
    });
}

#[test]
fn twenty_mistakes_in_one_file_are_twenty_problems() {
    let text = include_str!("../../../fixtures/invalid/proxy-many.toml");
    let problems = proxy_problems(text);
    assert!(problems.count() >= 20, "{problems}");
    let placed = problems
        .iter()
        .filter(|problem| problem.line_column().is_some())
        .count();
    assert_eq!(placed, problems.count(), "each has a line and a column");
}

#[test]
fn environment_wins_over_the_file() {
    let variables = [
        ("HEARTH_PROXY__LIMITS__TEXT_PER_DAY", "5"),
        ("HEARTH_PROXY__SERVER__LISTEN", "127.0.0.1:1, 127.0.0.1:2"),
        ("HEARTH_PROXY__ROUTING__FALLBACK", "false"),
        ("HEARTH_PROXY__ROUTING__HEAVY_FROM", "0.9"),
        ("HEARTH_PROXY__SERVER__GRACE_SECS", "2m"),
        ("HEARTH_PROXY__LOG__FILTER", "5"),
        ("HEARTH_PROXY_CONFIG", "/etc/hearth/proxy.toml"),
        ("PATH", "/bin"),
    ];
    let text = "[limits]\ntext_per_day = 7\n";
    let settings = parse_proxy("proxy.toml", text, &outside(&variables)).expect("right");
    assert_eq!(settings.limits.text_per_day, 5);
    assert_eq!(settings.server.listen.len(), 2);
    assert!(!settings.routing.fallback);
    assert!((settings.routing.heavy_from - 0.9).abs() < f64::EPSILON);
    assert_eq!(settings.server.grace.as_secs(), 120);
    assert_eq!(settings.log.filter, "5");
}

#[test]
fn wrong_and_unknown_variables_are_problems_too() {
    let variables = [
        ("HEARTH_PROXY__LIMITS__TEXT_PER_DAY", "many"),
        ("HEARTH_PROXY__LIMITS__TEXT_PRE_DAY", "5"),
    ];
    let problems = parse_proxy("proxy.toml", "", &outside(&variables)).expect_err("wrong");
    insta::assert_snapshot!(problems.to_string(), @r#"
    error: limits.text_per_day: "many" is not an integer from 0 to 4294967295
      --> environment variable HEARTH_PROXY__LIMITS__TEXT_PER_DAY

    error: no such setting
      --> environment variable HEARTH_PROXY__LIMITS__TEXT_PRE_DAY
      = help: did you mean HEARTH_PROXY__LIMITS__TEXT_PER_DAY

    2 problems in the settings
    "#);
}

#[test]
fn nested_tables_take_variables_too() {
    let variables = [("HEARTH_PROXY__LIMITS__PLANS__FAMILY__TEXT_PER_DAY", "9")];
    let text = "[limits.plans.family]\n";
    let settings = parse_proxy("proxy.toml", text, &outside(&variables)).expect("right");
    let plan = settings.limits.plans.get("family").expect("the plan");
    assert_eq!(plan.text_per_day, Some(9));
}

#[test]
fn firebase_preset_fixes_issuer_audience_algorithm_and_keys() {
    let settings = proxy_of("[[auth.issuers]]\nfirebase_project = \"my-project\"\n");
    let issuer = settings.auth.issuers.first().expect("one issuer");
    assert!(issuer.firebase);
    assert_eq!(issuer.issuer, "https://securetoken.google.com/my-project");
    assert_eq!(issuer.audiences, ["my-project"]);
    assert_eq!(issuer.algorithms, ["RS256"]);
    assert!(
        matches!(&issuer.keys, IssuerKeys::Url(url) if url.ends_with("/jwk/securetoken@system.gserviceaccount.com"))
    );
}

#[test]
fn google_preset_fixes_both_spellings_of_the_issuer() {
    let settings = proxy_of("[[auth.issuers]]\ngoogle_client_ids = [\"1.apps.example\"]\n");
    let issuer = settings.auth.issuers.first().expect("one issuer");
    assert_eq!(issuer.issuer, "https://accounts.google.com");
    assert_eq!(issuer.aliases, ["accounts.google.com"]);
    assert_eq!(issuer.audiences, ["1.apps.example"]);
    assert!(matches!(issuer.keys, IssuerKeys::Discovery));
}

#[test]
fn claims_are_mapped_by_name_or_path() {
    let settings = proxy_of(concat!(
        "[auth]\nazure_header = true\nstale_secs = \"1m\"\n",
        "[[auth.issuers]]\nissuer = \"https://id.example.org\"\naudiences = [\"hearth\"]\n",
        "tenant = \"lab-1\"\ngroups_claim = \"realm_access.roles\"\n",
        "plan_claim = \"https://example.org/plan\"\n",
        "admin_claim = \"roles\"\nadmin_values = [\"admin\"]\n",
        "require = [\"hd=b.org\", \"hd=a.org\", \"amr=otp\"]\n",
    ));
    assert!(settings.auth.azure_header);
    assert_eq!(settings.auth.stale.as_secs(), 60);
    let issuer = settings.auth.issuers.first().expect("one issuer");
    assert_eq!(issuer.tenant.as_str(), "lab-1");
    assert_eq!(issuer.groups_claim.as_deref(), Some("realm_access.roles"));
    assert_eq!(issuer.admin_values, ["admin"]);
    let want = [
        ("amr".to_owned(), vec!["otp".to_owned()]),
        (
            "hd".to_owned(),
            vec!["a.org".to_owned(), "b.org".to_owned()],
        ),
    ];
    assert_eq!(issuer.require, want);
}

#[test]
fn what_is_wrong_with_issuers_is_said() {
    let base = "[[auth.issuers]]\nissuer = \"https://id.example.org\"\naudiences = [\"a\"]\n";
    let second = base.replace("[\"a\"]", "[\"b\"]\ntenant = \"lab\"");
    for (text, part) in [
        (format!("{base}tenant = \"My Lab\"\n"), "small letters"),
        (
            format!("{base}admin_values = [\"a\"]\n"),
            "admin_claim is missing",
        ),
        (format!("{base}require = [\"hd\"]\n"), "claim=value"),
        (
            format!("{base}google_client_ids = [\"a\"]\n"),
            "google_client_ids decides this",
        ),
        (
            format!("{base}groups_claim = \".a\"\n"),
            "the name of a claim",
        ),
        (format!("{base}{base}"), "comes twice for one audience"),
        (format!("{base}{second}"), "two tenants"),
    ] {
        let problems = parse_proxy("proxy.toml", &text, &outside(&[])).expect_err(&text);
        let said = problems.to_string();
        assert!(said.contains(part), "{said}");
    }
    let twice = format!("{base}{}", base.replace("[\"a\"]", "[\"b\"]"));
    assert_eq!(
        proxy_of(&twice).auth.issuers.len(),
        2,
        "two audiences, one tenant"
    );
}

#[test]
fn secrets_come_from_the_text_the_environment_or_a_file() {
    let read = |path: &Path| {
        assert_eq!(path, Path::new("/run/secrets/redis"));
        Ok("redis://from-file\n".to_owned())
    };
    let mut outside = outside(&[("REDIS_URL", "redis://from-env")]);
    outside.read = &read;
    for (line, want) in [
        ("url = \"redis://plain\"", "redis://plain"),
        ("url = \"env:REDIS_URL\"", "redis://from-env"),
        ("url_file = \"/run/secrets/redis\"", "redis://from-file"),
    ] {
        let text = format!("[store]\nkind = \"redis\"\n{line}\n");
        let settings = parse_proxy("proxy.toml", &text, &outside).expect("right");
        let Store::Redis(redis) = settings.store else {
            panic!("{line}: not Redis");
        };
        let Servers::One(url) = redis.servers else {
            panic!("{line}: not one server");
        };
        assert_eq!(url.expose(), want);
    }
}

#[test]
fn certificate_names_follow_the_public_url() {
    let settings = proxy_of("[server]\npublic_url = \"https://llm.example.org:8443\"\n");
    let Tls::SelfSigned { names } = settings.tls else {
        panic!("self-signed is the default");
    };
    assert_eq!(names, ["llm.example.org", "localhost", "127.0.0.1", "::1"]);
}

#[test]
fn public_url_follows_the_first_listener() {
    for (listen, want) in [
        ("0.0.0.0:443", "https://localhost"),
        ("127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
    ] {
        let settings = proxy_of(&format!("[server]\nlisten = [\"{listen}\"]\n"));
        assert_eq!(settings.server.public_url, want);
    }
}

#[test]
fn node_state_lies_with_the_user_or_with_the_system() {
    let text = "[[tiers]]\ntier = \"fast\"\nmodel = \"m.gguf\"\n";
    let mut outside = outside(&[]);
    let settings = parse_node("node.toml", text, &outside).expect("right");
    assert_eq!(
        settings.node.state_dir,
        Path::new("/home/me/.local/share/hearth-node")
    );
    assert_eq!(settings.node.name, "den");
    outside.machine.root = true;
    let settings = parse_node("node.toml", text, &outside).expect("right");
    assert_eq!(settings.node.state_dir, Path::new("/var/lib/hearth-node"));
    outside.machine.root = false;
    outside.machine.state_directory = Some(PathBuf::from("/var/lib/private/den"));
    let settings = parse_node("node.toml", text, &outside).expect("right");
    assert_eq!(
        settings.node.state_dir,
        Path::new("/var/lib/private/den"),
        "systemd says where a service keeps its state"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let problems = proxy(Some(Path::new("/no/such/proxy.toml"))).expect_err("no file");
    assert!(
        problems.to_string().contains("/no/such/proxy.toml"),
        "{problems}"
    );
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(\\[?\\[?[a-z._]{0,12}\\]?\\]?( = )?[\"0-9a-z\\[\\],{}]{0,8}\n){0,12}") {
        drop(parse_proxy("proxy.toml", &text, &outside(&[])));
        drop(parse_node("node.toml", &text, &outside(&[])));
    }

    #[test]
    fn a_file_cut_anywhere_does_not_panic(cut in 0..PROXY_EXAMPLE.len()) {
        if let Some(text) = PROXY_EXAMPLE.get(..cut) {
            drop(parse_proxy("proxy.toml", text, &outside(&[])));
        }
    }
}
