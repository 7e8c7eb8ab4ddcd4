//! Who is measured: a server by its address, the agent that runs on this machine, or tiers that are started for it and end with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use config::settings::node::{Settings, TierSettings};
use config::tier::Tier;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::client::Client;
use super::table::Facts;
use crate::http::{AgentToken, Front};
use crate::local::LocalApi;
use crate::metrics::Metrics;
use crate::models::lock::Keeper;
use crate::tiers::{Launcher, Phase, TierRoom, Tiers};
use crate::work::Work;

/// A model of tens of gigabytes from a slow disk.
const LOAD_MAX: Duration = Duration::from_mins(10);

/// One tier or model.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    client: Client,
    facts: Facts,
    /// What was started for it, if anything was.
    own: Option<Arc<Own>>,
    tier: Option<Tier>,
}

/// Tiers that were started to be measured.
#[derive(Debug)]
struct Own {
    tiers: Arc<Tiers>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Target {
    /// A server that runs.
    pub(super) async fn of_url(
        url: &str,
        model: Option<&str>,
        tier: Option<Tier>,
    ) -> Result<Self, String> {
        let client = Client::new(url, "").map_err(|error| error.to_string())?;
        let listed = client.models().await.map_err(|error| error.to_string())?;
        let id = |entry: &Value| entry["id"].as_str().unwrap_or_default().to_owned();
        let wanted = model.or(tier.map(Tier::as_str));
        let entry = listed
            .iter()
            .find(|entry| wanted.is_none_or(|wanted| is_meant(entry, wanted)));
        let Some(entry) = entry else {
            let known: Vec<String> = listed.iter().take(8).map(id).collect();
            return Err(format!(
                "{url} lists no {}; it lists {}",
                wanted.unwrap_or("model"),
                known.join(", ")
            ));
        };
        let name = wanted.map_or_else(|| id(entry), str::to_owned);
        Ok(Self {
            client: client.with_model(&name),
            facts: facts_of(entry),
            name,
            own: None,
            tier,
        })
    }

    /// The tiers of the settings: of the agent that runs, or started for this.
    pub(super) async fn of_settings(
        settings: Settings,
        only: Option<Tier>,
        launcher: &Launcher,
    ) -> Result<Vec<Self>, String> {
        let wanted: Vec<TierSettings> = settings
            .tiers
            .into_iter()
            .filter(|tier| only.is_none_or(|only| only == tier.tier))
            .collect();
        if wanted.is_empty() {
            let tier = only.map_or("tier", Tier::as_str);
            return Err(format!("the settings have no {tier}: see [[tiers]]"));
        }
        if let Some(address) = settings.node.api_listen {
            let url = format!("http://{address}");
            let mut running = Vec::new();
            for tier in &wanted {
                running.push(Self::of_url(&url, None, Some(tier.tier)).await);
            }
            if running.iter().all(Result::is_ok) {
                return running.into_iter().collect();
            }
        }
        let mut started = Vec::new();
        for tier in wanted {
            let keeper = Arc::new(Keeper::new(&settings.node.state_dir));
            started.push(Self::start(tier, settings.node.memory_max, launcher, &keeper).await?);
        }
        Ok(started)
    }

    async fn start(
        mut settings: TierSettings,
        memory_max: Option<u64>,
        launcher: &Launcher,
        keeper: &Arc<Keeper>,
    ) -> Result<Self, String> {
        // It is measured now, whatever it does otherwise.
        settings.load_on_demand = false;
        settings.keep_alive = None;
        let tier = settings.tier;
        let tiers = Arc::new(Tiers::locked(vec![settings], memory_max, launcher, keeper));
        let front = Arc::new(Front::new(
            tiers.clone(),
            AgentToken::default(),
            Work::default(),
            Arc::new(Metrics::new(tiers.clone())),
        ));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let api = LocalApi::bind(address, front).await;
        let api = api.map_err(|error| format!("no port on {address}: {error}"))?;
        let address = api.local_addr().map_err(|error| error.to_string())?;
        let serving = tokio::spawn(api.serve(TaskTracker::new()));
        let own = Arc::new(Own { tiers, serving });
        let room = own.tiers.room(tier).ok_or("the tier did not start")?;
        if let Err(reason) = until_ready(room).await {
            own.tiers.shutdown().await;
            return Err(format!("{tier}: {reason}"));
        }
        let model = room.report().model;
        let facts = model.map_or_else(Facts::default, |model| Facts {
            model: model.id,
            quantization: model.quantization,
            n_ctx: u64::from(model.n_ctx),
            memory_bytes: None,
        });
        let client = Client::new(&format!("http://{address}"), tier.as_str())
            .map_err(|error| error.to_string())?;
        Ok(Self {
            name: tier.as_str().to_owned(),
            client,
            facts,
            own: Some(own),
            tier: Some(tier),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// With the memory that its worker has now.
    pub(super) fn facts(&self) -> Facts {
        let room = self.own.as_ref().zip(self.tier);
        let room = room.and_then(|(own, tier)| own.tiers.room(tier));
        let pid = room.and_then(|room| room.ready().ok()?.worker.pid());
        Facts {
            memory_bytes: pid.and_then(crate::models::machine::resident),
            ..self.facts.clone()
        }
    }

    /// Ends what was started.
    pub(super) async fn end(self) {
        if let Some(own) = &self.own {
            own.tiers.shutdown().await;
        }
    }
}

async fn until_ready(room: &TierRoom) -> Result<(), String> {
    let mut phases = room.phases();
    let settled = phases.wait_for(|phase| match phase {
        Phase::Ready(_) | Phase::Remote(_) | Phase::Down { .. } => true,
        Phase::Loading { .. } | Phase::Sleeping => false,
    });
    let settled = tokio::time::timeout(LOAD_MAX, settled).await;
    match settled.map(|phase| phase.map(|phase| phase.clone())) {
        Ok(Ok(Phase::Down { reason })) => Err(reason),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("the worker ended".to_owned()),
        Err(_elapsed) => Err("the model is not loaded after ten minutes".to_owned()),
    }
}

/// A server may list models, tiers, or both.
fn is_meant(entry: &Value, wanted: &str) -> bool {
    entry["id"].as_str() == Some(wanted) || entry["tier"].as_str() == Some(wanted)
}

fn facts_of(entry: &Value) -> Facts {
    let report = &entry["report"]["model"];
    let n_ctx = [
        &report["n_ctx"],
        &entry["context_length"],
        &entry["max_model_len"],
        &entry["meta"]["n_ctx"],
    ];
    Facts {
        model: entry["id"].as_str().unwrap_or_default().to_owned(),
        quantization: report["quantization"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        n_ctx: n_ctx.into_iter().find_map(Value::as_u64).unwrap_or(0),
        memory_bytes: None,
    }
}
