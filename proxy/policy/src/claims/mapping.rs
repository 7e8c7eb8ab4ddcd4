//! Finds values in claims by the paths of the settings, and reads groups, plan and administration out of them. Trusts the
//! signature check before it; believes no shape: a wrong one is refused, never skipped.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{ClaimRefusal, IssuerRules};
use crate::identity::{GROUP_CHARS_MAX, GROUPS_MAX};

/// The value at a path: the member of exactly that name if there is one (`https://example.org/groups`), else the parts between
/// dots one inside the other (`realm_access.roles`), where a part may hold dots itself.
pub(super) fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(at, _)| {
        let (head, rest) = path.split_at_checked(at)?;
        let inner = claims.get(head)?.as_object()?;
        find(inner, rest.strip_prefix('.')?)
    })
}

/// The groups of a person: an array of texts or one text. Sorted, each once.
pub(super) fn groups(
    claims: &Map<String, Value>,
    rules: &IssuerRules,
) -> Result<Vec<Arc<str>>, ClaimRefusal> {
    let Some(path) = &rules.groups_claim else {
        return Ok(Vec::new());
    };
    let wrong = || ClaimRefusal::WrongMapping(path.clone(), "a list of texts");
    let mut groups: Vec<Arc<str>> = match find(claims, path) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one.as_str().into()],
        Some(Value::Array(many)) => many
            .iter()
            .map(|one| one.as_str().map(Arc::from))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?,
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => return Err(wrong()),
    };
    groups.retain(|group| !group.is_empty() && group.chars().count() <= GROUP_CHARS_MAX);
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > GROUPS_MAX {
        return Err(ClaimRefusal::TooManyGroups(path.clone(), groups.len()));
    }
    Ok(groups)
}

/// The plan that the claim names, if there is such a plan; else the issuer's. The first match of a list counts.
pub(super) fn plan(claims: &Map<String, Value>, rules: &IssuerRules) -> Option<Arc<str>> {
    let named = rules
        .plan_claim
        .as_deref()
        .and_then(|path| find(claims, path));
    texts(named)
        .into_iter()
        .find_map(|name| rules.plans.get(name).cloned())
        .or_else(|| rules.plan.clone())
}

/// Whether the claims make an administrator: `true`, or one of the values of the settings. Nothing else does.
pub(super) fn is_admin(claims: &Map<String, Value>, rules: &IssuerRules) -> bool {
    let Some(found) = rules
        .admin_claim
        .as_deref()
        .and_then(|path| find(claims, path))
    else {
        return false;
    };
    if rules.admin_values.is_empty() {
        return found == &Value::Bool(true);
    }
    texts(Some(found))
        .iter()
        .any(|text| rules.admin_values.iter().any(|value| value == text))
}

/// Whether every claim that the settings demand has one of its values.
pub(super) fn check_required(
    claims: &Map<String, Value>,
    rules: &IssuerRules,
) -> Result<(), ClaimRefusal> {
    for (path, values) in &rules.require {
        let found = texts(find(claims, path));
        if !found
            .iter()
            .any(|text| values.iter().any(|value| value == text))
        {
            return Err(ClaimRefusal::NotRequired(path.clone()));
        }
    }
    Ok(())
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        Some(Value::Bool(true)) => vec!["true"],
        Some(Value::Bool(false)) => vec!["false"],
        None | Some(Value::Null | Value::Number(_) | Value::Object(_)) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(claims: &Value, path: &str) -> Option<Value> {
        find(claims.as_object()?, path).cloned()
    }

    #[test]
    fn dotted_namespaced_and_plain_claims_are_found() {
        let claims = json!({
            "groups": ["a"],
            "realm_access": {"roles": ["b"]},
            "https://example.org/groups": ["c"],
            "https://example.org/app": {"roles": {"x.y": ["d"]}},
            "a": {"b": 1}, "a.b": 2,
        });
        for (path, want) in [
            ("groups", json!(["a"])),
            ("realm_access.roles", json!(["b"])),
            ("https://example.org/groups", json!(["c"])),
            ("https://example.org/app.roles.x.y", json!(["d"])),
            ("a.b", json!(2)),
        ] {
            assert_eq!(at(&claims, path), Some(want), "{path}");
        }
        for missing in [
            "",
            ".",
            "groups.0",
            "realm_access",
            "realm_access.",
            "a.b.c",
            "a..b",
        ] {
            let found = at(&claims, missing);
            assert!(
                found.is_none() || missing == "realm_access",
                "{missing}: {found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_or_hangs(path in "[a-c.]{0,40}") {
            let claims = json!({"a": {"a": {"b": {"c": 1}}, "b.c": {"a": 2}}, "a.a": {"a": {"c": 3}}});
            let _found = at(&claims, &path);
        }
    }
}
