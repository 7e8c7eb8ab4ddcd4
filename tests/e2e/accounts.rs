//! Two proxies, one Redis: whoever is shut out on one is shut out on the other, within the promised time.

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::issuer::Issuer;
use tests::proxy::Proxy;
use tests::redis::Redis;
use tests::wait::until;

/// A revocation counts on every proxy within this.
const BOUND: Duration = Duration::from_secs(2);

/// Two proxies that share a Redis and believe one issuer.
struct Two {
    redis: Redis,
    issuer: Issuer,
    here: Proxy,
    there: Proxy,
}

impl Two {
    async fn start() -> Self {
        let (redis, issuer) = (Redis::start().await, Issuer::start().await);
        let build = || Proxy::generous().trusting(&issuer).counting_in(&redis);
        let (here, there) = (build().start().await, build().start().await);
        Self {
            redis,
            issuer,
            here,
            there,
        }
    }

    /// A client of the proxy over there, which knows its credential.
    async fn guest(&self, bearer: &str) -> Client {
        let guest = self.there.stranger().with_bearer(bearer);
        until("the other proxy lets in", BOUND * 5, || async {
            (guest.get("/v1/models").await.status == 200).then_some(())
        })
        .await;
        guest
    }

    /// Shuts one key out and then one person, here, and times how long each still enters there.
    async fn shuts_out_within_the_bound(&self, how: &str) {
        let (id, key) = self.here.key("laptop");
        let laptop = self.guest(&key).await;
        // Timed from the moment the order was carried out: starting a program is no part of the promise.
        self.here.manage(&["key", "revoke", &id]);
        let revoked = refused(&laptop, 401).await;
        let token = self.issuer.token(how);
        let person = self.guest(&token).await;
        let users = self.here.manage(&["user", "list"]);
        let whom = users
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|user| user["id"].as_str())
            .find(|id| id.ends_with(how))
            .unwrap_or_else(|| panic!("no {how} in {users}"));
        self.here.manage(&["user", "deny", whom]);
        let denied = refused(&person, 403).await;
        assert!(
            revoked <= BOUND && denied <= BOUND,
            "{how}: {revoked:?}, {denied:?}"
        );
    }
}

/// How long the client still enters.
async fn refused(client: &Client, status: u16) -> Duration {
    let begun = Instant::now();
    until("the other proxy refuses", BOUND * 5, || async {
        let reply = client.get("/v1/models").await;
        assert!([200, status].contains(&reply.status), "{}", reply.body);
        (reply.status == status).then_some(())
    })
    .await;
    begun.elapsed()
}

#[tokio::test]
async fn who_is_shut_out_on_one_proxy_is_out_on_the_other_within_two_seconds() {
    let two = Two::start().await;
    two.shuts_out_within_the_bound("pushed").await;
    // No proxy can hear the channel from here on; the version beside it must do.
    two.redis
        .tell("ACL SETUSER default -subscribe -psubscribe -ssubscribe")
        .await;
    two.redis.tell("CLIENT KILL TYPE pubsub").await;
    two.shuts_out_within_the_bound("unheard").await;
}
