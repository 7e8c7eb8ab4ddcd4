//! A conversation returns to the machine that has read it, because the machines say what they hold: turn after turn, after the proxy
//! was started anew, and at another proxy of the house. No machine gets more than its share.

use std::collections::BTreeMap;
use std::time::Duration;

use tests::client::Client;
use tests::node::Node;
use tests::proxy::{Builder, Proxy};
use tests::redis::Redis;
use tests::talk::{Talk, Turn, words};
use tests::wait::until;

const NAMES: [&str; 3] = ["attic", "den", "loft"];
const TALKS: usize = 12;
const TURNS: usize = 6;
/// Words of a question: some fifty tokens.
const WORDS: usize = 24;
const ANSWER: u32 = 12;
const SOON: Duration = Duration::from_secs(30);

fn proxy() -> Builder {
    Proxy::generous().tunnel("heartbeat_secs = 1")
}

fn nodes(proxy: &Proxy) -> Vec<Node> {
    let join = |name: &&str| Node::named(name).tier("fast").join(proxy);
    NAMES.iter().map(join).collect()
}

async fn all_serve(proxy: &Proxy, client: &Client) {
    proxy.serves(client, &["fast"]).await;
    until("three machines serve", SOON, || async {
        (proxy.metric("hearth_nodes_ready").await >= 3.0).then_some(())
    })
    .await;
}

/// Waits until every machine has told the proxy what it holds.
async fn all_told(proxy: &Proxy) {
    until("three machines tell what they hold", SOON, || async {
        let series = NAMES.map(|name| format!("hearth_node_prefixes{{node=\"{name}\""));
        for one in &series {
            if proxy.metric(one).await < 1.0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// The next turn of each conversation, all but the idle ones, one after the other and in another order every round.
async fn round(talks: &mut [Talk], round: usize, idle: impl Fn(usize) -> bool) -> Vec<Turn> {
    let mut turns = Vec::new();
    for step in 0..talks.len() {
        let at = (step * 5 + round) % talks.len();
        if idle(at) {
            continue;
        }
        let seed = u64::try_from(at * 100 + round).expect("small");
        turns.push(talks[at].say("fast", &words(seed, WORDS)).await);
    }
    turns
}

fn assert_warm(turns: &[Turn]) {
    let warm = turns.iter().filter(|turn| turn.is_warm()).count();
    assert!(
        warm * 100 >= turns.len() * 95,
        "{warm} of {} turns were warm: {turns:#?}",
        turns.len()
    );
    let returned = turns
        .iter()
        .filter(|turn| turn.before.as_ref() == Some(&turn.node))
        .count();
    assert!(
        returned * 100 >= turns.len() * 95,
        "{returned} of {} turns returned to their machine",
        turns.len()
    );
}

#[tokio::test]
async fn later_turns_land_warm_before_and_after_a_restart_of_the_proxy() {
    let mut proxy = proxy().start().await;
    let _nodes = nodes(&proxy);
    let friend = proxy.friend();
    all_serve(&proxy, &friend).await;

    let talk = |_| Talk::new(friend.clone(), ANSWER);
    let mut talks: Vec<Talk> = (0..TALKS).map(talk).collect();
    let mut all = round(&mut talks, 0, |_| false).await;
    let mut later = Vec::new();
    for turn in 1..TURNS {
        // Every third one pauses in the middle, and comes back.
        let idle = |at: usize| at.is_multiple_of(3) && turn == 2;
        later.extend(round(&mut talks, turn, idle).await);
    }
    assert_warm(&later);
    all.extend(later.iter().cloned());
    let mut given: BTreeMap<&str, usize> = BTreeMap::new();
    for turn in &all {
        *given.entry(&turn.node).or_default() += 1;
    }
    let most = given.values().max().copied().unwrap_or(0);
    assert!(
        most * NAMES.len() * 10 <= all.len() * 12,
        "no machine gets more than 1.2 times its share: {given:?}"
    );
    tests::tell(&format!("{} later turns, {given:?}", later.len()));

    proxy.restart().await;
    all_serve(&proxy, &friend).await;
    all_told(&proxy).await;
    let again = round(&mut talks, TURNS, |_| false).await;
    assert_warm(&again);
}

#[tokio::test]
async fn a_conversation_goes_on_warm_at_another_proxy_of_the_house() {
    let redis = Redis::start().await;
    let doors = [
        proxy().counting_in(&redis).start().await,
        proxy().counting_in(&redis).start().await,
    ];
    let _nodes = nodes(&doors[0]);
    let bearer = doors[0].key("friend").1;
    let friends = [0, 1].map(|at: usize| doors[at].stranger().with_bearer(&bearer));
    for (door, friend) in doors.iter().zip(&friends) {
        all_serve(door, friend).await;
    }

    let talk = |_| Talk::new(friends[0].clone(), ANSWER);
    let mut talks: Vec<Talk> = (0..6).map(talk).collect();
    round(&mut talks, 0, |_| false).await;
    all_told(&doors[1]).await;
    for talk in &mut talks {
        talk.through(friends[1].clone());
    }
    assert_warm(&round(&mut talks, 1, |_| false).await);
}

#[tokio::test]
async fn two_people_who_say_the_same_find_nothing_of_each_other() {
    let proxy = proxy().start().await;
    let _node = Node::named("den").tier("fast").join(&proxy);
    let (ada, bob) = (proxy.friend_of("ada"), proxy.friend_of("bob"));
    proxy.serves(&ada, &["fast"]).await;
    let question = words(1, WORDS);
    Talk::new(ada.clone(), ANSWER).say("fast", &question).await;
    let again = Talk::new(ada, ANSWER).say("fast", &question).await;
    let other = Talk::new(bob, ANSWER).say("fast", &question).await;
    assert!(again.cached_tokens > 0, "{again:?}");
    assert_eq!(other.cached_tokens, 0, "{other:?}");
}
