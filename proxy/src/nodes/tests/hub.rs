//! The proxy's side of the tests: a desk, a store, a fleet and a real tunnel.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::settings::proxy::Routing;
use config::tier::Tier;
use config::token::{Token, TokenKind};
use config::wire::node::{HUB_ADDRESS, REPORT_PORT};
use http::Request;
use http_body_util::Full;
use policy::router::Router;
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;
use tunnel::{PrivateKey, Tunnel};

use crate::nodes::fleet::Fleet;
use crate::nodes::members::Members;
use crate::nodes::peers::{HubKeys, Peers, Rooms};
use crate::nodes::register::{Desk, DeskSecrets, HubFacts};
use crate::nodes::report::ReportDesk;
use crate::nodes::unmanaged::Stations;
use crate::nodes::upstream::{Answer, Fault, Upstream, Waits};
use crate::observe::metrics::Metrics;
use crate::remote::{self, Roads};
use crate::store::embedded::Embedded;
use crate::store::{JoinToken, SecretHash, Store};

pub(super) const NOW_MS: u64 = 1_800_000_000_000;
pub(super) const PEPPER: [u8; 32] = [9; 32];
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const SECRETS: DeskSecrets = DeskSecrets {
    nonce: [2; 32],
    pepper: PEPPER,
};

pub(super) fn facts(tunnel: &Tunnel) -> HubFacts {
    HubFacts {
        carriers: true,
        public_key: tunnel.public_key().to_string(),
        endpoint: tunnel.local_addr().to_string(),
        heartbeat: Duration::from_secs(5),
        nodes_max: 2,
        approves_all: false,
        unseen_max: Duration::from_hours(24 * 90),
        hubs: Arc::default(),
    }
}

/// The proxy's side.
pub(super) struct Hub {
    pub(super) tunnel: Tunnel,
    pub(super) store: Arc<dyn Store>,
    pub(super) peers: Arc<Peers>,
    pub(super) desk: Desk,
    pub(super) fleet: Arc<Fleet>,
    pub(super) members: Arc<Members>,
    pub(super) upstream: Upstream,
    pub(super) reports: Arc<ReportDesk>,
    _serving: AbortOnDropHandle<()>,
    _folder: Option<TempDir>,
}

impl Hub {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(folder.path()).unwrap());
        Self {
            _folder: Some(folder),
            ..Self::start_on(store).await
        }
    }

    pub(super) async fn start_on(store: Arc<dyn Store>) -> Self {
        let key = PrivateKey::from_bytes([3; 32]);
        let settings = tunnel::Settings::new(([127, 0, 0, 1], 0).into(), key, HUB_ADDRESS);
        let tunnel = Tunnel::start(settings).await.unwrap();
        let roads = Arc::new(Roads::new(Arc::new(tunnel.clone()), &[]));
        let upstream = Upstream::new(Arc::<Roads>::clone(&roads), 4);
        let fleet = Arc::new(Fleet::new(router()));
        let members = Arc::new(Members::default());
        let rooms = Rooms {
            upstream: upstream.clone(),
            fleet: Arc::clone(&fleet),
            members: Arc::clone(&members),
        };
        let public_key = tunnel.public_key().to_string();
        let hub = HubKeys {
            secret: [1; 32],
            public_key: public_key.clone(),
        };
        let around = remote::Rooms {
            upstream: upstream.clone(),
            fleet: Arc::clone(&fleet),
            store: Arc::clone(&store),
            metrics: Arc::new(Metrics::new()),
        };
        let peers = Peers::new(tunnel.clone(), Arc::clone(&store), rooms, hub);
        let peers = Arc::new(peers.with_stations(Stations::new(roads, around)));
        let desk = Desk::new(
            Arc::clone(&store),
            Arc::clone(&peers),
            &SECRETS,
            facts(&tunnel),
        );
        let reports = ReportDesk::new(Arc::clone(&members), Arc::clone(&fleet));
        let reports = Arc::new(reports);
        let listener = tunnel.listen(REPORT_PORT).await.unwrap();
        let serving = tokio::spawn(Arc::clone(&reports).serve(listener));
        Self {
            tunnel,
            store,
            peers,
            desk,
            fleet,
            members,
            upstream,
            reports,
            _serving: AbortOnDropHandle::new(serving),
            _folder: None,
        }
    }

    /// A join token for one node, perhaps for some tiers only.
    pub(super) async fn invite(&self, tiers: Option<Vec<Tier>>) -> Token {
        self.invite_as(tiers, (1, None)).await
    }

    pub(super) async fn invite_as(
        &self,
        tiers: Option<Vec<Tier>>,
        (uses_max, approve): (u32, Option<bool>),
    ) -> Token {
        let token = Token::generate(TokenKind::Join);
        let record = JoinToken {
            id: token.id().to_owned(),
            secret_hash: SecretHash::of(&PEPPER, token.secret().expose()),
            name: "test".to_owned(),
            uses_max,
            tiers,
            created_unix: 0,
            expires_unix: 1_900_000_000,
            used_by: Vec::new(),
            approve,
        };
        self.store.put_join_token(&record).await.unwrap();
        token
    }

    pub(super) fn nonce(&self) -> String {
        let reply: Value = serde_json::from_slice(&self.desk.nonce(NOW_MS).body).unwrap();
        reply["nonce"].as_str().unwrap().to_owned()
    }

    pub(super) fn ready_tiers(&self) -> Vec<Tier> {
        self.fleet.with(|router| {
            let backends = router.registry().backends();
            backends.map(|backend| backend.tier.tier).collect()
        })
    }

    pub(super) async fn ask(&self, node: Ipv6Addr) -> Result<Answer, Fault> {
        let request = Request::post("/v1/chat/completions").header("host", "node");
        let request = request.body(Full::new(Bytes::from_static(b"{}"))).unwrap();
        let waits = Waits {
            connect: PATIENCE,
            head: PATIENCE,
        };
        self.upstream.send(node, request, waits).await
    }
}

pub(crate) fn routing() -> Routing {
    Routing {
        auto_models: Vec::new(),
        heavy_from: 0.66,
        fast_to: 0.33,
        breaker_failures: 3,
        breaker_window: PATIENCE,
        breaker_open: PATIENCE,
        breaker_probe: PATIENCE,
        connect_timeout: PATIENCE,
        first_byte_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        silence: PATIENCE,
        silence_patience: PATIENCE,
        stall_after: PATIENCE,
        migration_patience: PATIENCE,
        commit_after: PATIENCE,
        keepalive: PATIENCE,
        fallback: true,
        pool_max: 4,
        wake: config::settings::proxy::WakePatience::default(),
        classifier: config::settings::classifier::Classifier::default(),
        hedge: config::settings::proxy::Hedge::default(),
        queue_max: 64,
        queue_wait: Duration::ZERO,
    }
}

pub(super) fn router() -> Router {
    Router::new(&routing(), Duration::from_secs(15), 10)
}
