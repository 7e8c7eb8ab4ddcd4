//! Both sides come and go: restarts, SIGTERM during a stream, the same identity, no help needed.

use std::time::Duration;

use tests::node::{Node, slow};
use tests::proxy::Proxy;
use tests::wait::until;

#[tokio::test]
async fn after_the_proxy_restarts_the_node_is_back_by_itself() {
    let mut proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    proxy.kill();
    proxy.restart().await;

    proxy.serves(&friend, &["fast"]).await;
    assert_eq!(
        friend.ask("fast", "Which tier are you?").await.text(),
        "I am the fast tier."
    );
}

#[tokio::test]
async fn after_the_node_restarts_it_is_the_same_node() {
    let proxy = Proxy::start().await;
    let mut home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let before = home.registration();

    home.kill();
    home.restart();

    until(
        "the restarted node answers",
        Duration::from_secs(20),
        || async { (friend.ask("fast", "Hello").await.status == 200).then_some(()) },
    )
    .await;
    assert_eq!(home.registration()["node_id"], before["node_id"]);
    assert_eq!(
        proxy.manage(&["node", "list"]).as_array().map(Vec::len),
        Some(1),
        "one machine, one node"
    );
}

#[tokio::test]
async fn sigterm_lets_a_running_stream_finish() {
    let mut proxy = Proxy::start().await;
    let _home = Node::named("den")
        .tier_from("fast", &slow(15, 20), 2)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let mut stream = friend.stream("fast", "Talk.").await;
    stream.data().await.expect("the stream starts");

    proxy.process().signal("TERM");

    let transcript = stream.collect().await;
    assert!(
        transcript.finish_reason().is_some(),
        "the answer was finished: {:?}",
        transcript.chunks.last()
    );
    assert!(transcript.done);
    let status = proxy.process().ended(Duration::from_secs(10)).await;
    assert!(status.success(), "an orderly end is a success: {status}");
    assert!(
        friend.try_get("/v1/models").await.is_none(),
        "nobody new is let in"
    );
}

#[tokio::test]
async fn an_answer_that_outlasts_the_grace_is_told_so_and_charged_for_what_was_made() {
    let mut proxy = Proxy::with().server("grace_secs = 1").start().await;
    let _home = Node::named("den")
        .tier_from("fast", &slow(400, 50), 1)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let mut stream = friend.stream("fast", "Talk to me.").await;
    stream.data().await.expect("it begins");
    proxy.process().signal("TERM");
    let transcript = stream.collect().await;
    let status = proxy.process().ended(Duration::from_secs(20)).await;

    assert!(status.success(), "{status}");
    let error = transcript.error().expect("an event says why");
    assert_eq!(error["code"], "draining", "{error}");
    assert!(!transcript.done, "an answer that was cut has no clean end");
    let told = transcript.chunks.len();
    proxy.restart().await;
    let books = proxy.manage(&["usage", "--records"]);
    let made = books[0]["tokens_out"]
        .as_u64()
        .expect("a line of the books");
    assert!(made > 0, "{books}");
    // Chunks with the role, the error and so on are none of a token.
    let told = u64::try_from(told).expect("few");
    assert!(made + 5 >= told, "{made} of {told}: {books}");
}

#[tokio::test]
async fn sigterm_with_nothing_to_do_ends_at_once() {
    let mut proxy = Proxy::start().await;
    let mut home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;

    home.process().signal("TERM");
    assert!(home.process().ended(Duration::from_secs(5)).await.success());
    proxy.process().signal("TERM");
    assert!(
        proxy
            .process()
            .ended(Duration::from_secs(5))
            .await
            .success()
    );
}

#[tokio::test]
async fn sighup_takes_a_new_certificate_and_drops_nothing() {
    let mut proxy = Proxy::start().await;
    let friend = proxy.friend();

    proxy.process().signal("HUP");

    for _ in 0..20 {
        assert_eq!(
            friend.get("/v1/models").await.status,
            200,
            "SIGHUP never kills"
        );
    }
    proxy.process().assert_running();
}
