//! A node gets in once, with one link, and stays the same node for ever; or it is told why not.

use std::time::Duration;

use tests::node::Node;
use tests::proxy::Proxy;
use tests::wait::until;

#[tokio::test]
async fn a_join_link_works_once() {
    let proxy = Proxy::start().await;
    let link = proxy.invite();
    let den = Node::named("den").tier("fast").prepare();
    den.join(&link);

    let attic = Node::named("attic").tier("fast").prepare();
    let said = attic.join_refused(&link);

    assert!(said.contains("used"), "one clear line: {said}");
    den.join(&link); // the same identity again is no new node
    assert_eq!(
        proxy.manage(&["node", "list"]).as_array().map(Vec::len),
        Some(1)
    );
}

#[tokio::test]
async fn a_revoked_node_is_out_within_seconds() {
    let proxy = Proxy::start().await;
    let den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let id = den.registration()["node_id"]
        .as_str()
        .expect("a joined node has an id")
        .to_owned();
    proxy.manage(&["node", "revoke", &id]);

    until(
        "the revoked node answers no more",
        Duration::from_secs(5),
        || async { (friend.ask("fast", "Hello").await.status == 503).then_some(()) },
    )
    .await;
}
