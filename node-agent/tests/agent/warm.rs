//! What a node tells of the conversations that it holds: the links that the proxy sent along, as long as the worker that read them lives.

use std::time::Duration;

use config::settings::node::TierSettings;
use config::tier::Tier;
use node_agent::tiers::Phase;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Node, PATIENCE, post, tiny_fast};

const LINKS: [&str; 2] = ["00112233445566aa", "ffeeddccbbaa0099"];

#[tokio::test]
async fn a_node_reports_the_links_of_what_it_has_read_and_none_of_another_worker() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let room = node.tiers.room(Tier::Fast).expect("there").clone();
    assert!(room.report().prefixes.is_empty());
    let body = json!({
        "model": "fast",
        "messages": [{"role": "user", "content": "Tell me of the sea and of the ships that go there."}],
        "max_tokens": 4,
    });
    let mut request = post("/v1/chat/completions", &body);
    let links = LINKS.join(",");
    let header = links.parse().expect("visible");
    request.headers_mut().insert("x-hearth-prefix", header);
    let answer = node.client().await.ask(request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut held = room.ready().expect("ready").worker.held();
    let told = timeout(PATIENCE, held.wait_for(|held| held.len() == 2)).await;
    assert!(told.is_ok(), "the worker tells what it holds");
    assert_eq!(room.report().prefixes, LINKS);

    // Another worker has read nothing.
    let before = room.starts();
    room.change(TierSettings {
        slots: 2,
        keep_alive: Some(Duration::from_hours(1)),
        ..tiny_fast()
    });
    let mut phases = room.phases();
    let swapped =
        phases.wait_for(|phase| matches!(phase, Phase::Ready(ready) if ready.card.slots == 2));
    assert!(
        timeout(PATIENCE, swapped).await.is_ok(),
        "{:?}",
        room.phase()
    );
    assert!(room.starts() > before);
    assert!(room.report().prefixes.is_empty());
}
