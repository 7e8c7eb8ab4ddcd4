//! The town that chaos comes over: two proxies on one Redis, and three machines that serve both, each behind a path of its own whose
//! weather can be changed.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::client::Client;
use tests::node::Node;
use tests::process::{free_udp_port, send};
use tests::proxy::Proxy;
use tests::redis::Redis;
use tests::shaper::{Shaper, Weather};
use tests::wait::until;

pub(crate) const MACHINES: [&str; 3] = ["attic", "cellar", "den"];
/// The same number as a gauge says it.
const MACHINES_READY: f64 = 3.0;
/// A machine that was down is back within this, on a busy test machine.
const BACK_MAX: Duration = Duration::from_mins(1);
const READY_MAX: Duration = Duration::from_mins(1);
/// Lines of a log that are shown of one request.
const LINES_MAX: usize = 8;

/// One home machine: an agent for each proxy.
pub(crate) struct Machine {
    pub(crate) agents: [Node; 1],
    ports: [u16; 2],
}

/// What can be seen of a process from outside.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footprint {
    pub(crate) files: usize,
    pub(crate) rss_kib: u64,
}

pub(crate) struct Town {
    pub(crate) machines: Vec<Machine>,
    pub(crate) proxies: [Proxy; 2],
    pub(crate) doors: [Client; 2],
    shapers: [Shaper; 2],
    _redis: Redis,
}

impl Town {
    pub(crate) async fn built(seed: u64) -> Self {
        let redis = Redis::start().await;
        let ports = [free_udp_port(), free_udp_port()];
        let build = |port: u16| {
            Proxy::generous()
                .limit("lease_secs = 10")
                // Whoever stood still for a moment is tried again soon: there are three machines, and their turns come fast.
                .routing("breaker_open_secs = 1")
                // Two processors for all of this: a machine that gets none of them for a while is not dead.
                .routing("silence_patience_ms = 2000")
                .routing("migration_patience_secs = 60")
                .limit("text_per_day = 1000000")
                .server("connections_per_ip_max = 4000")
                .tunnel(&format!("endpoint = \"127.0.0.1:{port}\""))
                .tunnel("heartbeat_secs = 1")
                .log("info,proxy=debug")
                .counting_in(&redis)
                .patient_with_redis(5_000)
                .start()
        };
        let proxies = [build(ports[0]).await, build(ports[1]).await];
        let shapers = [
            Shaper::start(ports[0], proxies[0].hub(), seed).await,
            Shaper::start(ports[1], proxies[1].hub(), !seed).await,
        ];
        let machines = MACHINES.iter().map(|name| machine(name, &proxies));
        let machines = machines.collect();
        let made = proxies[0].manage(&[
            "key",
            "create",
            "--name",
            "crowd",
            "--key-alone",
            "--tokens-per-day",
            "1000000000",
        ]);
        let key = made["key"].as_str().expect("a key").to_owned();
        let doors = [0, 1].map(|at: usize| {
            let proxy = &proxies[at];
            let patience = Duration::from_mins(5);
            Client::patient(&proxy.url(), &proxy.certificate(), patience).with_bearer(&key)
        });
        let town = Self {
            machines,
            proxies,
            doors,
            shapers,
            _redis: redis,
        };
        town.is_whole().await;
        town
    }

    /// Waits until every proxy hears all machines; says how long that took.
    pub(crate) async fn is_whole(&self) -> Duration {
        let began = Instant::now();
        // First the machines: a proxy goes on to believe one that was killed until it registers anew.
        for machine in &self.machines {
            for agent in &machine.agents {
                until("a machine has a line to each proxy", READY_MAX, || async {
                    let (_, said) = agent.typed(&["status"]);
                    (said.matches(" connected, ").count() == 2).then_some(())
                })
                .await;
            }
        }
        for proxy in &self.proxies {
            until("all machines serve", READY_MAX, || async {
                // One that has just taken over may not answer yet.
                let ready = proxy.try_metric("hearth_nodes_ready").await?;
                (ready >= MACHINES_READY).then_some(())
            })
            .await;
        }
        began.elapsed()
    }

    /// Waits until nobody keeps away from a machine any more, which takes people who ask.
    pub(crate) async fn is_trusted(&self) {
        for proxy in &self.proxies {
            until("every breaker is closed", READY_MAX, || async {
                let worst = proxy.metric("hearth_breaker_state").await;
                (worst < 0.5).then_some(())
            })
            .await;
        }
    }

    /// What the proxies logged of a request, the last lines of it.
    pub(crate) fn logged(&mut self, id: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if id.is_empty() {
            return lines;
        }
        for proxy in &mut self.proxies {
            let log = proxy.process().log();
            let found = log.lines().filter(|line| line.contains(id));
            lines.extend(found.map(ToOwned::to_owned));
        }
        lines.split_off(lines.len().saturating_sub(LINES_MAX))
    }

    /// Changes the weather between a machine and both hubs.
    pub(crate) fn weather(&self, machine: usize, weather: Weather) {
        for shaper in &self.shapers {
            for port in self.machines[machine].ports {
                shaper.set(port, weather);
            }
        }
    }

    /// Datagrams that passed and that were lost.
    pub(crate) fn datagrams(&self) -> (u64, u64) {
        let counts = self.shapers.each_ref().map(Shaper::counts);
        (counts[0].0 + counts[1].0, counts[0].1 + counts[1].1)
    }

    /// Stops a program as a machine's service manager does, and waits.
    pub(crate) async fn terminate(&mut self, machine: usize) {
        for agent in &mut self.machines[machine].agents {
            agent.process().signal("TERM");
        }
        for agent in &mut self.machines[machine].agents {
            agent.process().ended(BACK_MAX).await;
        }
    }

    /// Tells the house something, as its owner.
    pub(crate) fn tell(&self, words: &[&str]) {
        self.proxies[0].manage(words);
    }

    /// Every proxy's sum of one metric.
    pub(crate) async fn metric(&self, prefix: &str) -> f64 {
        let [one, other] = &self.proxies;
        one.metric(prefix).await + other.metric(prefix).await
    }

    /// What each proxy and agent holds.
    pub(crate) fn footprints(&mut self) -> Vec<(String, Footprint)> {
        let mut all = Vec::new();
        for (at, proxy) in self.proxies.iter_mut().enumerate() {
            all.push((format!("proxy {at}"), footprint(proxy.process().pid())));
        }
        for (machine, name) in self.machines.iter_mut().zip(MACHINES) {
            for (at, agent) in machine.agents.iter_mut().enumerate() {
                let pid = agent.process().pid();
                all.push((format!("{name} {at}"), footprint(pid)));
            }
        }
        all
    }

    /// Slots that are busy, as the nodes report them.
    pub(crate) fn slots_busy(&self) -> u64 {
        let busy = |proxy: &Proxy| -> u64 {
            let status = proxy.manage(&["status"]);
            let words = status.to_string();
            // "fast ready tiny-fast 0/4"
            let slots = words.split('"').filter(|word| word.starts_with("fast "));
            let busy = slots.filter_map(|word| word.rsplit(' ').next()?.split_once('/'));
            busy.filter_map(|(busy, _)| busy.parse::<u64>().ok()).sum()
        };
        self.proxies.iter().map(busy).sum()
    }

    /// Every line of the books.
    pub(crate) fn records(&self) -> Vec<Value> {
        let records = self.proxies[0].manage(&["usage", "--records"]);
        records.as_array().cloned().unwrap_or_default()
    }
}

impl Machine {
    pub(crate) fn kill(&mut self) {
        for agent in &mut self.agents {
            agent.kill();
        }
    }

    pub(crate) fn start(&mut self) {
        for agent in &mut self.agents {
            agent.restart();
        }
    }

    pub(crate) fn signal(&mut self, signal: &str) {
        for agent in &mut self.agents {
            agent.process().signal(signal);
        }
    }

    /// Sends a signal to the workers; one that has just gone misses it.
    pub(crate) fn signal_workers(&mut self, signal: &str) {
        for agent in &mut self.agents {
            for worker in agent.process().workers() {
                send(signal, worker);
            }
        }
    }
}

/// One program that holds a line to each proxy: the first from the first port, the second from the one behind it.
fn machine(name: &str, proxies: &[Proxy; 2]) -> Machine {
    let ports = [free_udp_port(), free_udp_port()];
    assert_eq!(ports[0] + 1, ports[1], "two ports side by side");
    let agent = Node::named(name)
        .setting(&format!("bind = \"127.0.0.1:{}\"", ports[0]))
        .setting("grace_secs = 2")
        .tier("fast")
        .join(&proxies[0]);
    Machine {
        agents: [agent],
        ports,
    }
}

/// Open files and resident memory of a process.
pub(crate) fn footprint(pid: u32) -> Footprint {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss_kib = rss.and_then(|rss| rss.trim().trim_end_matches(" kB").parse().ok());
    Footprint {
        files,
        rss_kib: rss_kib.unwrap_or_default(),
    }
}
