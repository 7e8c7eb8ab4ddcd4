//! One line to every proxy of the house: starts them as the proxies tell of each other, ends them when a proxy is gone, and says how the
//! node stands with all of them together. Which line a request comes through is the proxies' business.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::wire::node::HubPlace;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Standing, Uplink, Window};
use crate::files;
use crate::hub::Hub;
use crate::join::Pin;

/// Lines at once, the nearest proxies first: each holds a socket and a session.
const LINES_MAX: usize = 8;
/// A proxy that nobody names any more and that does not answer is given up after this.
const GONE_AFTER: Duration = Duration::from_mins(2);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One connection, to find out which proxies are near.
const KNOCK_MAX: Duration = Duration::from_secs(2);
/// Which proxies the house had: with it a node finds back while the one it joined is away.
const FILE: &str = "hubs.json";
/// Who told of the proxies before any of them spoke.
const REMEMBERED: &str = "";
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
    farewell: CancellationToken,
    stop: CancellationToken,
    task: JoinHandle<()>,
    named_at: Instant,
    /// Which of the node's ports it has, from the one of the settings on.
    turn: u16,
}

/// The node's lines to its house.
pub struct House {
    home: Uplink,
    place: HubPlace,
    file: PathBuf,
    lines: Lines,
    running: Vec<Running>,
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
            pin: home.member.pin.clone(),
        };
        let file = state_dir.join(FILE);
        home.hubs
            .send_replace(BTreeMap::from([(REMEMBERED.to_owned(), read(&file))]));
        Self {
            home,
            place,
            file,
            lines,
            running: Vec::new(),
        }
    }

    /// Runs until `stop`; then all tunnels close.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut hubs = self.home.hubs.subscribe();
        hubs.mark_changed();
        let stirred = Arc::clone(&self.home.stirred);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                changed = hubs.changed() => {
                    if changed.is_ok() {
                        let named = union(&hubs.borrow_and_update());
                        self.follow(named).await;
                    }
                }
                () = stirred.notified() => {}
                _ = look.tick() => self.give_up(),
            }
            self.tell();
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

    /// Holds a line to each of these proxies and to the one that this machine joined.
    async fn follow(&mut self, named: Vec<HubPlace>) {
        if !named.is_empty() && named != read(&self.file) {
            write(&self.file, &named);
        }
        let now = Instant::now();
        let home = self.place.clone();
        let is_home = |place: &HubPlace| place.url == home.url;
        let others = named.into_iter().filter(|place| !is_home(place)).collect();
        let mut wanted = vec![self.place.clone()];
        wanted.extend(nearest(others, LINES_MAX - 1).await);
        for running in &mut self.running {
            if wanted.contains(&running.place) {
                running.named_at = now;
            }
        }
        for place in wanted {
            let is_there = self.running.iter().any(|running| running.place == place);
            if !is_there && self.running.len() < LINES_MAX {
                self.start(place, now);
            }
        }
        self.show();
    }

    fn start(&mut self, place: HubPlace, now: Instant) {
        let pin = place.pin.as_deref().and_then(Pin::parse);
        let hub = match Hub::new(&place.url, pin) {
            Ok(hub) => hub,
            Err(error) => {
                tracing::warn!(%error, proxy = place.url, "a proxy of the house cannot be used");
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
        let uplink = Uplink {
            hub,
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
            farewell,
            stop,
            task,
            named_at: now,
            turn,
        });
    }

    /// Ends lines to proxies that are gone: nobody names them, and they do not answer.
    fn give_up(&mut self) {
        let named = union(&self.home.hubs.borrow());
        let now = Instant::now();
        let home = self.place.clone();
        let mut gone = Vec::new();
        self.running.retain_mut(|running| {
            let connected = *running.line.standing.borrow() == Standing::Connected;
            if connected || running.place == home || named.contains(&running.place) {
                running.named_at = now;
            }
            let is_gone = now.duration_since(running.named_at) >= GONE_AFTER;
            if is_gone {
                tracing::info!(proxy = running.place.url, "a proxy of the house is gone");
                running.stop.cancel();
                gone.push(running.place.url.clone());
            }
            !is_gone
        });
        if !gone.is_empty() {
            // What it said last does not count any more.
            self.home
                .hubs
                .send_modify(|told| told.retain(|who, _| !gone.contains(who)));
            self.show();
        }
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

/// What any of them says. A proxy that has just begun knows only itself; what was remembered counts until one has spoken.
fn union(told: &BTreeMap<String, Vec<HubPlace>>) -> Vec<HubPlace> {
    let spoken = told.len() > 1;
    let mut all: Vec<HubPlace> = told
        .iter()
        .filter(|(who, _)| !spoken || *who != REMEMBERED)
        .flat_map(|(_, hubs)| hubs.iter().cloned())
        .collect();
    all.sort();
    all.dedup();
    all
}

/// The best of several: one connection is enough to be connected; otherwise the first line speaks, which is that to the proxy joined.
fn overall(standings: &[Standing]) -> Standing {
    if standings.contains(&Standing::Connected) {
        return Standing::Connected;
    }
    standings.first().cloned().unwrap_or_default()
}

/// The nearest of many, by the time that a connection takes; as they are if they are few.
async fn nearest(places: Vec<HubPlace>, most: usize) -> Vec<HubPlace> {
    if places.len() <= most {
        return places;
    }
    let knocks = places.into_iter().map(|place| async move {
        let began = Instant::now();
        let authority = place.url.trim_start_matches("https://").to_owned();
        let address = match authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority,
            Some(_) | None => format!("{authority}:443"),
        };
        let knock = tokio::net::TcpStream::connect(address);
        let took = match tokio::time::timeout(KNOCK_MAX, knock).await {
            Ok(Ok(_)) => began.elapsed(),
            Ok(Err(_)) | Err(_) => KNOCK_MAX,
        };
        (took, place)
    });
    let mut measured = futures_util::future::join_all(knocks).await;
    measured.sort();
    measured.truncate(most);
    measured.into_iter().map(|(_, place)| place).collect()
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
    fn every_proxy_that_any_of_them_names_counts_and_memory_only_until_one_has_spoken() {
        let told = |who: &str, urls: &[&str]| {
            let places = urls.iter().map(|url| place(url)).collect();
            (who.to_owned(), places)
        };
        let mut all = BTreeMap::from([told(REMEMBERED, &["https://a", "https://b"])]);
        assert_eq!(union(&all).len(), 2);
        all.extend([told("https://a", &["https://a"])]);
        assert_eq!(union(&all), [place("https://a")], "it has just begun");
        all.extend([told("https://c", &["https://a", "https://c"])]);
        assert_eq!(union(&all), [place("https://a"), place("https://c")]);
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
        let few = nearest(vec![nowhere.clone(), here.clone()], 2).await;
        assert_eq!(few, [nowhere.clone(), here.clone()], "few are all taken");
        let nearest = nearest(vec![nowhere, here.clone()], 1).await;
        assert_eq!(nearest, [here]);
    }
}
