//! A gateway with everything real but the edge and the tunnel: nodes are on loopback TCP, clients are in memory.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use config::ids::{KeyId, NodeId, RequestId, UserId};
use config::secret::Secret;
use config::settings::plan::Prices;
use config::settings::proxy::{
    Auth, Hedge, Limits, PerMinute, Plan, Remote as RemoteSettings, Routing, WakePatience, Zone,
};
use config::tier::Tier;
use config::token::{Token, TokenKind};
use config::wire::node::{
    HUB_ADDRESS, Memory, ModelReport, Report, TierReport, TierState, VERSION,
};
use http::{HeaderMap, HeaderValue, Method, header};
use policy::classify::Thresholds;
use policy::identity::Scope;
use policy::record::AccessRecord;
use policy::router::Router;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tunnel::{PrivateKey, Tunnel};

use super::client::Client;
use super::node::{Act, Node};
use crate::admin::{Api, ApiFacts, Operations};
use crate::auth::Authenticator;
use crate::gateway::admission::Admission;
use crate::gateway::body::Reader;
use crate::gateway::dispatch::Dispatcher;
use crate::gateway::health::Readiness;
use crate::gateway::waiting::Waiting;
use crate::gateway::{Call, Figures, Gateway, Rooms};
use crate::nodes::fleet::Fleet;
use crate::nodes::members::{Member, Members, Place};
use crate::nodes::peers::{self, HubKeys, Peers};
use crate::nodes::register::{Desk, DeskSecrets, HubFacts};
use crate::nodes::upstream::{Dial, Upstream, Wire};
use crate::observe::metrics::Metrics;
use crate::remote::wakers::Wakers;
use crate::remote::{self, Remote, Roads};
use crate::store::embedded::Embedded;
use crate::store::{KeyRecord, PEPPER, SecretHash, Store};

/// The moment at which all requests of these tests come: noon of a day.
const NOW_MS: u64 = 1_800_014_400_000;

/// What a test may change before the house is built.
pub(super) struct Plans {
    pub(super) routing: Routing,
    pub(super) limits: Limits,
    pub(super) prices: Prices,
    pub(super) request_timeout: Duration,
    /// Servers outside the tunnel.
    pub(super) remotes: Vec<RemoteSettings>,
}

impl Default for Plans {
    fn default() -> Self {
        let per_minute = PerMinute {
            text: 30,
            media: 10,
            health: 120,
        };
        Self {
            routing: Routing {
                auto_models: vec!["auto".to_owned()],
                heavy_from: 0.66,
                fast_to: 0.33,
                breaker_failures: 3,
                breaker_window: Duration::from_secs(30),
                breaker_open: Duration::from_secs(30),
                breaker_probe: Duration::from_mins(1),
                connect_timeout: Duration::from_secs(1),
                first_byte_timeout: Duration::from_secs(5),
                idle_timeout: Duration::from_secs(5),
                silence: Duration::ZERO,
                silence_patience: Duration::ZERO,
                stall_after: Duration::ZERO,
                migration_patience: Duration::from_secs(5),
                commit_after: Duration::from_secs(3),
                keepalive: Duration::from_secs(15),
                fallback: true,
                pool_max: 4,
                queue_max: 64,
                queue_wait: Duration::ZERO,
                wake: WakePatience::default(),
                classifier: config::settings::classifier::Classifier::default(),
                hedge: Hedge::default(),
            },
            limits: Limits {
                guard_per_minute: 600,
                guard_burst: 120,
                per_ip: per_minute,
                per_user: per_minute,
                text_per_day: 100,
                media_per_day: 20,
                stored_bytes: 500_000_000,
                concurrent_per_user: 16,
                max_tokens_default: 2048,
                table_max: 1000,
                lease: Duration::from_mins(1),
                time_zone: Zone::default(),
                everyone: Plan::default(),
                service: None,
                plans: BTreeMap::new(),
                groups: BTreeMap::new(),
                tenants: BTreeMap::new(),
            },
            prices: Prices {
                currency: "EUR".to_owned(),
                models: BTreeMap::new(),
                cloud: BTreeMap::new(),
            },
            request_timeout: Duration::from_secs(30),
            remotes: Vec::new(),
        }
    }
}

/// Dials nodes by a table.
struct Loopback(HashMap<Ipv6Addr, SocketAddr>);

#[async_trait]
impl Dial for Loopback {
    async fn dial(&self, address: Ipv6Addr, _deadline: Duration) -> io::Result<Box<dyn Wire>> {
        let real = self.0.get(&address).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(TcpStream::connect(real).await?))
    }
}

/// The gateway and what stands around it.
pub(super) struct House {
    pub(super) gateway: Gateway,
    pub(super) nodes: Vec<Node>,
    pub(super) upstream: Upstream,
    pub(super) fleet: Arc<Fleet>,
    pub(super) metrics: Arc<Metrics>,
    waiting: Arc<Waiting>,
    key: String,
    store: Arc<dyn Store>,
    _watches: JoinSet<()>,
    _folder: Option<TempDir>,
}

impl House {
    /// A house with one node for each entry: its tiers, and what it does.
    pub(super) async fn with(nodes: Vec<(&[Tier], Vec<Act>)>) -> Self {
        Self::planned(Plans::default(), nodes).await
    }

    pub(super) async fn planned(plans: Plans, acts: Vec<(&[Tier], Vec<Act>)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(folder.path()).unwrap());
        Self {
            _folder: Some(folder),
            ..Self::on(store, plans, acts).await
        }
    }

    /// One of the proxies of a store.
    pub(super) async fn on(
        store: Arc<dyn Store>,
        plans: Plans,
        acts: Vec<(&[Tier], Vec<Act>)>,
    ) -> Self {
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let metrics = Arc::new(Metrics::new());
        let (kept, counted) = (Arc::clone(&store), Arc::clone(&metrics));
        let key = put_key(&*store, &[Scope::Inference, Scope::Models]).await;
        let fleet = Arc::new(Fleet::new(Router::new(
            &plans.routing,
            Duration::from_secs(15),
            10,
        )));
        let members = Arc::new(Members::default());
        let (nodes, table) = at_home(acts, &fleet, &members).await;
        let remotes = Remote::all(&plans.remotes).unwrap();
        let roads = Roads::new(Arc::new(table), &remotes);
        let upstream = Upstream::new(Arc::new(roads), plans.routing.pool_max);
        let around = remote::Rooms {
            upstream: upstream.clone(),
            fleet: Arc::clone(&fleet),
            store: Arc::clone(&store),
            metrics: Arc::clone(&metrics),
        };
        let watches = outside(remotes, &around, &members);
        let figures = figures(&plans);
        let authenticator = Authenticator::new(
            &figures.auth,
            &plans.limits.plans,
            Arc::clone(&store),
            Arc::clone(&metrics),
        );
        let waiting = Arc::new(Waiting::new(&plans.routing, Arc::clone(&fleet)));
        let dispatcher = Dispatcher {
            fleet: Arc::clone(&fleet),
            wakers: Arc::new(Wakers::new(
                (Arc::clone(&fleet), Arc::clone(&members)),
                (upstream.clone(), Arc::clone(&metrics)),
                Box::new(|_| Some(IpAddr::from([203, 0, 113, 7]))),
            )),
            waiting: Arc::clone(&waiting),
            members,
            upstream: upstream.clone(),
            rules: plans.routing.clone(),
            metrics,
        };
        let rooms = rooms(
            (plans.limits, plans.prices),
            store,
            Arc::new(authenticator.unwrap()),
            dispatcher,
        )
        .await;
        Self {
            gateway: Gateway::new(rooms, figures),
            nodes,
            upstream,
            fleet,
            metrics: counted,
            waiting,
            key,
            store: kept,
            _watches: watches,
            _folder: None,
        }
    }

    /// A node says anew how its tier stands.
    pub(super) fn tells(&self, index: usize, seq: u64, state: TierState) {
        let member = member(index);
        let mut report = report(&member, index, &[Tier::Primary]);
        report.seq = seq;
        report.tiers[0].state = state;
        if state != TierState::Ready {
            report.tiers[0].model = None;
        }
        let told = self
            .fleet
            .report(&member, report, tokio::time::Instant::now().into_std());
        told.unwrap();
    }

    /// The connections to a node break.
    pub(super) fn cut(&self, index: usize) {
        self.upstream.cut(member(index).address);
    }

    /// Where requests wait.
    pub(super) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Where it counts.
    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Another key of the same owner, with other scopes.
    pub(super) async fn key_with(&self, scopes: &[Scope]) -> String {
        put_key(&*self.store, scopes).await
    }

    /// A key with every scope whose time was over before these tests began.
    pub(super) async fn expired_key(&self) -> String {
        let (mut record, key) = key_record(&*self.store, &Scope::ALL).await;
        record.expires_unix = Some(1);
        self.store.put_key(&record).await.unwrap();
        key
    }

    /// A key whose requests stay at home.
    pub(super) async fn key_that_stays(&self) -> String {
        let (mut record, key) = key_record(&*self.store, &Scope::CLIENT).await;
        record.local_only = true;
        self.store.put_key(&record).await.unwrap();
        key
    }

    /// One request with the house's key.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        client: &mut Client,
    ) -> AccessRecord {
        let bearer = format!("Bearer {}", self.key);
        self.ask_with(method, path, &[("authorization", &bearer)], client)
            .await
    }

    /// A chat request that says what kind of body it has.
    pub(super) async fn ask_typed(&self, kind: &str, client: &mut Client) -> AccessRecord {
        let bearer = format!("Bearer {}", self.key);
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        self.ask_with(Method::POST, "/v1/chat/completions", &headers, client)
            .await
    }

    pub(super) async fn ask_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        client: &mut Client,
    ) -> AccessRecord {
        let mut all = HeaderMap::new();
        all.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        for (name, value) in headers {
            all.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let call = Call {
            request_id: RequestId::new("req_test"),
            ip: IpAddr::from([192, 0, 2, 1]),
            method,
            path: path.to_owned(),
            query: None,
            headers: all,
            received_at: std::time::Instant::now(),
            unix_ms: NOW_MS,
        };
        self.gateway.handle(call, client).await
    }

    /// Asks the chat surface.
    pub(super) async fn chat(&self, body: &serde_json::Value) -> (Client, AccessRecord) {
        let mut client = Client::sending(body.to_string());
        let record = self
            .ask(Method::POST, "/v1/chat/completions", &mut client)
            .await;
        (client, record)
    }
}

/// A chat request for a tier.
pub(super) fn to(model: &str) -> serde_json::Value {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": "hello"}]})
}

/// The same, streamed.
pub(super) fn stream_to(model: &str) -> serde_json::Value {
    let mut body = to(model);
    body["stream"] = true.into();
    body
}

fn figures(plans: &Plans) -> Figures {
    Figures {
        request_timeout: plans.request_timeout,
        thresholds: Thresholds::from(&plans.routing),
        prefixes: crate::gateway::prefix::Prefixes::new(&[7; 32]),
        auth: Auth {
            azure_header: false,
            stale: Duration::from_secs(30),
            issuers: Vec::new(),
        },
        started_unix: 1_800_000_000,
    }
}

/// Starts one node for each entry and lets it report.
async fn at_home(
    acts: Vec<(&[Tier], Vec<Act>)>,
    fleet: &Fleet,
    members: &Members,
) -> (Vec<Node>, Loopback) {
    let (mut nodes, mut table) = (Vec::new(), HashMap::new());
    for (index, (tiers, acts)) in acts.into_iter().enumerate() {
        let node = Node::start(acts).await;
        let member = member(index);
        table.insert(member.address, node.address);
        let report = report(&member, index, tiers);
        fleet
            .report(&member, report, std::time::Instant::now())
            .unwrap();
        members.insert(Arc::new(member));
        nodes.push(node);
    }
    (nodes, Loopback(table))
}

/// Places the machines outside and watches them until the set is dropped.
fn outside(remotes: Vec<Arc<Remote>>, around: &remote::Rooms, members: &Members) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    for remote in remotes {
        around.fleet.place_outside(remote.id(), remote.is_local());
        members.insert(Arc::new(remote.member()));
        watches.spawn(remote::watch(remote, around.clone()));
    }
    watches
}

async fn rooms(
    (limits, prices): (Limits, Prices),
    store: Arc<dyn Store>,
    authenticator: Arc<Authenticator>,
    dispatcher: Dispatcher,
) -> Rooms {
    let metrics = Arc::clone(&dispatcher.metrics);
    let around = peers::Rooms {
        upstream: dispatcher.upstream.clone(),
        fleet: Arc::clone(&dispatcher.fleet),
        members: Arc::clone(&dispatcher.members),
    };
    let limits = Arc::new(ArcSwap::from_pointee(limits));
    Rooms {
        readiness: Readiness {
            store: Arc::clone(&store),
            authenticator: Arc::clone(&authenticator),
            fleet: Arc::clone(&dispatcher.fleet),
        },
        authenticator,
        admission: Admission::new(Arc::clone(&store), limits, Arc::clone(&metrics)),
        prices,
        reader: Reader::new(64 * 1024, 256 * 1024),
        admin: Arc::new(Api::new(
            Operations::new(
                Arc::clone(&store),
                "https://llm.example.org".into(),
                None,
                None,
            ),
            ApiFacts::for_tests(),
        )),
        desk: Arc::new(desk(store, around).await),
        dispatcher,
        metrics,
    }
}

async fn put_key(store: &dyn Store, scopes: &[Scope]) -> String {
    let (record, key) = key_record(store, scopes).await;
    store.put_key(&record).await.unwrap();
    key
}

async fn key_record(store: &dyn Store, scopes: &[Scope]) -> (KeyRecord, String) {
    let token = Token::generate(TokenKind::Client);
    let pepper = store.secret(PEPPER).await.unwrap();
    let id = KeyId::new(token.id());
    let hash = SecretHash::of(pepper.expose(), token.secret().expose());
    let record = KeyRecord {
        scopes: scopes.to_vec(),
        ..KeyRecord::plain(id, hash, UserId::new("ada"), 0)
    };
    (record, token.reveal().expose().clone())
}

fn member(index: usize) -> Member {
    let index = u16::try_from(index).unwrap() + 2;
    Member {
        id: NodeId::new(format!("node_{index:016x}")),
        name: format!("home-{index}"),
        address: Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, index),
        tiers: None,
        wireguard_key: String::new(),
        agent_token: Secret::new("agent-secret".to_owned()),
        place: Place::Tunnel,
        draining: std::sync::atomic::AtomicBool::new(false),
    }
}

/// The first node is the fastest and the others are as busy as their number says, so that a story knows who is asked.
fn report(member: &Member, number: usize, tiers: &[Tier]) -> Report {
    Report {
        version: VERSION,
        node_id: member.id.clone(),
        seq: 1,
        draining: false,
        memory: Memory::default(),
        tiers: tiers
            .iter()
            .map(|tier| tier_report(*tier, number))
            .collect(),
        wake: None,
        back_end: None,
    }
}

fn tier_report(tier: Tier, number: usize) -> TierReport {
    TierReport {
        tier,
        state: TierState::Ready,
        reason: None,
        model: Some(ModelReport {
            id: format!("tiny-{tier}"),
            aliases: Vec::new(),
            // Who serves a tier serves the same file.
            file_sha256: format!("sha256 of {tier}"),
            size_bytes: 1,
            n_ctx: 512,
            n_ctx_train: 512,
            parameters: 1,
            quantization: "Q8_0".to_owned(),
            architecture: "llama".to_owned(),
            modalities: Vec::new(),
        }),
        slots: 4,
        slots_busy: u32::try_from(number.min(3)).unwrap_or(3),
        queue_depth: 0,
        queue_max: 8,
        tokens_per_second: if number == 0 { 500.0 } else { 50.0 },
        prompt_tokens_per_second: 500.0,
        elsewhere: false,
        wakes_in_ms: 0,
        prefixes: Vec::new(),
    }
}

async fn desk(store: Arc<dyn Store>, rooms: peers::Rooms) -> Desk {
    let settings = tunnel::Settings::new(
        ([127, 0, 0, 1], 0).into(),
        PrivateKey::generate(),
        HUB_ADDRESS,
    );
    let tunnel = Tunnel::start(settings).await.unwrap();
    let public_key = tunnel.public_key().to_string();
    let hub = HubKeys {
        secret: [1; 32],
        public_key: public_key.clone(),
    };
    let peers = Arc::new(Peers::new(tunnel, Arc::clone(&store), rooms, hub));
    let pepper = *store.secret(PEPPER).await.unwrap().expose();
    let secrets = DeskSecrets {
        nonce: [2; 32],
        pepper,
    };
    let facts = HubFacts {
        public_key,
        endpoint: ":51820".to_owned(),
        heartbeat: Duration::from_secs(5),
        nodes_max: 10,
        approves_all: false,
        carriers: true,
        unseen_max: Duration::from_hours(24 * 90),
        hubs: Arc::default(),
    };
    Desk::new(store, peers, &secrets, facts)
}
