//! Keeps one worker process running: starts it, notices its end, starts it again with growing pauses. Decides nothing about requests;
//! those of a dead worker end by themselves.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use config::settings::node::TierSettings;
use engine::{LoadError, LoadSpec, ModelCard, Worker};
use futures_util::future::{join, join_all};
use tokio::select;
use tokio_util::sync::CancellationToken;

use super::footprint::{self, Footprint};
use super::load_spec::load_spec;
use super::placed;
use super::shelf::Place;
use super::{Launcher, Phase, Ready, TierRoom, talk};
use crate::models::lock::{Keeper, Pin};
use crate::models::{self, Gguf};

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A worker that lived this long has proved that it can, also if nobody asked it anything.
const PROVEN: Duration = Duration::from_mins(1);

/// What all lives of a tier share.
struct House {
    launcher: Launcher,
    /// `None`: nothing is pinned.
    keeper: Option<Arc<Keeper>>,
}

/// How a worker's life ended.
enum End {
    /// It was stopped with the node.
    Stopped,
    /// Nobody needed it, or somebody else needed its memory.
    Asleep,
    /// It ended by itself after it had been ready.
    Crashed {
        reason: String,
        /// It had brought an answer to its end.
        proven: bool,
    },
    /// It would not start.
    Broken(String),
}

/// Runs until `stop`; the worker ends with it.
pub(super) async fn supervise(
    room: Arc<TierRoom>,
    launcher: Launcher,
    keeper: Option<Arc<Keeper>>,
    stop: CancellationToken,
) {
    let house = House { launcher, keeper };
    let mut pause = PAUSE_MIN;
    let mut wanted = false;
    introduce(&room, house.keeper.as_deref()).await;
    loop {
        if matches!(room.phase(), Phase::Sleeping) {
            if stop
                .run_until_cancelled(room.wanted.notified())
                .await
                .is_none()
            {
                return;
            }
            wanted = true;
        }
        let began = Instant::now();
        let (reason, crashed, proven) = match live(&room, &house, &stop, wanted).await {
            End::Stopped => return,
            End::Asleep => continue,
            End::Crashed { reason, proven } => (reason, true, proven),
            End::Broken(reason) => (reason, false, false),
        };
        wanted = false;
        if proven || began.elapsed() >= PROVEN {
            pause = PAUSE_MIN;
        }
        tracing::warn!(tier = %room.tier(), %reason, again_in_ms = pause.as_millis(), "a tier is down");
        room.enter(if crashed && pause == PAUSE_MIN {
            // It could answer until now: it is on its way back, and whoever asks waits for it. One that answers nothing in between is down.
            Phase::Loading { wanted: false }
        } else {
            Phase::Down {
                reason: without_folder(&reason, &room.settings().model),
            }
        });
        let pausing = tokio::time::sleep(pause);
        if stop.run_until_cancelled(pausing).await.is_none() {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Lets the proxy know a model that nobody has loaded yet.
async fn introduce(room: &TierRoom, keeper: Option<&Keeper>) {
    let settings = room.settings();
    if models::is_script(&settings.model) {
        return room.know_by_name();
    }
    if let Some(pin) = keeper.and_then(|keeper| keeper.pinned(&room.shelf.lock_name(&settings))) {
        room.set_pin(settings.model.clone(), Arc::new(pin));
    }
    let share = room.shelf.share(&settings.model);
    let read = tokio::task::spawn_blocking(move || {
        let gguf = Gguf::open(&settings.model).map_err(|problem| problem.to_string())?;
        let planned = footprint::plan(&settings, &share).map_err(|error| error.to_string())?;
        Ok::<_, String>((gguf, planned.n_ctx))
    });
    match read.await {
        Ok(Ok((gguf, n_ctx))) => room.know(&gguf, n_ctx),
        Ok(Err(reason)) if matches!(room.phase(), Phase::Sleeping) => room.enter(Phase::Down {
            reason: without_folder(&reason, &room.settings().model),
        }),
        // It is loaded next, and that says what is wrong.
        Ok(Err(_)) => {}
        Err(error) => tracing::warn!(%error, "a model file could not be read"),
    }
}

/// One life of a tier: from loading until its worker ends or sleeps. New settings may bring another worker in between.
async fn live(room: &Arc<TierRoom>, house: &House, stop: &CancellationToken, wanted: bool) -> End {
    room.enter(Phase::Loading { wanted });
    let mut next = room.next.subscribe();
    let settings = next.borrow_and_update().clone();
    // Dropping the future kills a worker that is still loading.
    let loading = load_in_turn(room, house, settings);
    let mut ready = match stop.run_until_cancelled(loading).await {
        None => return End::Stopped,
        Some(Ok(ready)) => ready,
        Some(Err(reason)) => return End::Broken(reason),
    };
    let mut retired = Retired::default();
    loop {
        let keep_alive = room.settings().keep_alive;
        select! {
            reason = ready.worker.exited() => {
                let proven = ready.worker.has_answered();
                return End::Crashed { reason, proven };
            }
            () = stop.cancelled() => {
                room.enter(Phase::Down { reason: "the node is shutting down".to_owned() });
                join(put_down(ready), retired.put_down()).await;
                return End::Stopped;
            }
            why = dispensable(room, keep_alive) => {
                if falls_asleep(room, why) {
                    put_down(ready).await;
                    return End::Asleep;
                }
            }
            Ok(()) = next.changed() => {
                let settings = next.borrow_and_update().clone();
                retired.add(&ready);
                match swap(room, house, stop, (ready, settings)).await {
                    Ok(new) => ready = new,
                    Err(end) => return retired.follow(end).await,
                }
            }
        }
    }
}

/// Whether it does: not if somebody has asked for it meanwhile.
fn falls_asleep(room: &TierRoom, why: &'static str) -> bool {
    let asleep = room.lie_down(Phase::Sleeping);
    if asleep {
        tracing::info!(tier = %room.tier(), why, "a tier sleeps");
    }
    asleep
}

/// Resolves with the reason why the worker may go.
async fn dispensable(room: &TierRoom, keep_alive: Option<Duration>) -> &'static str {
    let unused = async {
        match keep_alive {
            Some(keep_alive) => room.unused_for(keep_alive).await,
            None => std::future::pending().await,
        }
    };
    select! {
        () = unused => "nobody has asked for it during keep_alive",
        () = room.leave.notified() => "another tier needs its memory",
    }
}

/// Brings another worker in. While memory for both is there, the old one answers until the new one is ready; else it finishes its
/// answers first. New settings that do not work leave the old worker where it is.
async fn swap(
    room: &Arc<TierRoom>,
    house: &House,
    stop: &CancellationToken,
    (old, settings): (Arc<Ready>, Arc<TierSettings>),
) -> Result<Arc<Ready>, End> {
    let tier = room.tier();
    let admitted = match stop
        .run_until_cancelled(admit(room, house, &settings))
        .await
    {
        None => return Err(End::Stopped),
        Some(Err(reason)) => return Ok(kept(tier, &reason, old)),
        Some(Ok(admitted)) => admitted,
    };
    let place = match room.shelf.try_take(admitted.footprint.total()) {
        Ok(Some(place)) => place,
        Ok(None) => return swap_cold(room, house, stop, (old, settings)).await,
        Err(error) => return Ok(kept(tier, &error.to_string(), old)),
    };
    match stop
        .run_until_cancelled(load(room, house, (settings, admitted), place))
        .await
    {
        None => Err(End::Stopped),
        Some(Err(reason)) => Ok(kept(tier, &reason, old)),
        Some(Ok(ready)) => {
            tracing::info!(%tier, "a tier has a new worker; running answers finish on the old one");
            Ok(ready)
        }
    }
}

fn kept(tier: config::tier::Tier, reason: &str, old: Arc<Ready>) -> Arc<Ready> {
    tracing::warn!(%tier, %reason, "the new settings of a tier do not work; it goes on with the old ones");
    old
}

/// Without memory for two: new requests wait, running answers finish, then the models change places.
async fn swap_cold(
    room: &Arc<TierRoom>,
    house: &House,
    stop: &CancellationToken,
    (old, settings): (Arc<Ready>, Arc<TierSettings>),
) -> Result<Arc<Ready>, End> {
    room.enter(Phase::Loading { wanted: true });
    let unused = room.held_up(room.unused_by_all());
    if stop.run_until_cancelled(unused).await.is_none() {
        return Err(End::Stopped);
    }
    put_down(old).await;
    match stop
        .run_until_cancelled(load_in_turn(room, house, settings))
        .await
    {
        None => Err(End::Stopped),
        Some(loaded) => loaded.map_err(End::Broken),
    }
}

/// Answers that still run on it end with an error; those who wait for them hold it meanwhile.
async fn put_down(ready: Arc<Ready>) {
    ready.worker.shutdown().await;
}

/// Workers whose place another one took and that finish their answers.
#[derive(Default)]
struct Retired {
    workers: Vec<Weak<Ready>>,
}

impl Retired {
    fn add(&mut self, ready: &Arc<Ready>) {
        self.workers.retain(|worker| worker.strong_count() > 0);
        self.workers.push(Arc::downgrade(ready));
    }

    /// With the node they are stopped too.
    async fn follow(&self, end: End) -> End {
        if matches!(end, End::Stopped) {
            self.put_down().await;
        }
        end
    }

    async fn put_down(&self) {
        let workers = self.workers.iter().filter_map(Weak::upgrade);
        join_all(workers.map(put_down)).await;
    }
}

/// Waits for a place in the memory, then loads.
async fn load_in_turn(
    room: &Arc<TierRoom>,
    house: &House,
    settings: Arc<TierSettings>,
) -> Result<Arc<Ready>, String> {
    let admitted = admit(room, house, &settings).await?;
    room.loads_bytes(admitted.footprint.need.weights);
    let place = room.shelf.take(admitted.footprint.total());
    let place = room.held_up(place).await;
    let place = place.map_err(|error| error.to_string())?;
    load(room, house, (settings, admitted), place).await
}

/// A model that may be served, and how.
struct Admitted {
    footprint: Footprint,
    pin: Option<Arc<Pin>>,
}

/// Before anything runs: is it the model that it was, and what does it take? Reads all of a file that is new or was touched.
async fn admit(
    room: &TierRoom,
    house: &House,
    settings: &Arc<TierSettings>,
) -> Result<Admitted, String> {
    let stop = CancellationToken::new();
    // If nobody waits any longer, the hashing ends too.
    let _end = stop.clone().drop_guard();
    let share = room.shelf.share(&settings.model);
    let name = room.shelf.lock_name(settings);
    let (keeper, settings) = (house.keeper.clone(), settings.clone());
    let admitted = tokio::task::spawn_blocking(move || {
        let footprint = footprint::plan(&settings, &share).map_err(|error| error.to_string())?;
        let pin = keeper.map(|keeper| keeper.admit(&name, &settings.model, &stop));
        let pin = pin.transpose().map_err(|error| error.to_string())?;
        Ok(Admitted {
            footprint,
            pin: pin.map(Arc::new),
        })
    });
    admitted.await.map_err(|error| error.to_string())?
}

/// Starts a worker and shows it to requests.
async fn load(
    room: &Arc<TierRoom>,
    house: &House,
    (settings, admitted): (Arc<TierSettings>, Admitted),
    place: Place,
) -> Result<Arc<Ready>, String> {
    let began = Instant::now();
    let spec = load_spec(&settings, &admitted.footprint);
    let (worker, card) = start(room, &house.launcher, spec)
        .await
        .map_err(|error| error.to_string())?;
    let template = talk::template(&settings.engine, &card)?;
    tracing::info!(
        tier = %room.tier(),
        model = %settings.model_id,
        architecture = %card.architecture,
        quantization = %card.quantization,
        n_ctx = card.n_ctx,
        slots = card.slots,
        threads = card.threads,
        memory_bytes = admitted.footprint.total(),
        backend = placed::backend(&card),
        devices = %placed::devices(&card),
        gpu_layers = card.gpu_layers,
        why = placed::why_cpu(&settings, &card),
        ms = began.elapsed().as_millis(),
        "a tier is ready"
    );
    let ready = Arc::new(Ready {
        worker,
        card,
        template,
        pin: admitted.pin,
        _place: place,
    });
    room.show(settings, ready.clone());
    Ok(ready)
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
