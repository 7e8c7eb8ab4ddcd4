//! What nodes said that can be woken, kept in a file of this proxy: after a restart it still knows what a machine that sleeps can do. A
//! hint only: whoever wakes up speaks for itself. Readable for its owner alone, because a card's password may stand in it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::wire::node::{Report, VERSION};
use config::wire::wake::WakeReport;
use policy::registry::Node;

use crate::nodes::fleet::Fleet;
use crate::nodes::kept;
use crate::store::Store;

/// A file that is larger is not ours: a report is 2 KiB.
const FILE_MAX: u64 = 8 << 20;
/// So much of what nodes said last may be lost in a crash.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// The file.
#[derive(Debug)]
pub struct Memory {
    file: PathBuf,
}

impl Memory {
    /// In the folder of the proxy's state.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            file: state_dir.join("sleepers.json"),
        }
    }

    /// Machines that slept, or were awake, when an earlier run ended: they sleep until they say otherwise.
    pub async fn recall(&self, fleet: &Fleet, store: &dyn Store) {
        let reports = match kept::read::<Vec<Report>>(&self.file, FILE_MAX) {
            Ok(reports) => reports,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return tracing::warn!(file = %self.file.display(), %error, "machines that sleep are not known until they wake up by themselves");
            }
        };
        if reports.is_empty() {
            return;
        }
        // Not who is in the tunnel: after a crash nobody is, and whoever sleeps does not come by itself.
        let records = match store.nodes().await {
            Ok(records) => records,
            Err(error) => {
                return tracing::warn!(%error, "machines that sleep are not known until they wake up by themselves");
            }
        };
        for report in reports {
            let mut known = records.iter();
            let known = known.find(|record| record.id == report.node_id);
            let Some(record) =
                known.filter(|record| record.revoked_unix.is_none() && !record.pending)
            else {
                continue;
            };
            fleet.hold(&record.id, record.draining);
            if fleet.recall(&record.name, report, Instant::now()) {
                tracing::info!(node = %record.id, name = record.name, "a machine sleeps, or will speak soon");
            }
        }
    }

    /// Keeps the file right for ever.
    pub async fn keep(self, fleet: Arc<Fleet>) {
        let mut written = Vec::new();
        loop {
            tokio::time::sleep(SAVE_EVERY).await;
            let reports: Vec<Report> =
                fleet.with(|router| router.registry().nodes().filter_map(remembered).collect());
            if reports == written || (reports.is_empty() && !self.file.exists()) {
                continue;
            }
            let Ok(text) = serde_json::to_vec(&reports) else {
                continue;
            };
            written = reports;
            let (file, shown) = (self.file.clone(), self.file.display().to_string());
            let kept = tokio::task::spawn_blocking(move || kept::write(&file, &text)).await;
            if let Ok(Err(error)) = kept {
                tracing::warn!(file = shown, %error, "after a restart machines that sleep are not known until they wake up by themselves");
            }
        }
    }
}

/// What is worth knowing of a node that sleeps: what stays the same while it is awake.
fn remembered(node: &Node) -> Option<Report> {
    node.wake
        .as_ref()
        .filter(|wake: &&WakeReport| wake.can_be_woken())?;
    let mut tiers = node.tiers.clone();
    tiers.retain(|tier| tier.model.is_some());
    for tier in &mut tiers {
        tier.state = config::wire::node::TierState::Sleeping;
        tier.reason = None;
        tier.slots_busy = 0;
        tier.queue_depth = 0;
        tier.tokens_per_second = 0.0;
        tier.prompt_tokens_per_second = 0.0;
        tier.wakes_in_ms = 0;
    }
    Some(Report {
        version: VERSION,
        node_id: node.id.clone(),
        seq: 0,
        draining: false,
        memory: config::wire::node::Memory {
            available_bytes: 0,
            ..node.memory
        },
        tiers,
        wake: node.wake.clone(),
        back_end: node.back_end,
    })
}
