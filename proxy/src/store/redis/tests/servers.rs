//! Real Redis deployments for tests: one server, a primary with a replica and sentinels, a cluster, TLS, and a slow line to any of
//! them. All are gone with their values.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use config::secret::Secret;
use config::settings::proxy::{Login, OnFailure, Redis as RedisSettings, RedisTls, Servers};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::observe::metrics::Metrics;
use crate::store::Store;
use crate::store::redis::Redis;

/// How long anything may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a fact.
pub(crate) async fn until(what: &str, fact: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    // Cluster nodes listen 10,000 above as well.
    loop {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        if port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return port;
        }
    }
}

/// Settings that a test changes as it likes.
pub(crate) fn settings(url: &str) -> RedisSettings {
    RedisSettings {
        servers: Servers::One(Secret::new(url.to_owned())),
        login: Login::default(),
        tls: RedisTls::default(),
        prefix: "hearth".into(),
        timeout: Duration::from_secs(2),
        breaker_failures: 3,
        wait_replicas: 0,
        on_failure: OnFailure::Closed,
        lease_percent: 2,
        leases_max: 10_000,
        secret_key_file: None,
    }
}

/// A redis-server of its own, gone with the value.
#[derive(Debug)]
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) port: u16,
    folder: TempDir,
    args: Vec<String>,
    /// State directories of the proxies that use it.
    states: Mutex<Vec<TempDir>>,
}

impl RedisServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments.
    pub(crate) async fn start_with(args: &[&str]) -> Self {
        let server = Self::begin(free_port(), args);
        server.wait().await;
        server
    }

    fn begin(port: u16, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "5".repeat(64)).unwrap();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let child = Self::spawn(port, folder.path(), &args);
        Self {
            child,
            port,
            folder,
            args,
            states: Mutex::default(),
        }
    }

    fn spawn(port: u16, folder: &Path, args: &[String]) -> Child {
        let mut command = Command::new("redis-server");
        if let Some(file) = args.first().filter(|arg| !arg.starts_with("--")) {
            command.arg(file).args(&args[1..]);
        } else {
            command
                .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(["--port", &port.to_string()])
                .arg("--dir")
                .arg(folder)
                .args(args);
        }
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need redis-server on the PATH (Debian: apt install redis-server)")
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops the process without ending it, or lets it go on.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(done.success());
    }

    pub(crate) async fn restart(&mut self) {
        self.child = Self::spawn(self.port, self.folder.path(), &self.args);
        self.wait().await;
    }

    pub(crate) async fn wait(&self) {
        until("redis-server starts", async || {
            let Ok(mut client) = self.client().await else {
                return false;
            };
            redis::cmd("PING").exec_async(&mut client).await.is_ok()
        })
        .await;
    }

    pub(crate) async fn client(&self) -> Result<MultiplexedConnection, redis::RedisError> {
        redis::Client::open(self.url())?
            .get_multiplexed_async_connection()
            .await
    }

    /// One command, its words separated by blanks.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &str) -> T {
        self.try_command(words).await.unwrap()
    }

    /// The same of a server that may close its connections, as one does that changes its role.
    pub(crate) async fn try_command<T: redis::FromRedisValue>(
        &self,
        words: &str,
    ) -> Result<T, redis::RedisError> {
        let mut client = self.client().await?;
        command(words).query_async(&mut client).await
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// A file with the key that all proxies of this server share.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    pub(crate) fn redis_settings(&self) -> RedisSettings {
        RedisSettings {
            secret_key_file: Some(self.key_file()),
            ..settings(&self.url())
        }
    }

    /// A proxy's store, with a state directory of its own.
    pub(crate) async fn open(&self, settings: &RedisSettings) -> Redis {
        self.open_measured(settings).await.0
    }

    /// The same, with its metrics.
    pub(crate) async fn open_measured(&self, settings: &RedisSettings) -> (Redis, Arc<Metrics>) {
        let state = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let opened = Redis::open(settings, state.path(), Arc::clone(&metrics));
        let store = opened.await.unwrap();
        self.states.lock().unwrap().push(state);
        (store, metrics)
    }

    pub(crate) async fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.open(&self.redis_settings()).await)
    }

    /// Nobody may publish or subscribe any more, and whoever did is cut.
    pub(crate) async fn cut_channels(&self) {
        self.command::<redis::Value>("ACL SETUSER default resetchannels")
            .await;
        self.command::<redis::Value>("CLIENT KILL TYPE pubsub")
            .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

pub(crate) fn command(words: &str) -> redis::Cmd {
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command
}

/// A primary, a replica, and three sentinels that agree by two.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) primary: RedisServer,
    pub(crate) replica: RedisServer,
    watchers: Vec<RedisServer>,
}

impl Sentinels {
    pub(crate) async fn start() -> Self {
        let primary = RedisServer::start().await;
        let port = primary.port.to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(sentinel(primary.port).await);
        }
        let all = Self {
            primary,
            replica,
            watchers: sentinels,
        };
        until(
            "the sentinels know each other and the replica",
            async || {
                for sentinel in &all.watchers {
                    let text: redis::InfoDict = sentinel.command("INFO sentinel").await;
                    let known: String = text.get("master0").unwrap_or_default();
                    if !known.contains("slaves=1") || !known.contains("sentinels=3") {
                        return false;
                    }
                }
                true
            },
        )
        .await;
        all
    }

    pub(crate) fn settings(&self) -> RedisSettings {
        RedisSettings {
            servers: Servers::Sentinels {
                addresses: self
                    .watchers
                    .iter()
                    .map(|sentinel| format!("127.0.0.1:{}", sentinel.port))
                    .collect(),
                master: "house".into(),
                login: Login::default(),
            },
            ..self.primary.redis_settings()
        }
    }
}

async fn sentinel(primary: u16) -> RedisServer {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor house 127.0.0.1 {primary} 2\nsentinel down-after-milliseconds house 500\nsentinel failover-timeout house 3000\n",
        folder.path().display()
    );
    std::fs::write(&file, text).unwrap();
    let mut server = RedisServer::begin(port, &[file.to_str().unwrap(), "--sentinel"]);
    // The process writes into its file: the folder lives as long as the server.
    server.folder = folder;
    server.wait().await;
    server
}

/// Three nodes that share the slots.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<RedisServer>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
            nodes.push(RedisServer::start_with(&args).await);
        }
        for (node, slots) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
            node.command::<()>(&format!("CLUSTER ADDSLOTSRANGE {slots}"))
                .await;
            nodes[0]
                .command::<()>(&format!("CLUSTER MEET 127.0.0.1 {}", node.port))
                .await;
        }
        let all = Self { nodes };
        until("the cluster is whole", async || {
            for node in &all.nodes {
                let info: String = node.command("CLUSTER INFO").await;
                if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:3") {
                    return false;
                }
            }
            true
        })
        .await;
        all
    }

    pub(crate) fn settings(&self) -> RedisSettings {
        let address = |node: &RedisServer| format!("127.0.0.1:{}", node.port);
        RedisSettings {
            servers: Servers::Cluster(self.nodes.iter().take(2).map(address).collect()),
            ..self.nodes[0].redis_settings()
        }
    }
}

/// Certificates of an authority of our own.
#[derive(Debug)]
pub(crate) struct Papers {
    folder: TempDir,
}

impl Papers {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "house authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let params = CertificateParams::new(names).unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            let write = |what: &str, text: String| {
                std::fs::write(folder.path().join(format!("{name}.{what}")), text).unwrap();
            };
            write("pem", certificate.pem());
            write("key", key.serialize_pem());
        }
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The arguments of a server that speaks TLS at this port, and wants our certificate.
    pub(crate) fn server_args(&self, port: u16) -> Vec<String> {
        let path = |name| self.path(name).display().to_string();
        [
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &path("server.pem"),
            "--tls-key-file",
            &path("server.key"),
            "--tls-ca-cert-file",
            &path("ca.pem"),
            "--tls-auth-clients",
            "yes",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    pub(crate) fn tls(&self) -> RedisTls {
        RedisTls {
            on: true,
            ca_file: Some(self.path("ca.pem")),
            client: Some((self.path("client.pem"), self.path("client.key"))),
        }
    }
}

/// A line to a server that can be made slow while it is used.
#[derive(Debug)]
pub(crate) struct SlowLine {
    pub(crate) port: u16,
    delay_ms: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl SlowLine {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&delay_ms);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", server))
                    .await
                    .unwrap();
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::spawn(pass(client_read, server_write, Arc::clone(&delay)));
                tokio::spawn(pass(server_read, client_write, Arc::default()));
            }
        });
        Self {
            port,
            delay_ms,
            task,
        }
    }

    pub(crate) fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap();
        self.delay_ms.store(delay, Ordering::Relaxed);
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes on, each so much later than it came; what comes meanwhile is not slower for it.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay_ms: Arc<AtomicU64>,
) {
    let (sender, mut receiver) =
        tokio::sync::mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(1_000);
    tokio::spawn(async move {
        while let Some((at, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = Duration::from_millis(delay_ms.load(Ordering::Relaxed));
        let at = tokio::time::Instant::now() + delay;
        if sender.send((at, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}
