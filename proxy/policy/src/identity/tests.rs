use std::net::IpAddr;

use config::ids::UserId;
use config::settings::proxy::Plan;
use config::tier::Tier;

use super::{Principal, Scope, Subject, network_of};

fn ada() -> Principal {
    Principal::person(UserId::new("https://id.example.org|ada"), Plan::default())
}

#[test]
fn scopes_read_as_they_are_written() {
    for scope in Scope::ALL {
        assert_eq!(scope.as_str().parse(), Ok(scope));
    }
    assert!("root".parse::<Scope>().is_err());
}

#[test]
fn a_person_may_ask_and_list_and_nothing_else() {
    let ada = ada();
    assert!(ada.may(Scope::Inference) && ada.may(Scope::Models));
    let refusal = ada
        .require(Scope::Metrics)
        .expect_err("not a client's scope");
    assert_eq!(refusal.label(), "missing_scope");
    let admin = Principal {
        admin: true,
        ..self::ada()
    };
    let by_scope = Principal {
        scopes: vec![Scope::Admin],
        ..self::ada()
    };
    assert!(
        Scope::ALL
            .into_iter()
            .all(|scope| admin.may(scope) && by_scope.may(scope))
    );
}

#[test]
fn lists_restrict_and_their_absence_does_not() {
    let narrow = Principal {
        tiers: Some(vec![Tier::Fast]),
        models: Some(Vec::new()),
        ..ada()
    };
    assert!(narrow.may_use_tier(Tier::Fast) && !narrow.may_use_tier(Tier::Heavy));
    assert!(!narrow.may_use_model("any"));
    assert!(ada().may_use_tier(Tier::Heavy) && ada().may_use_model("any"));
}

#[test]
fn subjects_are_short_stable_and_say_nothing() {
    let subject = ada().subject();
    let expected = Subject::of_user(&UserId::new("https://id.example.org|ada"));
    assert_eq!(subject, expected);
    assert_eq!(subject.as_str().len(), 18);
    assert!(subject.as_str().starts_with("u:"));
    let other = Subject::of_user(&UserId::new("https://id.example.org|bob"));
    assert_ne!(subject, other);
}

#[test]
fn an_ipv6_network_is_one_customer() {
    let network = |ip: &str| network_of(ip.parse::<IpAddr>().expect("an address")).to_string();
    assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    assert_eq!(network("192.0.2.7"), "192.0.2.7");
    assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
}

fn front_end() -> Principal {
    Principal {
        may_act_as: true,
        key: Some(config::ids::KeyId::new("k123456789")),
        ..ada()
    }
}

#[test]
fn a_trusted_front_end_names_its_end_users() {
    let bob = front_end().acting_as(" bob ").expect("may name");
    assert!(bob.user.as_str().starts_with("act:") && bob.user.as_str().ends_with(":bob"));
    assert_eq!(bob.acts_for, Some(ada().user));
    assert!(!bob.counts_address() && ada().counts_address());
    let again = bob.clone().acting_as("bob").expect("again");
    assert_eq!(again.user, bob.user, "naming twice nests nothing");
    let eve = front_end().acting_as("eve").expect("may name");
    assert_ne!(eve.subject(), bob.subject());
    assert_eq!(eve.key_subject(), bob.key_subject());
}

#[test]
fn whoever_may_not_name_end_users_stays_who_it_is() {
    let same = ada().acting_as("bob").expect("is ignored");
    assert_eq!(same, ada(), "`user` is a label for everybody else");
    for bad in ["", "  ", "a\nb", &"x".repeat(257)] {
        assert!(front_end().acting_as(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn an_email_is_found_again_without_being_kept() {
    assert_eq!(
        Subject::of_email("Ada@Example.org "),
        Subject::of_email("ada@example.org")
    );
    assert!(
        !Subject::of_email("ada@example.org")
            .as_str()
            .contains("ada")
    );
}
