//! How much: the figures of the house hold exactly, are told in every answer, and refuse in words a client understands.

use std::time::Duration;

use futures_util::future::join_all;
use tests::client::Reply;
use tests::issuer::Issuer;
use tests::node::Node;
use tests::proxy::Proxy;

const QUESTION: &str = "Hello";

fn admitted(replies: &[Reply]) -> usize {
    replies.iter().filter(|reply| reply.status == 200).count()
}

#[tokio::test]
async fn the_31st_request_of_a_minute_is_refused() {
    let proxy = Proxy::with()
        .limit("concurrent_per_user = 100")
        .limit("text_per_day = 1000")
        .start()
        .await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let started = std::time::Instant::now();
    let replies = join_all((0..45).map(|_| friend.ask("fast", QUESTION))).await;
    let refilled = usize::try_from(started.elapsed().as_secs() / 2).expect("a short test") + 1;

    let passed = admitted(&replies);
    assert!(
        (30..=30 + refilled).contains(&passed),
        "{passed} passed: 30 at once, then one each two seconds"
    );
    let refused = replies
        .iter()
        .find(|reply| reply.status == 429)
        .expect("the 31st is refused");
    assert_eq!(refused.code(), "rate_limit_exceeded");
    assert!(
        refused
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|wait| (1..=3).contains(&wait)),
        "{:?}",
        refused.headers
    );
    assert!(
        refused.header("ratelimit").contains("\"text-min\""),
        "{:?}",
        refused.headers
    );
}

#[tokio::test]
async fn the_101st_request_of_a_day_is_refused_and_the_reset_is_told() {
    let proxy = Proxy::with()
        .limit("text_per_minute_per_ip = 10000")
        .limit("text_per_minute_per_user = 10000")
        .limit("concurrent_per_user = 200")
        .start()
        .await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let mut replies = Vec::new();
    for _ in 0..4 {
        replies.extend(join_all((0..30).map(|_| friend.ask("fast", QUESTION))).await); // more at once than the home has slots
    }
    let busy = replies
        .iter()
        .filter(|reply| ![200, 429].contains(&reply.status))
        .count();
    assert_eq!(busy, 0, "nothing but answers and refusals");
    assert_eq!(admitted(&replies), 100, "exactly a hundred of 120");

    let refused = friend.ask("fast", QUESTION).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "insufficient_quota")
    );
    assert_eq!(refused.json()["error"]["type"], "insufficient_quota");
    assert_eq!(
        refused.header("x-should-retry"),
        "false",
        "no SDK hammers a used-up day"
    );
    let wait: u64 = refused
        .header("retry-after")
        .parse()
        .expect("a number of seconds");
    assert!(wait <= 86_400, "the day ends within a day");
    let other = proxy.friend_of("somebody-else");
    assert_eq!(
        other.ask("fast", QUESTION).await.status,
        200,
        "one person's day is nobody else's"
    );
}

#[tokio::test]
async fn a_used_up_day_survives_a_restart() {
    let issuer = Issuer::start().await;
    let mut proxy = Proxy::generous()
        .limit("text_per_day = 3")
        .trusting(&issuer)
        .start()
        .await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let ada = proxy.stranger().with_bearer(&issuer.token("ada"));
    proxy.serves(&ada, &["fast"]).await;
    for _ in 0..3 {
        assert_eq!(ada.ask("fast", QUESTION).await.status, 200);
    }

    proxy.process().signal("TERM");
    proxy.process().ended(Duration::from_secs(20)).await;
    proxy.restart().await;

    let other_token = proxy
        .stranger()
        .with_bearer(&issuer.sign(tests::issuer::Key::Ec, &issuer.claims("ada")));
    assert_eq!(
        other_token.ask("fast", QUESTION).await.code(),
        "insufficient_quota",
        "a new token of the same person is the same person"
    );
}

#[tokio::test]
async fn every_answer_tells_what_is_left() {
    let proxy = Proxy::with().start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let left = |reply: &Reply| {
        reply
            .header("x-ratelimit-remaining-requests")
            .parse::<u64>()
            .expect("a number")
    };
    let first = friend.ask("fast", QUESTION).await;
    let second = friend.ask("fast", QUESTION).await;

    assert_eq!(left(&first), left(&second) + 1);
    assert!(
        second
            .header("ratelimit-policy")
            .contains("\"text-day\";q=100"),
        "{:?}",
        second.headers
    );
    assert!(
        second.header("x-ratelimit-reset-requests").ends_with('s'),
        "a Go-style duration"
    );
}

#[tokio::test]
async fn what_was_not_served_is_not_charged() {
    let proxy = Proxy::generous().limit("text_per_day = 5").start().await;
    let friend = proxy.friend();
    for _ in 0..8 {
        assert_eq!(
            friend.ask("auto", QUESTION).await.status,
            503,
            "no home, no answer, no charge"
        );
    }
    let _home = Node::named("den").tier("fast").join(&proxy);
    proxy.serves(&friend, &["fast"]).await;
    for _ in 0..5 {
        assert_eq!(friend.ask("fast", QUESTION).await.status, 200);
    }
    assert_eq!(friend.ask("fast", QUESTION).await.status, 429);
}

/// The first address of `X-Forwarded-For` was believed: another one for each request, and there was no limit.
#[tokio::test]
async fn seed_defect_5_whoever_forwards_invented_addresses_is_counted_as_the_one_that_it_is() {
    let strict = || Proxy::generous().limit("health_per_minute_per_ip = 5");
    let direct = strict().start().await;
    let friend = direct.friend();
    let mut replies = Vec::new();
    for number in 0..8 {
        let invented = format!("203.0.113.{number}");
        let forwarded = ("x-forwarded-for", invented.as_str());
        replies.push(friend.get_with("/v1/models", forwarded).await);
    }
    assert_eq!(admitted(&replies), 5, "nobody in front of us is trusted");
    assert!(
        replies[7].body.contains("health-min-ip"),
        "{}",
        replies[7].body
    );

    let behind = strict()
        .server("trusted_proxies = [\"127.0.0.0/8\"]")
        .start()
        .await;
    let friend = behind.friend();
    let mut replies = Vec::new();
    for number in 0..8 {
        // What a balancer appends stands on the right; what a client invents is left of it.
        let chain = format!("192.0.2.{number}, 198.51.100.7");
        let forwarded = ("x-forwarded-for", chain.as_str());
        replies.push(friend.get_with("/v1/models", forwarded).await);
    }
    assert_eq!(admitted(&replies), 5, "one client, whatever it says before");
    let other = ("x-forwarded-for", "198.51.100.7, 198.51.100.8");
    assert_eq!(friend.get_with("/v1/models", other).await.status, 200);
}
