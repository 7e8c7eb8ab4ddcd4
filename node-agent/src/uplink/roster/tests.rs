//! A house whose proxies come, go and have several names, in invented time.

use super::*;

const HOME: &str = "https://192.0.2.1";
const NAME: &str = "https://llm.example.org";

fn place(url: &str, proxy: &str) -> HubPlace {
    HubPlace {
        url: url.to_owned(),
        proxy: proxy.to_owned(),
        pin: None,
    }
}

fn line(url: &str, proxy: &str, state: State) -> Seen {
    Seen {
        place: place(url, ""),
        proxy: proxy.to_owned(),
        state,
    }
}

fn told(by: &[(&str, &[HubPlace])]) -> Told {
    by.iter()
        .map(|(who, hubs)| ((*who).to_owned(), hubs.to_vec()))
        .collect()
}

fn roster(remembered: &[HubPlace]) -> (Roster, Instant) {
    let now = Instant::now();
    (Roster::new(place(HOME, ""), remembered.to_vec(), now), now)
}

fn urls(places: &[HubPlace]) -> Vec<&str> {
    places.iter().map(|place| place.url.as_str()).collect()
}

#[test]
fn a_proxy_that_crashed_does_not_bear_witness_to_itself_and_is_given_up() {
    let (mut roster, now) = roster(&[]);
    let home = line(HOME, "1", State::Connected);
    let other = line("https://b", "2", State::Failed);
    let both = [place(HOME, "1"), place("https://b", "2")];
    let said = told(&[(HOME, &both[..1]), ("https://b", &both)]);
    let lines = [home, other];
    assert_eq!(roster.look(now, &lines, &said).leave, [""; 0]);
    let soon = now + GONE_AFTER.saturating_sub(Duration::from_secs(1));
    assert_eq!(roster.look(soon, &lines, &said).leave, [""; 0]);
    let plan = roster.look(now + GONE_AFTER, &lines, &said);
    assert_eq!(
        (plan.leave, plan.start),
        (vec!["https://b".to_owned()], vec![])
    );
}

#[test]
fn while_the_node_is_cut_off_from_all_nobody_is_given_up() {
    let (mut roster, now) = roster(&[]);
    let said = told(&[(HOME, &[place(HOME, "1"), place("https://b", "2")])]);
    let lines = [
        line(HOME, "1", State::Failed),
        line("https://b", "2", State::Failed),
    ];
    for minute in 0..10 {
        let plan = roster.look(now + Duration::from_mins(minute), &lines, &said);
        assert_eq!(
            plan,
            Plan {
                room: 6,
                ..Plan::default()
            }
        );
    }
    // Whoever is heard first has two minutes to name the others.
    let back = [line(HOME, "1", State::Connected), lines[1].clone()];
    let said = told(&[(HOME, &[place(HOME, "1")])]);
    let plan = roster.look(now + Duration::from_mins(10), &back, &said);
    assert_eq!(plan.leave, [""; 0]);
}

#[test]
fn lines_to_the_dead_make_room_for_a_proxy_that_lives() {
    let (mut roster, now) = roster(&[]);
    let mut lines = vec![line(HOME, "1", State::Connected)];
    lines.extend(
        (1..LINES_MAX).map(|dead| line(&format!("https://dead-{dead}"), "", State::Failed)),
    );
    let said = told(&[(HOME, &[place(HOME, "1")])]);
    let plan = roster.look(now, &lines, &said);
    assert_eq!((plan.leave, plan.room), (vec![], 0), "it may come back");
    let said = told(&[(HOME, &[place(HOME, "1"), place("https://new", "9")])]);
    let plan = roster.look(now, &lines, &said);
    assert_eq!(plan.leave, ["https://dead-1"]);
    assert_eq!((urls(&plan.start), plan.room), (vec!["https://new"], 1));
    let mut busy = lines.clone();
    for line in &mut busy {
        line.state = State::Connected;
    }
    let plan = roster.look(now, &busy, &said);
    assert_eq!(
        (plan.leave, plan.room),
        (vec![], 0),
        "no line that works ends"
    );
}

#[test]
fn a_proxy_joined_by_its_address_gets_no_second_line_under_its_name() {
    let (mut roster, now) = roster(&[]);
    let said = told(&[(HOME, &[place(NAME, "1"), place("https://b", "2")])]);
    let lines = [line(HOME, "1", State::Connected)];
    let plan = roster.look(now, &lines, &said);
    assert_eq!(plan.start, [place("https://b", "")]);
    // It restarts, which another one tells before its own line is back.
    let said = told(&[("https://b", &[place(NAME, "7"), place("https://b", "2")])]);
    let lines = [
        line(HOME, "1", State::Failed),
        line("https://b", "2", State::Connected),
    ];
    assert_eq!(roster.look(now, &lines, &said).start, []);
    // Its address leads nowhere any more.
    let plan = roster.look(now + ABSENT_MAX, &lines, &said);
    assert_eq!(plan.start, [place(NAME, "")]);
}

#[test]
fn of_two_lines_to_one_proxy_the_connected_one_stays_and_registers_again() {
    let (mut roster, now) = roster(&[]);
    let said = told(&[(NAME, &[place(NAME, "1")])]);
    let named = line(NAME, "1", State::Connected);
    let lines = [line(HOME, "1", State::Trying), named.clone()];
    let plan = roster.look(now, &lines, &said);
    assert_eq!(
        (plan.leave, plan.again),
        (vec![HOME.to_owned()], vec![NAME.to_owned()])
    );
    assert_eq!(plan.start, []);
    let alone = [named];
    assert_eq!(
        roster.look(now, &alone, &said).start,
        [],
        "the name stands for it"
    );
    let lost = [line(NAME, "1", State::Failed)];
    assert_eq!(roster.look(now, &lost, &said).start, [], "for a moment");
    let plan = roster.look(now + ABSENT_MAX, &lost, &said);
    assert_eq!(plan.start, [place(HOME, "")], "and not for ever");
    let both = [HOME, NAME].map(|url| line(url, "1", State::Connected));
    let plan = roster.look(now, &both, &said);
    assert_eq!(
        (plan.leave, plan.again),
        (vec![NAME.to_owned()], vec![HOME.to_owned()])
    );
}

#[test]
fn proxies_that_do_not_say_which_they_are_have_a_line_each() {
    let (mut roster, now) = roster(&[]);
    let said = told(&[(HOME, &[place(HOME, ""), place("https://b", "")])]);
    let lines = [line(HOME, "", State::Connected)];
    assert_eq!(urls(&roster.look(now, &lines, &said).start), ["https://b"]);
    let lines = [HOME, "https://b"].map(|url| line(url, "", State::Connected));
    assert_eq!(roster.look(now, &lines, &said).leave, [""; 0]);
}

#[test]
fn what_is_remembered_does_not_change_when_a_proxy_only_restarts() {
    let (mut roster, now) = roster(&[place(HOME, ""), place("https://b", "")]);
    let lines = [HOME, "https://b"].map(|url| line(url, "", State::Connected));
    for proxy in 0..20 {
        let restarted = place("https://b", &proxy.to_string());
        let stale = place("https://b", "stale");
        let said = told(&[(HOME, &[place(HOME, "1"), restarted, stale])]);
        assert_eq!(roster.look(now, &lines, &said).keep, None);
    }
    let said = told(&[(HOME, &[place(HOME, "1"), place("https://c", "3")])]);
    let kept = roster.look(now, &lines, &said).keep;
    assert_eq!(kept, Some(vec![place(HOME, ""), place("https://c", "")]));
}

#[test]
fn memory_counts_once_the_proxy_joined_has_failed_and_until_one_has_spoken() {
    let (mut roster, now) = roster(&[place("https://b", "")]);
    let none = Told::new();
    assert_eq!(urls(&roster.look(now, &[], &none).start), [HOME]);
    let trying = [line(HOME, "", State::Trying)];
    assert_eq!(roster.look(now, &trying, &none).start, []);
    let plan = roster.look(now + HEAD_START, &trying, &none);
    assert_eq!(urls(&plan.start), ["https://b"], "it takes its time");
    let failed = [line(HOME, "", State::Failed)];
    assert_eq!(urls(&roster.look(now, &failed, &none).start), ["https://b"]);
    let said = told(&[(HOME, &[place(HOME, "1")])]);
    let connected = [line(HOME, "1", State::Connected)];
    assert_eq!(roster.look(now + HEAD_START, &connected, &said).start, []);
    let again = roster.look(now + HEAD_START, &failed, &none);
    assert_eq!(again.start, [], "it has just begun, and knows only itself");
}

#[test]
fn a_proxy_with_a_new_key_gets_a_new_line_and_the_one_joined_does_not() {
    let (mut roster, now) = roster(&[]);
    let pinned = |url: &str| HubPlace {
        pin: Some("sha256-new".to_owned()),
        ..place(url, "")
    };
    let said = told(&[(
        "https://c",
        &[pinned(HOME), pinned("https://b"), place("https://c", "")],
    )]);
    let mut lines = vec![
        line(HOME, "", State::Failed),
        line("https://b", "", State::Connected),
        line("https://c", "", State::Connected),
    ];
    assert_eq!(roster.look(now, &lines, &said).leave, [""; 0]);
    lines[1].state = State::Failed;
    let plan = roster.look(now, &lines, &said);
    assert_eq!(
        (plan.leave, plan.start),
        (vec!["https://b".to_owned()], vec![pinned("https://b")])
    );
}
