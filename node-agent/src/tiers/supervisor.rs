//! Keeps one worker process running: starts it, notices its end, starts it again with growing pauses. Decides nothing about requests;
//! those of a dead worker end by themselves.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::{LoadError, LoadSpec, ModelCard, Worker};
use tokio::select;
use tokio_util::sync::CancellationToken;

use super::{Launcher, Phase, Ready, TierRoom};
use crate::models;
use crate::template::Template;

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A worker that lived this long has proved that it can.
const PROVEN: Duration = Duration::from_mins(1);
/// Context lengths that are tried when the model's own does not fit into memory.
const SMALLER_CONTEXTS: [u32; 7] = [131_072, 65_536, 32_768, 16_384, 8_192, 4_096, 2_048];

/// Runs until `stop`; the worker ends with it.
pub(super) async fn supervise(room: Arc<TierRoom>, launcher: Launcher, stop: CancellationToken) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        let Some(reason) = live(&room, &launcher, &stop).await else {
            return;
        };
        if began.elapsed() >= PROVEN {
            pause = PAUSE_MIN;
        }
        tracing::warn!(tier = %room.tier(), %reason, again_in_ms = pause.as_millis(), "a tier is down");
        room.enter(Phase::Down {
            reason: without_folder(&reason, &room.settings().model),
        });
        if stop
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_none()
        {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One life of a worker; why it ended, or `None` if it was stopped.
async fn live(
    room: &Arc<TierRoom>,
    launcher: &Launcher,
    stop: &CancellationToken,
) -> Option<String> {
    room.enter(Phase::Loading);
    let began = Instant::now();
    // Dropping the future kills a worker that is still loading.
    let ready = match stop.run_until_cancelled(load(room, launcher)).await? {
        Ok(ready) => Arc::new(ready),
        Err(reason) => return Some(reason),
    };
    let card = &ready.card;
    tracing::info!(
        tier = %room.tier(),
        model = %room.settings().model_id,
        architecture = %card.architecture,
        quantization = %card.quantization,
        n_ctx = card.n_ctx,
        slots = card.slots,
        threads = card.threads,
        ms = began.elapsed().as_millis(),
        "a tier is ready"
    );
    room.enter(Phase::Ready(ready.clone()));
    select! {
        reason = ready.worker.exited() => Some(reason),
        () = stop.cancelled() => {
            room.enter(Phase::Down { reason: "the node is shutting down".to_owned() });
            // A request may still hold it for a moment; then its end kills the process.
            if let Some(ready) = Arc::into_inner(ready) {
                ready.worker.shutdown().await;
            }
            None
        }
    }
}

async fn load(room: &TierRoom, launcher: &Launcher) -> Result<Ready, String> {
    let path = room.settings().model.clone();
    tokio::task::spawn_blocking(move || models::check(&path))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|problem| problem.to_string())?;
    let (worker, card) = spawn(room, launcher)
        .await
        .map_err(|error| error.to_string())?;
    let template = Template::new(
        card.chat_template.as_deref(),
        &card.bos_token,
        &card.eos_token,
        card.add_bos,
    )
    .map_err(|error| error.to_string())?;
    Ok(Ready {
        worker,
        card,
        template,
    })
}

/// Starts the worker; if no context length is configured, with the largest that fits.
async fn spawn(room: &TierRoom, launcher: &Launcher) -> Result<(Worker, ModelCard), LoadError> {
    let spec = room.load_spec();
    let mut smaller = SMALLER_CONTEXTS.into_iter();
    let mut next = spec.clone();
    loop {
        let tried = start(room, launcher, next).await;
        match (tried, smaller.next()) {
            (Err(LoadError::Memory { needed_bytes, .. }), Some(n_ctx)) if spec.n_ctx == 0 => {
                tracing::info!(tier = %room.tier(), needed_bytes, n_ctx, "the context does not fit, trying a smaller one");
                next = LoadSpec {
                    n_ctx,
                    ..spec.clone()
                };
            }
            (tried, _) => return tried,
        }
    }
}

async fn start(
    room: &TierRoom,
    launcher: &Launcher,
    spec: LoadSpec,
) -> Result<(Worker, ModelCard), LoadError> {
    room.starts.fetch_add(1, Ordering::Relaxed);
    Worker::spawn(&launcher.program, &launcher.args, spec).await
}

/// The proxy is told the file, not where this machine keeps it.
fn without_folder(reason: &str, model: &Path) -> String {
    let folder = model.parent().and_then(Path::to_str).unwrap_or_default();
    if folder.is_empty() {
        return reason.to_owned();
    }
    reason.replace(&format!("{folder}/"), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_shows_the_file_and_not_its_folder() {
        let model = Path::new("/home/ann/models/a.gguf");
        assert_eq!(
            without_folder("/home/ann/models/a.gguf is not a GGUF file", model),
            "a.gguf is not a GGUF file"
        );
        assert_eq!(without_folder("killed", Path::new("a.gguf")), "killed");
    }
}
