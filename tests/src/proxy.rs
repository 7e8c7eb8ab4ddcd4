//! A real hearth-proxy with a folder of its own, on loopback ports, with settings a story may change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Reply};
use crate::issuer::Issuer;
use crate::process::{Process, free_tcp_port, free_udp_port, program};
use crate::redis::Redis;
use crate::wait::{page, until};

/// Where proxies live.
pub const HOME: &str = "127.0.0.1";
/// Where one may move to.
pub const NEW_HOME: &str = "127.0.0.2";

/// Settings of a proxy to be started.
#[derive(Default)]
pub struct Builder {
    limits: BTreeMap<String, String>,
    routing: String,
    server: String,
    issuers: String,
    store: String,
    log: String,
    plans: String,
    tunnel: String,
    name: Option<String>,
    host: Option<&'static str>,
}

impl Builder {
    /// Lives at this address instead of [`HOME`].
    #[must_use]
    pub const fn at(mut self, host: &'static str) -> Self {
        self.host = Some(host);
        self
    }

    /// The name under which it is known, instead of its address.
    #[must_use]
    pub fn known_as(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// What the program writes, as `RUST_LOG`.
    #[must_use]
    pub fn log(mut self, filter: &str) -> Self {
        self.log = format!("[log]\nfilter = \"{filter}\"\n");
        self
    }

    /// One line of `[limits]`; a later one replaces an earlier one.
    #[must_use]
    pub fn limit(mut self, line: &str) -> Self {
        let (key, value) = line.split_once(" = ").expect("key = value");
        self.limits.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Lines of sections of their own: plans, groups, prices.
    #[must_use]
    pub fn sections(mut self, lines: &str) -> Self {
        writeln!(self.plans, "{lines}").expect("a string grows");
        self
    }

    /// One line of `[routing]`.
    #[must_use]
    pub fn routing(mut self, line: &str) -> Self {
        writeln!(self.routing, "{line}").expect("a string grows");
        self
    }

    /// One line of `[tunnel]`.
    #[must_use]
    pub fn tunnel(mut self, line: &str) -> Self {
        writeln!(self.tunnel, "{line}").expect("a string grows");
        self
    }

    /// One line of `[server]`.
    #[must_use]
    pub fn server(mut self, line: &str) -> Self {
        writeln!(self.server, "{line}").expect("a string grows");
        self
    }

    /// Believes this issuer.
    #[must_use]
    pub fn trusting(mut self, issuer: &Issuer) -> Self {
        write!(
            self.issuers,
            "[[auth.issuers]]\nissuer = \"{}\"\naudiences = [\"{}\"]\nalgorithms = [\"RS256\", \"ES256\", \"EdDSA\"]\njwks_url = \"{}\"\n",
            issuer.name(),
            Issuer::AUDIENCE,
            issuer.jwks_url(),
        )
        .expect("a string grows");
        self
    }

    /// Counts in this Redis.
    #[must_use]
    pub fn counting_in(mut self, redis: &Redis) -> Self {
        // Refusing while Redis is away, so that a story counts exactly; on a busy machine Redis may take its time.
        self.store = format!(
            "[store]\nkind = \"redis\"\nurl = \"{}\"\nsecret_key_file = \"{}\"\non_failure = \"closed\"\ntimeout_ms = 1000\n",
            redis.url(),
            redis.key_file().display(),
        );
        self
    }

    /// Waits so long for Redis before it counts as away: where everybody is short of processors and disks, that is no failure.
    #[must_use]
    pub fn patient_with_redis(mut self, ms: u32) -> Self {
        let patient = format!("timeout_ms = {ms}");
        self.store = self.store.replace("timeout_ms = 1000", &patient);
        self
    }

    /// Starts it and waits until it answers.
    pub async fn start(self) -> Proxy {
        // The stories' own traffic comes from one address: only the stories about limits want them low.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (port, admin_port, udp_port) = (free_tcp_port(), free_tcp_port(), free_udp_port());
        let host = self.host.unwrap_or(HOME);
        let mut limits = String::new();
        for (key, value) in &self.limits {
            writeln!(limits, "{key} = {value}").expect("a string grows");
        }
        let settings = format!(
            "[server]\nlisten = [\"{host}:{port}\"]\nadmin_listen = \"127.0.0.1:{admin_port}\"\nstate_dir = \"{state}\"\n\
             public_url = \"https://{name}:{port}\"\nthreads = 1\n{server}\n\
             [tls]\nmode = \"self-signed\"\nnames = [\"localhost\", \"{HOME}\", \"{NEW_HOME}\", \"::1\"]\n\n\
             [tunnel]\nlisten = \"{host}:{udp_port}\"\n{tunnel}\n[limits]\nguard_per_minute = 60000\nguard_burst = 10000\n{limits}\n\
             [routing]\n{routing}\n{log}\n{store}\n{plans}\n{issuers}",
            name = self.name.as_deref().unwrap_or(host),
            state = folder.path().join("state").display(),
            server = self.server,
            limits = limits,
            routing = self.routing,
            log = self.log,
            store = self.store,
            plans = self.plans,
            tunnel = self.tunnel,
            issuers = self.issuers,
        );
        fs::write(folder.path().join("proxy.toml"), settings).expect("settings can be written");
        let mut proxy = Proxy {
            folder,
            host,
            port,
            admin_port,
            udp_port,
            process: None,
        };
        proxy.restart().await;
        proxy
    }
}

/// A running proxy.
pub struct Proxy {
    // Dropped first: a failing story shows the log before the folder goes.
    process: Option<Process>,
    folder: TempDir,
    host: &'static str,
    port: u16,
    admin_port: u16,
    udp_port: u16,
}

impl Proxy {
    /// Settings to change before the start; generous limits unless a story sets them.
    pub fn with() -> Builder {
        Builder::default()
    }

    /// A proxy whose limits no story reaches by accident.
    pub async fn start() -> Self {
        Self::generous().start().await
    }

    /// Settings with limits out of the way.
    pub fn generous() -> Builder {
        [
            "text_per_minute_per_ip = 100000",
            "text_per_minute_per_user = 100000",
            "text_per_day = 100000",
            "health_per_minute_per_ip = 100000",
            "health_per_minute_per_user = 100000",
            "concurrent_per_user = 1000",
        ]
        .into_iter()
        .fold(Builder::default(), Builder::limit)
    }

    /// Starts the program (again) and waits until it is ready.
    pub async fn restart(&mut self) {
        self.process = None;
        let mut command = Command::new(program("hearth-proxy"));
        command.args(["serve", "--config"]).arg(self.config());
        self.process = Some(Process::start("proxy", &mut command, self.folder.path()));
        let port = self.admin_port;
        let process = self.process.as_mut().expect("just started");
        until("the proxy answers", Duration::from_secs(20), || {
            process.assert_running();
            page(port, "/healthz")
        })
        .await;
    }

    /// Killed, and started again at its other address.
    pub async fn move_house(&mut self) {
        self.kill();
        let settings = fs::read_to_string(self.config()).expect("it has settings");
        let line = |line: &str| {
            if line.starts_with("listen = ") {
                line.replace(HOME, NEW_HOME)
            } else {
                line.to_owned()
            }
        };
        let moved: Vec<String> = settings.lines().map(line).collect();
        fs::write(self.config(), moved.join("\n")).expect("settings can be written");
        self.host = NEW_HOME;
        self.restart().await;
    }

    /// Starts the program again while it runs: the new process takes over from the old one, which is returned. Does not wait.
    pub fn upgrade(&mut self) -> Process {
        let mut command = Command::new(program("hearth-proxy"));
        command
            .args(["serve", "--upgrade", "--config"])
            .arg(self.config());
        let next = Process::start("proxy-next", &mut command, self.folder.path());
        self.process.replace(next).expect("the proxy was started")
    }

    /// The process itself, for signals.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the proxy was started")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("proxy.toml")
    }

    /// `https://address:port`.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.host, self.port)
    }

    /// The address of the TLS listener.
    pub fn address(&self) -> (&'static str, u16) {
        (self.host, self.port)
    }

    /// Where its end of the tunnel listens.
    pub fn hub(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.udp_port))
    }

    /// The certificate it made for itself.
    pub fn certificate(&self) -> String {
        let path = self.folder.path().join("state/self-signed.cert.pem");
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Runs a management command and returns its JSON.
    pub fn manage(&self, arguments: &[&str]) -> Value {
        let ran = Command::new(program("hearth-proxy"))
            .args(arguments)
            .args(["--output", "json", "--config"])
            .arg(self.config())
            .output()
            .expect("hearth-proxy runs");
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(
            ran.status.success(),
            "{arguments:?}: {said}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        serde_json::from_str(&said)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {said}"))
    }

    /// A new API key: its id and the key itself.
    pub fn key(&self, name: &str) -> (String, String) {
        let made = self.manage(&["key", "create", "--name", name]);
        let text = |value: &Value| {
            value
                .as_str()
                .unwrap_or_else(|| panic!("no key in {made}"))
                .to_owned()
        };
        (text(&made["record"]["id"]), text(&made["key"]))
    }

    /// A join link for one node.
    pub fn invite(&self) -> String {
        let made = self.manage(&["node", "invite"]);
        made["link"]
            .as_str()
            .unwrap_or_else(|| panic!("no link in {made}"))
            .to_owned()
    }

    /// A client without a credential.
    pub fn stranger(&self) -> Client {
        Client::new(&self.url(), &self.certificate(), None)
    }

    /// A client with a new API key.
    pub fn friend(&self) -> Client {
        self.stranger().with_bearer(&self.key("friend").1)
    }

    /// A client with a new API key of another person.
    pub fn friend_of(&self, owner: &str) -> Client {
        let made = self.manage(&["key", "create", "--name", owner, "--owner", owner]);
        self.stranger().with_bearer(
            made["key"]
                .as_str()
                .unwrap_or_else(|| panic!("no key in {made}")),
        )
    }

    /// Waits until the models given can be asked.
    pub async fn serves(&self, client: &Client, models: &[&str]) {
        until(
            &format!("the proxy lists {models:?}"),
            Duration::from_secs(30),
            || async {
                let list = client.try_get("/v1/models").await?;
                let ready = |model: &str| {
                    list.json()["data"].as_array().is_some_and(|data| {
                        data.iter().any(|entry| {
                            entry["id"] == model && entry["status"]["value"] == "loaded"
                        })
                    })
                };
                models.iter().all(|model| ready(model)).then_some(())
            },
        )
        .await;
    }

    /// Waits until it has written down where its nodes are: from then on it calls them after a crash.
    pub async fn remembers_its_nodes(&self) {
        let endpoints = self.folder.path().join("state/endpoints.json");
        until(
            "where nodes were heard is on the disk",
            Duration::from_secs(20),
            || async {
                let text = fs::read_to_string(&endpoints).unwrap_or_default();
                text.contains("127.0.0.1:").then_some(())
            },
        )
        .await;
    }

    /// One sample of `/metrics`: the sum over the series whose line starts with the prefix.
    pub async fn metric(&self, prefix: &str) -> f64 {
        self.try_metric(prefix).await.expect("metrics answer")
    }

    /// The same of a proxy that may be away.
    pub async fn try_metric(&self, prefix: &str) -> Option<f64> {
        let page = page(self.admin_port, "/metrics").await?;
        let samples = page
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Some(samples.sum())
    }

    /// A GET on the admin listener.
    pub async fn admin(&self, path: &str) -> Reply {
        let client = Client::new(
            &format!("http://127.0.0.1:{}", self.admin_port),
            &self.certificate(),
            None,
        );
        client.get(path).await
    }
}
