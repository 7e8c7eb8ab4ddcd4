//! One issuer of JWTs, and the preset that turns a Firebase project into one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::is_safe_url;
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
/// Keys that a Firebase project already decides.
const DECIDED_BY_FIREBASE: [&str; 6] = [
    "issuer",
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
    let name = section.checked_text(
        "issuer",
        "an https:// URL (http:// only on this machine)",
        is_safe_url,
    );
    let audiences = section.list("audiences", 64, "a text").unwrap_or_default();
    let algorithms = algorithms(&mut section);
    let keys = keys(&mut section);
    let claim = section.text("user_claim");
    let issuer = Issuer {
        issuer: name.unwrap_or_default(),
        audiences,
        algorithms,
        keys,
        user_claim: claim.unwrap_or_else(|| "sub".to_owned()),
        firebase: false,
        leeway: section
            .secs("leeway_secs", 0..=60)
            .unwrap_or(Duration::from_secs(30)),
        email_verified: section.boolean("email_verified").unwrap_or(false),
        allow: allow(&mut section),
        plan: plan(&mut section, plans),
    };
    let issuer = if let Some(project) = firebase {
        of_firebase(&section, &project, issuer)
    } else {
        rules(&section, &issuer);
        issuer
    };
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

fn of_firebase(section: &Section<'_>, project: &str, issuer: Issuer) -> Issuer {
    for key in DECIDED_BY_FIREBASE {
        if section.was_given(key) {
            section.problem(key, "firebase_project decides this: remove one of them");
        }
    }
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
