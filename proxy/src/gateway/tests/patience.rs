//! How long a node is waited for before its first content: as long as it gets on, and not a moment longer than that.

use std::time::Duration;

use config::tier::Tier::{Heavy, Primary};
use policy::record::Ending;
use serde_json::json;

use super::house::{House, Plans, stream_to, to};
use super::node::{Act, answer, says};

/// Less than any of the waits here.
const PAUSE: Duration = Duration::from_millis(120);

fn hasty() -> Plans {
    let mut plans = Plans::default();
    plans.routing.first_byte_timeout = 2 * PAUSE;
    plans.routing.stall_after = PAUSE;
    plans
}

/// Five words of a node and then an answer, each after a pause: three times as long as a node may be silent.
fn slowly(words: [&str; 5]) -> Act {
    let mut events: Vec<String> = words.map(ToOwned::to_owned).into();
    events.extend(says("at last"));
    Act::Slowly(PAUSE, events)
}

#[tokio::test]
async fn a_long_prompt_a_queue_and_a_load_are_no_failures() {
    for words in [
        [
            ": prefill 0/4096",
            ": prefill 1024/4096",
            ": prefill 2048/4096",
            ": prefill 3072/4096",
            ": prefill 4096/4096",
        ],
        [
            ": queue 2",
            ": queue 2",
            ": queue 1",
            ": queue 1",
            ": queue 0",
        ],
        [
            ": load 10",
            ": load 40",
            ": load 80",
            ": load 99",
            ": prefill 0/12",
        ],
    ] {
        let mut body = stream_to("primary");
        for streams in [true, false] {
            body["stream"] = json!(streams);
            let house = House::planned(hasty(), vec![(&[Primary], vec![slowly(words)])]).await;
            let (client, record) = house.chat(&body).await;
            assert_eq!(record.outcome, Ending::Ok, "{words:?}: {}", client.text());
            assert_eq!(record.attempts.len(), 1, "{:?}", record.attempts);
            assert_eq!(house.nodes[0].seen().len(), 1, "it was asked once");
        }
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_get_on_is_given_up() {
    let stuck = Act::Slowly(PAUSE, vec![": prefill 1024/4096".to_owned(); 20]);
    let nodes: Vec<(&[_], _)> = vec![
        (&[Heavy], vec![stuck]),
        (&[Primary], vec![Act::Stream(says("somebody else"))]),
    ];
    let house = House::planned(hasty(), nodes).await;
    let (client, record) = house.chat(&stream_to("heavy")).await;
    assert_eq!(client.said(), "somebody else");
    assert_eq!(record.attempts[0].outcome, "timed_out");
}

#[tokio::test]
async fn whole_answers_leave_a_node_that_answers_nothing_any_more() {
    let nodes: Vec<(&[_], _)> = vec![
        (&[Heavy], vec![Act::Hang(vec![])]),
        (&[Primary], vec![Act::Reply(200, answer("somebody else"))]),
    ];
    let house = House::planned(hasty(), nodes).await;
    let mut body = to("heavy");
    body["n"] = json!(2);
    let (client, record) = house.chat(&body).await;
    assert_eq!(record.outcome, Ending::Ok, "{}", client.text());
    assert_eq!(record.attempts[0].outcome, "connect_failed");
    // Asked how it is, it said nothing.
    assert!(house.nodes[0].seen().len() > 1);
}
