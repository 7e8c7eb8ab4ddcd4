use std::net::IpAddr;

use config::ids::{KeyId, Tenant, UserId};
use config::settings::proxy::{Plan, Price, WhenUsedUp};
use config::tier::Tier;
use config::wire::wishes::Priority;

use super::{
    Asking, Outcome, Spend, Tiers, Used, concurrent_max, counters, downgrade, ip_counters,
    is_local_only, micros, priority, slot, spent, stored_counters,
};
use crate::calendar::Calendar;
use crate::identity::Principal;
use crate::limit::{Counter, Elastic, Kind, Level, Measure, Name};
use crate::testing::limits;

const NOON_MS: u64 = 20_000 * 86_400_000 + 43_200_000;

fn ada(plan: Plan) -> Principal {
    Principal::person(UserId::new("https://id.example.org|ada"), plan)
}

fn ip() -> IpAddr {
    "192.0.2.7".parse().expect("an address")
}

fn of(
    principal: &Principal,
    limits: &config::settings::proxy::Limits,
    kind: Kind,
    spend: Spend,
) -> Vec<Counter> {
    let calendar = Calendar::new(limits, NOON_MS);
    counters(&Asking {
        principal,
        ip: ip(),
        kind,
        spend,
        limits,
        calendar: &calendar,
        now_unix_ms: NOON_MS,
    })
}

fn summary(counters: &[Counter]) -> Vec<(String, u64)> {
    counters
        .iter()
        .map(|counter| (counter.name.to_string(), counter.rule.limit()))
        .collect()
}

fn named(all: &[(&str, u64)]) -> Vec<(String, u64)> {
    all.iter()
        .map(|(name, limit)| ((*name).to_owned(), *limit))
        .collect()
}

fn plain(plan: Plan, kind: Kind) -> Vec<(String, u64)> {
    summary(&of(&ada(plan), &limits(), kind, Spend::default()))
}

#[test]
fn each_kind_is_charged_to_its_own_counters() {
    let none = Plan::default();
    assert_eq!(
        plain(none, Kind::Text),
        named(&[("text-min-ip", 30), ("text-min", 30), ("text-day", 100)])
    );
    assert_eq!(
        plain(none, Kind::Media),
        named(&[("media-min-ip", 10), ("media-min", 10), ("media-day", 20)])
    );
    assert_eq!(
        plain(none, Kind::Health),
        named(&[("health-min-ip", 120), ("health-min", 120)])
    );
    let alone = ip_counters(ip(), Kind::Health, &limits(), &Tenant::default());
    assert_eq!(summary(&alone), named(&[("health-min-ip", 120)]));
}

#[test]
fn a_plan_replaces_figures_and_lifts_the_address_with_them() {
    let big = Plan {
        text_per_minute: Some(300),
        text_per_day: Some(5_000),
        concurrent: Some(2),
        ..Plan::default()
    };
    assert_eq!(
        plain(big, Kind::Text),
        named(&[("text-min-ip", 300), ("text-min", 300), ("text-day", 5_000)])
    );
    assert_eq!(concurrent_max(&ada(big), &limits()), 2);
    let small = Plan {
        text_per_minute: Some(5),
        media_per_day: Some(0),
        ..Plan::default()
    };
    assert_eq!(
        plain(small, Kind::Text),
        named(&[("text-min-ip", 30), ("text-min", 5), ("text-day", 100)]),
        "a small plan does not shrink the address for others"
    );
    assert_eq!(plain(small, Kind::Media)[2], ("media-day".to_owned(), 0));
}

#[test]
fn an_override_goes_before_the_plan_and_the_plan_before_what_everybody_has() {
    let mut limits = limits();
    limits.everyone = Plan {
        tokens_per_day: Some(1),
        tokens_per_month: Some(2),
        ..Plan::default()
    };
    let family = Plan {
        tokens_per_day: Some(10),
        text_per_day: Some(11),
        media_per_day: Some(12),
        ..Plan::default()
    };
    limits.plans.insert("family".to_owned(), family);
    let mut ada = ada(Plan {
        media_per_day: Some(100),
        ..Plan::default()
    });
    ada.plan_name = Some("family".into());
    let plan = super::of_person(&ada, &limits);
    assert_eq!(
        (
            plan.tokens_per_day,
            plan.tokens_per_month,
            plan.text_per_day,
            plan.media_per_day
        ),
        (Some(10), Some(2), Some(11), Some(100))
    );
    ada.plan_name = Some("gone".into());
    assert_eq!(super::of_person(&ada, &limits).tokens_per_day, Some(1));
}

#[test]
fn the_tree_holds_address_key_person_groups_tenant_and_service() {
    let mut limits = limits();
    let tokens = |limit| Plan {
        tokens_per_month: Some(limit),
        ..Plan::default()
    };
    limits.groups.insert("family".to_owned(), tokens(5));
    limits.tenants.insert("home".to_owned(), tokens(6));
    limits.service = Some(Plan {
        concurrent: Some(64),
        ..tokens(7)
    });
    let mut ada = ada(tokens(4));
    ada.key = Some(KeyId::new("k1"));
    ada.key_plan = Some(tokens(3));
    ada.groups = vec!["family".into(), "nobody counts this one".into()];
    let spend = Spend {
        prompt_tokens: 9,
        answer: Elastic { want: 90, min: 1 },
        in_progress: true,
        ..Spend::default()
    };
    let all = of(&ada, &limits, Kind::Text, spend);
    assert_eq!(
        summary(&all),
        named(&[
            ("text-min-ip", 30),
            ("key-tokens-month", 3),
            ("text-min", 30),
            ("text-day", 100),
            ("tokens-month", 4),
            ("concurrency", 16),
            ("group-tokens-month", 5),
            ("org-tokens-month", 6),
            ("service-tokens-month", 7),
            ("service-concurrency", 64),
        ])
    );
    let slot = slot(ada.tenant(), &limits);
    for counter in &all {
        let prefix = format!("{{{slot}}}:");
        assert!(
            counter.key.starts_with(&prefix),
            "{}: one slot for all",
            counter.key
        );
    }
    let keys: std::collections::BTreeSet<_> = all.iter().map(|counter| &counter.key).collect();
    assert_eq!(keys.len(), all.len(), "different keys");
    let tokens = all
        .iter()
        .find(|one| one.name == Name::user(Measure::TokensMonth));
    let tokens = tokens.expect("the counter");
    assert!(
        tokens.key.ends_with(":tokens-month:2024-10"),
        "{}",
        tokens.key
    );
    assert_eq!((tokens.charge(0), tokens.charge(90)), (9, 99));
}

#[test]
fn a_front_end_s_address_does_not_count_for_its_end_users() {
    let mut front = ada(Plan::default());
    front.may_act_as = true;
    let bob = front.acting_as("bob").expect("a named end user");
    let all = of(&bob, &limits(), Kind::Text, Spend::default());
    assert!(
        all.iter()
            .all(|counter| counter.name.level != Level::Address)
    );
}

#[test]
fn budgets_of_a_tier_count_only_there_and_may_lead_to_a_smaller_one() {
    let plan = Plan {
        heavy_tokens_per_day: Some(1_000),
        when_heavy_is_used_up: Some(WhenUsedUp::Downgrade),
        ..Plan::default()
    };
    let ada = ada(plan);
    let names = |tier| {
        let spend = Spend {
            tiers: Tiers::of([tier]),
            ..Spend::default()
        };
        summary(&of(&ada, &limits(), Kind::Text, spend))
    };
    assert!(names(Tier::Heavy).contains(&("tokens-day-heavy".to_owned(), 1_000)));
    assert!(
        names(Tier::Fast)
            .iter()
            .all(|(name, _)| !name.contains("heavy"))
    );
    let heavy = Name {
        level: Level::User,
        measure: Measure::TokensDay,
        tier: Some(Tier::Heavy),
    };
    let limits = limits();
    assert_eq!(
        downgrade(&ada, &limits, Tier::Heavy, heavy),
        Some(Tier::Primary)
    );
    let mut only_fast = ada.clone();
    only_fast.tiers = Some(vec![Tier::Heavy, Tier::Fast]);
    assert_eq!(
        downgrade(&only_fast, &limits, Tier::Heavy, heavy),
        Some(Tier::Fast)
    );
    let other = Name::user(Measure::TokensDay);
    assert_eq!(
        downgrade(&ada, &limits, Tier::Heavy, other),
        None,
        "all tiers are used up"
    );
    let refusing = Principal {
        plan: Plan::default(),
        ..ada
    };
    assert_eq!(downgrade(&refusing, &limits, Tier::Heavy, heavy), None);
}

#[test]
fn only_the_tier_that_answered_is_charged_for_its_tokens() {
    let plan = Plan {
        tokens_per_day: Some(9_000),
        heavy_tokens_per_day: Some(1_000),
        primary_tokens_per_day: Some(2_000),
        ..Plan::default()
    };
    let spend = Spend {
        prompt_tokens: 10,
        answer: Elastic { want: 100, min: 1 },
        tiers: Tiers::of([Tier::Heavy, Tier::Primary]),
        ..Spend::default()
    };
    let all = of(&ada(plan), &limits(), Kind::Text, spend);
    let charged = |used: Used| {
        let names = all.iter().map(|counter| counter.name.to_string());
        let spent = spent(&all, 100, &Outcome::Served(used));
        names.zip(spent).skip(3).collect::<Vec<_>>()
    };
    let used = Used {
        prompt_tokens: 10,
        answer_tokens: 7,
        tier: Some(Tier::Primary),
        ..Used::default()
    };
    assert_eq!(
        charged(used),
        named(&[
            ("tokens-day", 17),
            ("tokens-day-heavy", 0),
            ("tokens-day-primary", 17)
        ])
    );
    let nobody = charged(Used::default());
    assert!(nobody.iter().all(|(_, spent)| *spent == 0), "{nobody:?}");
}

#[test]
fn what_an_administrator_set_for_a_person_goes_before_all_plans() {
    let mut ada = ada(Plan {
        text_per_day: Some(50),
        ..Plan::default()
    });
    ada.overrides = Plan {
        text_per_day: Some(7),
        ..Plan::default()
    };
    let all = of(&ada, &limits(), Kind::Text, Spend::default());
    assert!(summary(&all).contains(&("text-day".to_owned(), 7)));
}

#[test]
fn settlement_charges_what_was_used_and_frees_the_place() {
    let plan = Plan {
        tokens_per_day: Some(1_000),
        micros_per_day: Some(1_000_000),
        ..Plan::default()
    };
    let price = Price {
        input: 200_000,
        cached_input: 20_000,
        output: 600_000,
    };
    let spend = Spend {
        prompt_tokens: 100,
        answer: Elastic { want: 400, min: 1 },
        price,
        in_progress: true,
        ..Spend::default()
    };
    let all = of(&ada(plan), &limits(), Kind::Text, spend);
    assert_eq!(
        summary(&all)[3..],
        named(&[
            ("tokens-day", 1_000),
            ("money-day", 1_000_000),
            ("concurrency", 16)
        ])
    );
    let charged: Vec<u64> = all.iter().map(|counter| counter.charge(400)).collect();
    assert_eq!(charged[3..], [500, 20 + 240, 1]);
    let used = Used {
        prompt_tokens: 90,
        cached_tokens: 50,
        answer_tokens: 10,
        tier: Some(Tier::Fast),
        price,
    };
    assert_eq!(used.micros(), 8 + 1 + 6);
    assert_eq!(
        spent(&all, 400, &Outcome::Served(used)),
        [1, 1, 1, 100, 15, 0]
    );
    assert_eq!(spent(&all, 400, &Outcome::GivenBack), [0; 6]);
    assert_eq!(spent(&all, 400, &Outcome::Unknown), [1, 1, 1, 500, 260, 0]);
    assert_eq!(micros(1, 1), 1, "money is rounded up");
}

#[test]
fn keys_are_hashed_short_and_carry_the_day() {
    let all = of(
        &ada(Plan::default()),
        &limits(),
        Kind::Text,
        Spend::default(),
    );
    for counter in &all {
        assert!(counter.key.len() <= 64, "{}", counter.key);
        assert!(!counter.key.contains("ada") && !counter.key.contains("192"));
        assert!(counter.key.starts_with("{home}:"));
    }
    let day = all.last().expect("the day");
    assert!(day.key.ends_with(":text-day:2024-10-04"), "{}", day.key);
}

#[test]
fn days_begin_where_the_plan_lives() {
    let plan = Plan {
        time_zone: Some("Pacific/Kiritimati".parse().expect("a zone")),
        ..Plan::default()
    };
    let all = of(&ada(plan), &limits(), Kind::Text, Spend::default());
    let day = all.last().expect("the day");
    assert!(day.key.ends_with(":text-day:2024-10-05"), "{}", day.key);
}

#[test]
fn addresses_of_one_v6_network_share_a_counter() {
    let key = |ip: &str| {
        let ip = ip.parse().expect("an address");
        ip_counters(ip, Kind::Text, &limits(), &Tenant::default())
            .pop()
            .map(|one| one.key)
    };
    assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
    assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
    assert_eq!(key("192.0.2.7"), key("::ffff:192.0.2.7"));
    assert_ne!(key("192.0.2.7"), key("192.0.2.8"));
}

#[test]
fn stored_bytes_are_held_by_the_person_and_by_the_groups_that_bound_them() {
    let mut limits = limits();
    let plan = Plan {
        stored_bytes: Some(1_000),
        ..Plan::default()
    };
    limits.groups.insert("family".to_owned(), plan);
    let mut ada = ada(Plan::default());
    ada.groups = vec!["family".into()];
    let all = stored_counters(&ada, &limits, 77);
    assert_eq!(
        summary(&all),
        named(&[("media-bytes", 500_000_000), ("group-media-bytes", 1_000)])
    );
    assert!(all.iter().all(|counter| counter.cost == 77));
}

#[test]
fn residency_is_said_once_and_taken_back_by_nobody_narrower() {
    let stays = Plan {
        local_only: Some(true),
        ..Plan::default()
    };
    let goes = Plan {
        local_only: Some(false),
        ..Plan::default()
    };
    let free = ada(Plan::default());
    assert!(!is_local_only(&free, &limits()));
    assert_eq!(goes.over(stays).local_only, Some(true));
    assert_eq!(stays.over(goes).local_only, Some(true));
    assert_eq!(goes.over(Plan::default()).local_only, Some(false));

    let key = Principal {
        local_only: true,
        overrides: goes,
        ..ada(goes)
    };
    assert!(is_local_only(&key, &limits()), "the key says so");
    let person = Principal {
        overrides: stays,
        key_plan: Some(goes),
        ..ada(goes)
    };
    assert!(
        is_local_only(&person, &limits()),
        "the administrator says so"
    );
    let mut everyone = limits();
    everyone.everyone = stays;
    assert!(
        is_local_only(&ada(goes), &everyone),
        "everybody's plan says so"
    );
    let mut group = limits();
    group.groups.insert("kids".to_owned(), stays);
    let kid = Principal {
        groups: vec!["kids".into()],
        ..ada(goes)
    };
    assert!(is_local_only(&kid, &group), "the family says so");
    assert!(!is_local_only(&free, &group));
}

#[test]
fn a_plan_caps_the_class_and_a_request_may_only_ask_for_less() {
    let capped = Plan {
        priority: Some(Priority::Normal),
        ..Plan::default()
    };
    let person = ada(capped);
    for (wished, granted) in [
        (Priority::Interactive, Priority::Normal),
        (Priority::Normal, Priority::Normal),
        (Priority::Batch, Priority::Batch),
    ] {
        assert_eq!(priority(&person, &limits(), wished), granted);
    }
    let free = ada(Plan::default());
    let wished = Priority::Interactive;
    assert_eq!(priority(&free, &limits(), wished), wished);
    let batch = Plan {
        priority: Some(Priority::Batch),
        ..Plan::default()
    };
    assert_eq!(capped.over(batch).priority, Some(Priority::Batch));
    assert_eq!(batch.over(capped).priority, Some(Priority::Batch));
    let key = Principal {
        key_plan: Some(batch),
        ..free
    };
    assert_eq!(priority(&key, &limits(), wished), Priority::Batch);
}
