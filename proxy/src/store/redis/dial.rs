//! Where Redis is and how it is reached: one server, the primary that sentinels name, or a cluster; TLS and logins. Makes
//! connections and forgets them; who uses them, and for how long, is the link's.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use config::settings::proxy::{Login, Redis as RedisSettings, RedisTls, Servers};
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, Pipeline, RedisError, RedisFuture, TlsCertificates, TlsMode, Value,
};

use crate::store::StoreError;

/// Time for TCP, TLS and the greeting of one server.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for one sentinel: the next one may know better.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(300);
/// Database number of a deployment without a URL.
const DATABASE: i64 = 0;

/// One connection, which many calls share.
#[derive(Clone)]
pub(super) enum Line {
    /// To one server.
    Single(MultiplexedConnection),
    /// To all nodes of a cluster.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Line {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Knows where.
pub(super) enum Dialer {
    /// One server.
    One(Client),
    /// The primary is asked for on every dial.
    Sentinels(Sentinels),
    /// A cluster, and some of its nodes for channels.
    Cluster {
        /// Follows the slots.
        client: Box<ClusterClient>,
        /// Any of them passes on what is published.
        nodes: Vec<Client>,
        /// To the others.
        way: Way,
    },
}

/// Who knows the primary.
pub(super) struct Sentinels {
    known: Vec<Client>,
    master: String,
    way: Way,
    /// The sentinel that answered last is asked first.
    first: AtomicUsize,
}

/// How any server of a deployment is reached.
pub(super) struct Way {
    is_tls: bool,
    certificates: TlsCertificates,
    username: Option<String>,
    password: Option<String>,
    database: i64,
}

impl Way {
    fn new(tls: &RedisTls, login: &Login, is_tls: bool) -> Result<Self, StoreError> {
        Ok(Self {
            is_tls,
            certificates: certificates(tls)?,
            username: login.username.clone(),
            password: login
                .password
                .as_ref()
                .map(|password| password.expose().clone()),
            database: DATABASE,
        })
    }

    fn to(&self, address: &str) -> Result<Client, RedisError> {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        self.open(format!("{scheme}://{address}/").into_connection_info()?)
    }

    /// The settings win over what the URL says.
    fn open(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        let mut redis = info.redis_settings().clone();
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password);
        }
        if self.database != DATABASE {
            redis = redis.set_db(self.database);
        }
        let info = info
            .set_redis_settings(redis)
            // Off by default in this driver, and worth 40 ms.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        if self.is_tls {
            return Client::build_with_tls(info, self.certificates.clone());
        }
        Client::open(info)
    }
}

impl Dialer {
    /// Reads certificates and understands addresses; connects to nothing.
    pub(super) fn new(settings: &RedisSettings) -> Result<Self, StoreError> {
        let is_tls = settings.tls.on;
        match &settings.servers {
            Servers::One(url) => {
                let url = url.expose();
                let way = Way::new(&settings.tls, &settings.login, url.starts_with("rediss://"))?;
                // The driver's error may repeat the URL, and the URL may hold a password.
                let info = url
                    .as_str()
                    .into_connection_info()
                    .map_err(|_| StoreError::Unavailable("the Redis URL is malformed".into()))?;
                Ok(Self::One(way.open(info).map_err(|error| setup(&error))?))
            }
            Servers::Sentinels {
                addresses,
                master,
                login,
            } => {
                let to = Way::new(&settings.tls, login, is_tls)?;
                Ok(Self::Sentinels(Sentinels {
                    known: clients(&to, addresses)?,
                    master: master.clone(),
                    way: Way::new(&settings.tls, &settings.login, is_tls)?,
                    first: AtomicUsize::new(0),
                }))
            }
            Servers::Cluster(addresses) => {
                let way = Way::new(&settings.tls, &settings.login, is_tls)?;
                let nodes = clients(&way, addresses)?;
                Ok(Self::Cluster {
                    client: Box::new(cluster(&way, &nodes)?),
                    nodes,
                    way,
                })
            }
        }
    }

    /// A new connection to who may write. Bounded by the caller.
    pub(super) async fn dial(&self, timeout: Duration) -> Result<Line, RedisError> {
        match self {
            Self::One(client) => primary(client, timeout).await,
            Self::Sentinels(sentinels) => primary(&sentinels.find().await?, timeout).await,
            Self::Cluster { client, .. } => Ok(Line::Cluster(client.get_async_connection().await?)),
        }
    }

    /// A connection to every server that holds keys of its own.
    pub(super) async fn primaries(
        &self,
        timeout: Duration,
    ) -> Result<Vec<MultiplexedConnection>, RedisError> {
        let config = config(timeout);
        let (way, seeds) = match self {
            Self::One(client) => {
                let connect = client.get_multiplexed_async_connection_with_config(&config);
                return Ok(vec![connect.await?]);
            }
            Self::Sentinels(sentinels) => {
                let client = sentinels.find().await?;
                let connect = client.get_multiplexed_async_connection_with_config(&config);
                return Ok(vec![connect.await?]);
            }
            Self::Cluster { way, nodes, .. } => (way, nodes),
        };
        let mut last = nobody();
        for seed in seeds {
            match addresses(seed, &config).await {
                Ok(addresses) => {
                    let mut all = Vec::with_capacity(addresses.len());
                    for address in addresses {
                        let client = way.to(&address)?;
                        let connect = client.get_multiplexed_async_connection_with_config(&config);
                        all.push(connect.await?);
                    }
                    return Ok(all);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A connection that hears channels.
    pub(super) async fn hear(&self) -> Result<PubSub, RedisError> {
        match self {
            Self::One(client) => client.get_async_pubsub().await,
            Self::Sentinels(sentinels) => sentinels.find().await?.get_async_pubsub().await,
            Self::Cluster { nodes, .. } => {
                let mut last = nobody();
                for node in nodes {
                    match node.get_async_pubsub().await {
                        Ok(heard) => return Ok(heard),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

impl Sentinels {
    /// Asks one sentinel after the other who the primary is.
    async fn find(&self) -> Result<Client, RedisError> {
        let count = self.known.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut last = nobody();
        for at in (0..count).map(|step| (first + step) % count) {
            let Some(sentinel) = self.known.get(at) else {
                continue;
            };
            match tokio::time::timeout(SENTINEL_TIMEOUT, self.ask(sentinel)).await {
                Ok(Ok((host, port))) => {
                    self.first.store(at, Ordering::Relaxed);
                    let bracketed = host.contains(':') && !host.starts_with('[');
                    let address = if bracketed {
                        format!("[{host}]:{port}")
                    } else {
                        format!("{host}:{port}")
                    };
                    return self.way.to(&address);
                }
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }

    async fn ask(&self, sentinel: &Client) -> Result<(String, u16), RedisError> {
        let mut connection = sentinel
            .get_multiplexed_async_connection_with_config(&config(SENTINEL_TIMEOUT))
            .await?;
        let found: Option<(String, u16)> = redis::cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(&self.master)
            .query_async(&mut connection)
            .await?;
        found.ok_or_else(|| {
            RedisError::from((
                ErrorKind::MasterNameNotFoundBySentinel,
                "the sentinels know no primary of that name",
                self.master.clone(),
            ))
        })
    }
}

/// The primaries of a cluster, sorted, as one of its nodes knows them.
async fn addresses(
    node: &Client,
    config: &AsyncConnectionConfig,
) -> Result<Vec<String>, RedisError> {
    let mut connection = node
        .get_multiplexed_async_connection_with_config(config)
        .await?;
    let text: String = redis::cmd("CLUSTER")
        .arg("NODES")
        .query_async(&mut connection)
        .await?;
    // <id> <host:port@bus[,name]> <flags> ...
    let mut all: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (address, flags) = (words.next()?, words.next()?);
            let is_primary = flags.split(',').any(|flag| flag == "master");
            let (address, _) = address.split_once('@')?;
            is_primary.then(|| address.to_owned())
        })
        .collect();
    all.sort();
    Ok(all)
}

/// A connection to a server, if it may write. Whoever may not ask for its role finds out with the first write.
async fn primary(client: &Client, timeout: Duration) -> Result<Line, RedisError> {
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config(timeout))
        .await?;
    let role: Result<Vec<Value>, RedisError> =
        redis::cmd("ROLE").query_async(&mut connection).await;
    if let Ok(role) = role
        && let Some(Value::BulkString(role)) = role.first()
        && role != b"master"
    {
        return Err(RedisError::from((
            ErrorKind::Client,
            "it is a replica and takes no writes",
        )));
    }
    Ok(Line::Single(connection))
}

fn config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(timeout))
}

fn clients(way: &Way, addresses: &[String]) -> Result<Vec<Client>, StoreError> {
    addresses
        .iter()
        .map(|address| way.to(address).map_err(|error| setup(&error)))
        .collect()
}

fn cluster(way: &Way, nodes: &[Client]) -> Result<ClusterClient, StoreError> {
    let infos = nodes.iter().map(|node| node.get_connection_info().clone());
    let mut builder = ClusterClientBuilder::new(infos)
        // One more try after a redirection; a dead node is the breaker's.
        .retries(1)
        .min_retry_wait(1)
        .max_retry_wait(10)
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(CONNECT_TIMEOUT)
        .tcp_settings(TcpSettings::default().set_nodelay(true));
    if way.is_tls {
        builder = builder.tls(TlsMode::Secure).certs(way.certificates.clone());
    }
    builder.build().map_err(|error| setup(&error))
}

fn certificates(tls: &RedisTls) -> Result<TlsCertificates, StoreError> {
    let client_tls = match &tls.client {
        Some((certificate, key)) => Some(ClientTlsConfig {
            client_cert: pem(certificate)?,
            client_key: pem(key)?,
        }),
        None => None,
    };
    let root_cert = tls.ca_file.as_deref().map(pem).transpose()?;
    Ok(TlsCertificates {
        client_tls,
        root_cert,
    })
}

fn pem(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| {
        StoreError::Unavailable(format!("cannot read {}: {error}", path.display()))
    })
}

fn setup(error: &RedisError) -> StoreError {
    StoreError::Unavailable(format!("the way to Redis: {error}"))
}

fn nobody() -> RedisError {
    RedisError::from((ErrorKind::Io, "no server of the list answers"))
}
