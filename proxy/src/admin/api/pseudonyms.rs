//! Takes people's names out of an act before it is written down. A line of the audit log cannot be changed later without breaking
//! the chain, and a person may ask to be forgotten: so no line holds more than the hashed name, by which the line is found while
//! the account exists and which says nothing when it is gone. Names of machines, keys and plans stay.

use config::ids::UserId;
use policy::identity::Subject;
use serde_json::Value;

use crate::store::ledger::AuditAct;

/// What stands before a person's name where it may be another kind of name.
pub(super) const USER: &str = "user:";
/// Acts whose target is a person begin so.
const OF_PEOPLE: &str = "user.";

/// The hashed name of a person, as in logs and lists.
pub(super) fn of(id: &str) -> String {
    Subject::of_user(&UserId::new(id)).as_str().to_owned()
}

/// The act, without the name of anybody.
pub(super) fn hidden(mut act: AuditAct) -> AuditAct {
    let is_person = act.action.starts_with(OF_PEOPLE);
    act.actor = prefixed(&act.actor);
    act.target = if is_person {
        of(&act.target)
    } else {
        prefixed(&act.target)
    };
    view(&mut act.before, is_person);
    view(&mut act.after, is_person);
    act
}

fn prefixed(text: &str) -> String {
    match text.strip_prefix(USER) {
        Some(id) => format!("{USER}{}", of(id)),
        None => text.to_owned(),
    }
}

fn view(value: &mut Value, is_person: bool) {
    let Some(members) = value.as_object_mut() else {
        return;
    };
    let owner = members.get("owner").and_then(Value::as_str);
    let owner = owner.map(str::to_owned);
    for (name, value) in members.iter_mut() {
        let Some(text) = value.as_str() else {
            continue;
        };
        // A key is often called as its owner is, and then its name is a person's.
        let is_name = match name.as_str() {
            "owner" => true,
            "id" => is_person,
            "name" => owner.as_deref() == Some(text),
            _ => false,
        };
        if is_name {
            *value = of(text).into();
        } else if name == "whom" {
            *value = prefixed(text).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use config::ids::RequestId;
    use serde_json::json;

    use super::*;

    fn act(action: &str, target: &str, after: Value) -> AuditAct {
        AuditAct {
            at_unix_ms: 1,
            actor: "user:https://idp.example|grace".into(),
            from: "192.0.2.7".into(),
            request_id: RequestId::new("req_1"),
            action: action.into(),
            target: target.into(),
            before: Value::Null,
            after,
        }
    }

    #[test]
    fn no_act_keeps_the_name_of_a_person() {
        let ada = "https://idp.example|ada";
        let acts = [
            act("user.patch", ada, json!({"id": ada, "plan": "family"})),
            act("user.export", ada, Value::Null),
            act("user.erase", ada, Value::Null),
            act(
                "denial.put",
                &format!("user:{ada}"),
                json!({"whom": format!("user:{ada}")}),
            ),
            act(
                "key.create",
                "4fJ0aXb2Qz",
                json!({"id": "4fJ0aXb2Qz", "owner": ada, "name": ada}),
            ),
        ];
        for act in acts {
            let hidden = hidden(act);
            let line = serde_json::to_string(&hidden).unwrap();
            assert!(!line.contains("ada") && !line.contains("grace"), "{line}");
            assert!(
                line.contains(&of(ada)),
                "the same person everywhere: {line}"
            );
        }
    }

    #[test]
    fn names_of_things_stay() {
        let made = json!({"id": "4fJ0aXb2Qz", "owner": "ada", "name": "laptop"});
        let hidden = hidden(act("key.create", "4fJ0aXb2Qz", made));
        assert_eq!(hidden.target, "4fJ0aXb2Qz");
        assert_eq!(hidden.after["id"], "4fJ0aXb2Qz");
        assert_eq!(hidden.after["name"], "laptop");
        let denied = json!({"whom": "tenant:home"});
        let hidden = super::hidden(act("denial.put", "tenant:home", denied));
        assert_eq!(hidden.target, "tenant:home");
        assert_eq!(hidden.after["whom"], "tenant:home");
    }
}
