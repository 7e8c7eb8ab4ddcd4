//! One line to every proxy of the house: starts them as the proxies tell of each other, ends them when a proxy is gone, and says how the
//! node stands with all of them together. Which line a request comes through is the proxies' business.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::wire::node::HubPlace;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::roster::{Plan, Roster, Seen, State};
use super::{Standing, Uplink, Window};
use crate::files;
use crate::hub::Hub;
use crate::join::Pin;

/// How often it is looked whether a proxy is gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One connection, to find out which proxies are near.
const KNOCK_MAX: Duration = Duration::from_secs(2);
/// Which proxies the house had: with it a node finds back while the one it joined is away.
const FILE: &str = "hubs.json";
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// One line as the status command sees it.
#[derive(Clone, Debug)]
pub struct Line {
    /// The proxy's origin.
    pub url: String,
    /// How we stand with it.
    pub standing: watch::Receiver<Standing>,
    /// Its tunnel while there is one.
    pub window: Window,
}

/// All lines, for the status command.
pub type Lines = Arc<Mutex<Vec<Line>>>;

struct Running {
    place: HubPlace,
    line: Line,
    /// Which proxy it reached last.
    proxy: watch::Receiver<String>,
    again: Arc<Notify>,
    farewell: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Which of the node's ports it has, from the one of the settings on.
    turn: u16,
}

impl Running {
    fn seen(&self) -> Seen {
        let state = match *self.line.standing.borrow() {
            Standing::Registering => State::Trying,
            Standing::Connected => State::Connected,
            Standing::Lost { .. } | Standing::Refused { .. } => State::Failed,
        };
        Seen {
            place: self.place.clone(),
            proxy: self.proxy.borrow().clone(),
            state,
        }
    }
}

/// The node's lines to its house.
pub struct House {
    home: Uplink,
    roster: Roster,
    file: PathBuf,
    lines: Lines,
    running: Vec<Running>,
    /// Proxies that were named and cannot be dialled at all.
    useless: BTreeSet<String>,
}

/// Every line has a socket of its own: a port that is fixed is the first one's, the others have those behind it.
fn nth_port(bind: SocketAddr, turn: u16) -> SocketAddr {
    let port = match bind.port() {
        0 => 0,
        // Behind the last port the system picks one.
        fixed => fixed.checked_add(turn).unwrap_or(0),
    };
    SocketAddr::new(bind.ip(), port)
}

impl House {
    /// `home` is the line to the proxy that this machine joined; its `standing` and `farewell` speak for all lines.
    pub fn new(home: Uplink, state_dir: &Path, lines: Lines) -> Self {
        let place = HubPlace {
            url: home.member.proxy.clone(),
            proxy: String::new(),
            pin: home.member.pin.clone(),
        };
        let file = state_dir.join(FILE);
        Self {
            roster: Roster::new(place, read(&file), Instant::now()),
            home,
            file,
            lines,
            running: Vec::new(),
            useless: BTreeSet::new(),
        }
    }

    /// Runs until `stop`; then all tunnels close.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut hubs = self.home.hubs.subscribe();
        let stirred = Arc::clone(&self.home.stirred);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Its sender is ours: it does not close.
            tokio::select! {
                () = stop.cancelled() => break,
                _changed = hubs.changed() => {}
                () = stirred.notified() => {}
                _ = look.tick() => {}
            }
            self.tell();
            let seen: Vec<Seen> = self.running.iter().map(Running::seen).collect();
            let plan = {
                let told = hubs.borrow_and_update();
                self.roster.look(Instant::now(), &seen, &told)
            };
            if stop.run_until_cancelled(self.follow(plan)).await.is_none() {
                break;
            }
        }
        for running in &self.running {
            running.stop.cancel();
        }
        for running in self.running {
            if let Err(error) = running.task.await {
                tracing::debug!(%error, "a line ended badly");
            }
        }
    }

    async fn follow(&mut self, plan: Plan) {
        if let Some(named) = &plan.keep {
            write(&self.file, named);
        }
        let changes = !plan.leave.is_empty() || !plan.start.is_empty();
        self.leave(&plan.leave);
        for running in &self.running {
            if plan.again.contains(&running.place.url) {
                running.again.notify_one();
            }
        }
        let mut start = plan.start;
        start.retain(|place| !self.useless.contains(&place.url));
        for place in nearest(start, plan.room, knock).await {
            self.start(place);
        }
        if changes {
            self.show();
        }
    }

    fn leave(&mut self, urls: &[String]) {
        if urls.is_empty() {
            return;
        }
        self.running.retain(|running| {
            let stays = !urls.contains(&running.place.url);
            if !stays {
                tracing::info!(
                    proxy = running.place.url,
                    "a line ends: its proxy is gone, or another line leads to it"
                );
                running.stop.cancel();
            }
            stays
        });
        // What it said last does not count any more.
        self.home
            .hubs
            .send_modify(|told| told.retain(|who, _| !urls.contains(who)));
    }

    fn start(&mut self, place: HubPlace) {
        let pin = place.pin.as_deref().and_then(Pin::parse);
        let hub = match Hub::new(&place.url, pin) {
            Ok(hub) => hub,
            Err(error) => {
                tracing::warn!(%error, proxy = place.url, "a proxy of the house cannot be used");
                self.useless.insert(place.url);
                return;
            }
        };
        let standing = watch::Sender::new(Standing::default());
        let line = Line {
            url: place.url.clone(),
            standing: standing.subscribe(),
            window: Window::default(),
        };
        let farewell = CancellationToken::new();
        let taken: Vec<u16> = self.running.iter().map(|running| running.turn).collect();
        let turn = (0..=u16::MAX)
            .find(|turn| !taken.contains(turn))
            .unwrap_or(0);
        let proxy = watch::Sender::default();
        let again = Arc::<Notify>::default();
        let reached = proxy.subscribe();
        let uplink = Uplink {
            hub,
            proxy,
            again: Arc::clone(&again),
            bind: nth_port(self.home.bind, turn),
            standing,
            farewell: farewell.clone(),
            window: line.window.clone(),
            ..self.home.clone()
        };
        let stop = CancellationToken::new();
        tracing::info!(proxy = place.url, "a line to a proxy of the house");
        let task = tokio::spawn(uplink.run(stop.clone()));
        self.running.push(Running {
            place,
            line,
            proxy: reached,
            again,
            farewell,
            stop,
            task,
            turn,
        });
    }

    fn show(&self) {
        let lines = self.running.iter().map(|running| running.line.clone());
        *lock(&self.lines) = lines.collect();
    }

    /// Says how the node stands with its house: as with the best of its proxies.
    fn tell(&self) {
        let standings: Vec<Standing> = self
            .running
            .iter()
            .map(|running| running.line.standing.borrow().clone())
            .collect();
        let present = overall(&standings);
        self.home.standing.send_if_modified(|known| {
            let changed = *known != present;
            *known = present;
            changed
        });
        let connected = |running: &&Running| *running.line.standing.borrow() == Standing::Connected;
        let mut connected = self.running.iter().filter(connected).peekable();
        let some = connected.peek().is_some();
        if some && connected.all(|running| running.farewell.is_cancelled()) {
            self.home.farewell.cancel();
        }
    }
}

/// The best of several: one connection is enough to be connected; otherwise the first line speaks, which is that to the proxy joined.
fn overall(standings: &[Standing]) -> Standing {
    if standings.contains(&Standing::Connected) {
        return Standing::Connected;
    }
    standings.first().cloned().unwrap_or_default()
}

/// The nearest of many, by what `distance` says; as they are if they are few.
async fn nearest<F>(
    places: Vec<HubPlace>,
    most: usize,
    distance: impl Fn(HubPlace) -> F,
) -> Vec<HubPlace>
where
    F: Future<Output = Duration>,
{
    if most == 0 || places.len() <= most {
        return places.into_iter().take(most).collect();
    }
    let measured = places.into_iter().map(|place| async {
        let away = distance(place.clone()).await;
        (away, place)
    });
    let mut measured = futures_util::future::join_all(measured).await;
    measured.sort();
    measured.truncate(most);
    measured.into_iter().map(|(_, place)| place).collect()
}

/// How long a connection to this proxy takes.
async fn knock(place: HubPlace) -> Duration {
    let began = Instant::now();
    let authority = place.url.trim_start_matches("https://").to_owned();
    let address = match authority.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => authority,
        Some(_) | None => format!("{authority}:443"),
    };
    let knock = tokio::net::TcpStream::connect(address);
    match tokio::time::timeout(KNOCK_MAX, knock).await {
        Ok(Ok(_)) => began.elapsed(),
        Ok(Err(_)) | Err(_) => KNOCK_MAX,
    }
}

fn read(file: &Path) -> Vec<HubPlace> {
    let is_small = |meta: &std::fs::Metadata| meta.len() <= FILE_BYTES_MAX;
    let small = std::fs::metadata(file).is_ok_and(|meta| is_small(&meta));
    let bytes = small.then(|| std::fs::read(file).unwrap_or_default());
    serde_json::from_slice(&bytes.unwrap_or_default()).unwrap_or_default()
}

fn write(file: &Path, hubs: &[HubPlace]) {
    let written = serde_json::to_vec(hubs)
        .map_err(std::io::Error::from)
        .and_then(|bytes| files::replace(file, &bytes));
    if let Err(error) = written {
        tracing::debug!(%error, "the proxies of the house are not kept");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> HubPlace {
        HubPlace {
            url: url.to_owned(),
            proxy: String::new(),
            pin: None,
        }
    }

    #[test]
    fn a_fixed_port_is_the_first_lines_and_the_others_have_those_behind_it() {
        let port = |bind: &str, turn| nth_port(bind.parse().expect("an address"), turn).port();
        assert_eq!((port("0.0.0.0:0", 0), port("0.0.0.0:0", 3)), (0, 0));
        assert_eq!((port("[::]:4500", 0), port("[::]:4500", 3)), (4_500, 4_503));
        assert_eq!(port("0.0.0.0:65535", 1), 0);
    }

    #[test]
    fn one_connection_is_enough_and_otherwise_the_proxy_joined_speaks() {
        let lost = Standing::Lost {
            reason: "no answer in time".to_owned(),
        };
        assert_eq!(overall(&[]), Standing::Registering);
        assert_eq!(overall(&[lost.clone(), Standing::Registering]), lost);
        assert_eq!(overall(&[lost, Standing::Connected]), Standing::Connected);
    }

    #[test]
    fn the_house_is_remembered_and_a_broken_file_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(FILE);
        assert_eq!(read(&file), Vec::new());
        write(&file, &[place("https://a")]);
        assert_eq!(read(&file), [place("https://a")]);
        std::fs::write(&file, "nonsense").expect("writes");
        assert_eq!(read(&file), Vec::new());
    }

    #[tokio::test]
    async fn of_many_proxies_those_that_answer_come_first() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let here = place(&format!(
            "https://{}",
            listener.local_addr().expect("bound")
        ));
        let nowhere = place("https://127.0.0.1:1");
        let few = nearest(vec![nowhere.clone(), here.clone()], 2, knock).await;
        assert_eq!(few, [nowhere.clone(), here.clone()], "few are all taken");
        let nearest = nearest(vec![nowhere, here.clone()], 1, knock).await;
        assert_eq!(nearest, [here]);
    }

    #[tokio::test]
    async fn of_more_proxies_than_a_node_can_hold_it_takes_the_near_ones() {
        let away = |place: &HubPlace| place.url.trim_start_matches("https://").len() as u64;
        let far_first = ["ffffff", "a", "eeeee", "bb", "dddd", "ccc"];
        let places: Vec<HubPlace> = far_first
            .iter()
            .map(|host| place(&format!("https://{host}")))
            .collect();
        let chosen = nearest(places, 3, |place| async move {
            Duration::from_millis(away(&place))
        });
        let chosen: Vec<String> = chosen.await.into_iter().map(|place| place.url).collect();
        assert_eq!(chosen, ["https://a", "https://bb", "https://ccc"]);
    }
}
