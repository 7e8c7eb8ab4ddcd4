//! What the proxy is told of a tier: what it is doing, what it serves, how busy it is and when it will answer. Changes nothing.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use config::settings::node::{TierKind, TierSettings};
use config::wire::node::{ModelReport, PREFIXES_MAX, TierReport, TierState};
use engine::{Modalities, ModelCard};

use super::{Phase, TierRoom};
use crate::models::Gguf;
use crate::tiers::remote::Remote;

/// Tokens of one request where nobody tells; set `context` to say otherwise.
const N_CTX_UNKNOWN: u32 = 8_192;

impl TierRoom {
    /// What the proxy is told.
    pub fn report(&self) -> TierReport {
        let (state, reason, model) = match self.phase() {
            Phase::Loading { .. } => (TierState::Loading, None, self.last()),
            Phase::Sleeping => (TierState::Sleeping, None, self.last()),
            Phase::Ready(ready) => {
                let model = self.model_report(ready.card.clone());
                (TierState::Ready, None, Some(model))
            }
            Phase::Remote(remote) => (TierState::Ready, None, Some(self.remote_report(&remote))),
            Phase::Down { reason } => (TierState::Down, Some(reason), None),
        };
        let stats = self.stats();
        let settings = self.settings();
        TierReport {
            tier: self.tier(),
            state,
            reason,
            model,
            slots: settings.slots,
            slots_busy: u32::from(stats.slots_busy),
            queue_depth: stats.queue_depth,
            queue_max: settings.queue_max,
            tokens_per_second: finite(stats.tokens_per_second),
            prompt_tokens_per_second: finite(stats.prompt_tokens_per_second),
            elsewhere: settings
                .upstream
                .as_ref()
                .is_some_and(|upstream| !upstream.local),
            wakes_in_ms: self.wakes_in(state).map_or(0, millis),
            prefixes: self.prefixes(),
        }
    }

    /// How long until it answers; `None`: it does already, or nobody knows that it will.
    fn wakes_in(&self, state: TierState) -> Option<Duration> {
        let size = self.last().map_or(0, |model| model.size_bytes);
        match state {
            TierState::Loading | TierState::Sleeping => Some(self.pace.left(size, Instant::now())),
            TierState::Ready | TierState::Down => None,
        }
    }

    /// The links of what its worker holds, the newest last. Another worker or none holds nothing of it.
    fn prefixes(&self) -> Vec<String> {
        let held = match &*self.phase.borrow() {
            Phase::Ready(ready) => ready.worker.held().borrow().clone(),
            Phase::Remote(_) | Phase::Loading { .. } | Phase::Sleeping | Phase::Down { .. } => {
                return Vec::new();
            }
        };
        let newest = held.get(held.len().saturating_sub(PREFIXES_MAX)..);
        let newest = newest.into_iter().flatten();
        newest.map(|link| format!("{link:016x}")).collect()
    }

    /// Remembers what its settings say, for a tier whose model nobody can look into before it answers.
    pub(in crate::tiers) fn know_by_name(&self) {
        let settings = self.settings();
        let n_ctx = settings.context.unwrap_or(N_CTX_UNKNOWN);
        self.remember(ModelReport {
            id: settings.model_id.clone(),
            aliases: settings.aliases.clone(),
            file_sha256: String::new(),
            size_bytes: 0,
            n_ctx,
            n_ctx_train: n_ctx,
            parameters: 0,
            quantization: String::new(),
            architecture: String::new(),
            modalities: crafts(&settings),
        });
    }

    /// Remembers what the model file says, for a tier that has not been loaded yet.
    pub(in crate::tiers) fn know(&self, gguf: &Gguf, n_ctx: u32) {
        let settings = self.settings();
        let n_ctx_train = gguf
            .arch_number("context_length")
            .and_then(|n| u32::try_from(n).ok());
        let n_ctx_train = n_ctx_train.unwrap_or_default();
        self.remember(ModelReport {
            id: settings.model_id.clone(),
            aliases: settings.aliases.clone(),
            file_sha256: String::new(),
            size_bytes: gguf.tensor_bytes(),
            n_ctx: n_ctx.min(n_ctx_train),
            n_ctx_train,
            parameters: gguf.parameters(),
            quantization: gguf.quantisation().unwrap_or_default().to_owned(),
            architecture: gguf.architecture().unwrap_or_default().to_owned(),
            modalities: crafts(&settings),
        });
    }

    pub(super) fn remember(&self, model: ModelReport) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(model);
        self.changed();
    }

    /// What was known about the model when it was last seen.
    pub(super) fn last(&self) -> Option<ModelReport> {
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        last.file_sha256 = self.sha256();
        Some(last)
    }

    fn remote_report(&self, remote: &Remote) -> ModelReport {
        let settings = self.settings.load();
        let n_ctx = remote.n_ctx.or(settings.context).unwrap_or(N_CTX_UNKNOWN);
        ModelReport {
            id: settings.model_id.clone(),
            aliases: settings.aliases.clone(),
            file_sha256: String::new(),
            size_bytes: 0,
            n_ctx: settings.context.unwrap_or(n_ctx).min(n_ctx),
            n_ctx_train: n_ctx,
            parameters: 0,
            quantization: String::new(),
            architecture: "remote".to_owned(),
            modalities: Vec::new(),
        }
    }

    pub(super) fn model_report(&self, card: ModelCard) -> ModelReport {
        let settings = self.settings.load();
        ModelReport {
            id: settings.model_id.clone(),
            aliases: settings.aliases.clone(),
            file_sha256: self.sha256(),
            size_bytes: card.size_bytes,
            n_ctx: card.n_ctx,
            n_ctx_train: card.n_ctx_train,
            parameters: card.parameters,
            quantization: card.quantization,
            architecture: card.architecture,
            modalities: [kinds(card.modalities), crafts(&settings)].concat(),
        }
    }
}

/// The words for what a model takes besides text.
fn kinds(takes: Modalities) -> Vec<String> {
    let kinds = [(takes.image, "image"), (takes.audio_hz.is_some(), "audio")];
    let taken = kinds.into_iter().filter(|(taken, _kind)| *taken);
    taken.map(|(_taken, kind)| kind.to_owned()).collect()
}

const fn finite(rate: f64) -> f64 {
    if rate.is_finite() { rate } else { 0.0 }
}

/// What the model makes besides text, as the proxy knows it.
fn crafts(settings: &TierSettings) -> Vec<String> {
    match settings.kind {
        TierKind::Chat => Vec::new(),
        TierKind::Embedding | TierKind::Rerank => vec![settings.kind.as_str().to_owned()],
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
