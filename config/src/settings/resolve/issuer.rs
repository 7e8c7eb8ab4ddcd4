//! One issuer of JWTs, and the preset that turns a Firebase project into one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::is_safe_url;
use crate::ids::Tenant;
use crate::settings::proxy::{Issuer, IssuerKeys, Plan};
use crate::settings::read::Section;

/// Where Google publishes the keys of Firebase ID tokens as a JWK set.
const FIREBASE_JWKS: &str =
    "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com";
/// Asymmetric algorithms alone: with `HS256` whoever can verify a token can make one.
const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];
const DEFAULT_ALGORITHMS: [&str; 3] = ["RS256", "ES256", "EdDSA"];
/// Google Sign-In: both spellings of `iss` that Google documents.
const GOOGLE: &str = "https://accounts.google.com";
const GOOGLE_ALIAS: &str = "accounts.google.com";
/// Keys that a preset already decides.
const DECIDED_BY_PRESET: [&str; 7] = [
    "issuer",
    "issuer_aliases",
    "audiences",
    "algorithms",
    "jwks_url",
    "jwks_file",
    "user_claim",
];

/// One `[[auth.issuers]]`.
pub(super) fn issuer(mut section: Section<'_>, plans: &BTreeMap<String, Plan>) -> Issuer {
    let want = "a Firebase project id: 4 to 30 small letters, digits and -";
    let firebase = section.checked_text("firebase_project", want, |project| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (4..=30).contains(&project.len()) && project.chars().all(plain)
    });
    let google: Option<Vec<String>> = section.list("google_client_ids", 64, "a text");
    let name = section.checked_text(
        "issuer",
        "an https:// URL (http:// only on this machine)",
        is_safe_url,
    );
    let audiences = section.list("audiences", 64, "a text").unwrap_or_default();
    let algorithms = algorithms(&mut section);
    let keys = keys(&mut section);
    let issuer = Issuer {
        issuer: name.unwrap_or_default(),
        aliases: section
            .list("issuer_aliases", 8, "a text")
            .unwrap_or_default(),
        tenant: tenant(&mut section),
        audiences,
        algorithms,
        keys,
        user_claim: claim(&mut section, "user_claim").unwrap_or_else(|| "sub".to_owned()),
        groups_claim: claim(&mut section, "groups_claim"),
        plan_claim: claim(&mut section, "plan_claim"),
        admin_claim: claim(&mut section, "admin_claim"),
        admin_values: section
            .list("admin_values", 64, "a text")
            .unwrap_or_default(),
        require: require(&mut section),
        firebase: false,
        leeway: section
            .secs("leeway_secs", 0..=60)
            .unwrap_or(Duration::from_secs(30)),
        email_verified: section.boolean("email_verified").unwrap_or(false),
        allow: allow(&mut section),
        plan: plan(&mut section, plans),
    };
    let issuer = match (firebase, google) {
        (Some(project), google) => {
            if google.is_some() {
                section.problem(
                    "google_client_ids",
                    "firebase_project is set too: set one of them",
                );
            }
            of_firebase(&section, &project, issuer)
        }
        (None, Some(clients)) => of_google(&section, clients, issuer),
        (None, None) => {
            rules(&section, &issuer);
            issuer
        }
    };
    if !issuer.admin_values.is_empty() && issuer.admin_claim.is_none() {
        section.problem(
            "admin_values",
            "admin_claim is missing: the claim that has these values",
        );
    }
    section.close();
    issuer
}

fn rules(section: &Section<'_>, issuer: &Issuer) {
    if section.was_given("firebase_project") {
        // Wrong, and noted; what was meant decides the rest.
        return;
    }
    section.missing(
        "issuer",
        "the iss of the tokens, or firebase_project = \"...\"",
    );
    section.missing("audiences", "the aud of the tokens, such as [\"hearth\"]");
    if section.was_given("audiences") && issuer.audiences.is_empty() {
        let message = "empty: without one, tokens for other services would be let in";
        section.problem("audiences", message);
    }
}

fn decided_by(section: &Section<'_>, preset: &str) {
    for key in DECIDED_BY_PRESET {
        if section.was_given(key) {
            section.problem(key, format!("{preset} decides this: remove one of them"));
        }
    }
}

fn of_google(section: &Section<'_>, clients: Vec<String>, issuer: Issuer) -> Issuer {
    decided_by(section, "google_client_ids");
    if clients.is_empty() {
        section.problem(
            "google_client_ids",
            "empty: without one, tokens for other pages would be let in",
        );
    }
    Issuer {
        issuer: GOOGLE.to_owned(),
        aliases: vec![GOOGLE_ALIAS.to_owned()],
        audiences: clients,
        algorithms: vec!["RS256".to_owned()],
        keys: IssuerKeys::Discovery,
        user_claim: "sub".to_owned(),
        ..issuer
    }
}

fn of_firebase(section: &Section<'_>, project: &str, issuer: Issuer) -> Issuer {
    decided_by(section, "firebase_project");
    Issuer {
        issuer: format!("https://securetoken.google.com/{project}"),
        audiences: vec![project.to_owned()],
        algorithms: vec!["RS256".to_owned()],
        keys: IssuerKeys::Url(FIREBASE_JWKS.to_owned()),
        user_claim: "sub".to_owned(),
        firebase: true,
        ..issuer
    }
}

fn algorithms(section: &mut Section<'_>) -> Vec<String> {
    let Some(algorithms) = section.list::<String>("algorithms", ALGORITHMS.len(), "a text") else {
        return DEFAULT_ALGORITHMS.map(str::to_owned).to_vec();
    };
    if algorithms.is_empty() {
        section.problem("algorithms", "empty: at least one is needed");
    }
    for algorithm in &algorithms {
        if !ALGORITHMS.contains(&algorithm.as_str()) {
            let message = format!("{algorithm:?} is not one of {}", ALGORITHMS.join(", "));
            section.problem("algorithms", message);
        }
    }
    algorithms
}

fn keys(section: &mut Section<'_>) -> IssuerKeys {
    let url = section.checked_text(
        "jwks_url",
        "an https:// URL (http:// only on this machine)",
        is_safe_url,
    );
    let file = section.path("jwks_file");
    if section.was_given("jwks_url") && section.was_given("jwks_file") {
        section.problem("jwks_file", "jwks_url is set too: set one of them");
    }
    match (url, file) {
        (Some(url), _) => IssuerKeys::Url(url),
        (None, Some(file)) => IssuerKeys::File(file),
        (None, None) => IssuerKeys::Discovery,
    }
}

fn allow(section: &mut Section<'_>) -> Vec<String> {
    let allow: Vec<String> = section.list("allow", 10_000, "a text").unwrap_or_default();
    for entry in &allow {
        let good = entry
            .split_once('@')
            .is_some_and(|(_, domain)| super::is_host(domain) && domain.contains('.'));
        if !good {
            let message = format!("{entry:?} is neither an e-mail address nor an @domain");
            section.problem("allow", message);
        }
    }
    // Domains are compared without regard to case.
    allow.iter().map(|entry| entry.to_lowercase()).collect()
}

fn plan(section: &mut Section<'_>, plans: &BTreeMap<String, Plan>) -> Option<String> {
    let plan = section.text("plan")?;
    if !plans.contains_key(&plan) {
        let message = format!("{plan:?} is not a plan: [limits.plans.{plan}] is missing");
        section.problem("plan", message);
    }
    Some(plan)
}

fn tenant(section: &mut Section<'_>) -> Tenant {
    let Some(text) = section.text("tenant") else {
        return Tenant::default();
    };
    text.parse().unwrap_or_else(|why| {
        section.problem("tenant", format!("{text:?}: {why}"));
        Tenant::default()
    })
}

/// A claim's name or path.
fn claim(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    section.checked_text(key, "the name of a claim, at most 200 characters", |path| {
        (1..=200).contains(&path.len()) && !path.starts_with('.') && !path.ends_with('.')
    })
}

/// `claim=value`; a claim that comes several times may have any of its values.
fn require(section: &mut Section<'_>) -> Vec<(String, Vec<String>)> {
    let mut demanded: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let given: Vec<String> = section.list("require", 64, "a text").unwrap_or_default();
    for entry in given {
        match entry.split_once('=') {
            Some((path, value)) if !path.is_empty() && !value.is_empty() => {
                let values = demanded.entry(path.to_owned()).or_default();
                values.insert(value.to_owned());
            }
            Some(_) | None => {
                let message =
                    format!("{entry:?} is not \"claim=value\", such as \"hd=example.org\"");
                section.problem("require", message);
            }
        }
    }
    demanded
        .into_iter()
        .map(|(path, values)| (path, values.into_iter().collect()))
        .collect()
}
