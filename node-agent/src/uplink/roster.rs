//! Which lines a node ought to have, from what its proxies say of each other. Time is an argument, the lines are told, and what is to be
//! done about them comes out as a plan. Only a proxy to which the node is connected is believed; how it is called does not say which it is.

use std::collections::BTreeMap;
use std::time::Duration;

use config::wire::node::HubPlace;
use tokio::time::Instant;

/// Lines at once: each holds a socket and a session.
pub(super) const LINES_MAX: usize = 8;
/// A proxy that nobody names any more and that does not answer is given up after this.
const GONE_AFTER: Duration = Duration::from_mins(2);
/// A line that was away for so long does not stand for the other names of its proxy any more.
const ABSENT_MAX: Duration = Duration::from_secs(15);
/// The proxy that this machine joined knows better than our memory which proxies there are: so long it may take to say so.
const HEAD_START: Duration = Duration::from_secs(2);

/// The proxies of the house, as each of them told last, by who told it.
pub(super) type Told = BTreeMap<String, Vec<HubPlace>>;

/// How a line is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Nothing is known yet.
    Trying,
    Connected,
    Failed,
}

/// A line that runs.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) place: HubPlace,
    /// Which proxy was reached; empty while that is not known.
    pub(super) proxy: String,
    pub(super) state: State,
}

impl Seen {
    fn url(&self) -> &str {
        &self.place.url
    }

    fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    fn is_one_of(&self, urls: &[String]) -> bool {
        urls.iter().any(|url| url == self.url())
    }
}

/// What is to be done, in this order.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Plan {
    /// What is to be remembered, if that is new.
    pub(super) keep: Option<Vec<HubPlace>>,
    /// Lines that end.
    pub(super) leave: Vec<String>,
    /// Lines whose registration another one took over: they register again.
    pub(super) again: Vec<String>,
    /// Proxies without a line.
    pub(super) start: Vec<HubPlace>,
    /// That many of them can have one.
    pub(super) room: usize,
}

#[derive(Debug)]
struct Times {
    /// When it was connected last, or began.
    met_at: Instant,
    /// When somebody believed named it last.
    named_at: Instant,
}

/// The line that leads to the same proxy, and which proxy that was.
#[derive(Debug)]
struct Double {
    line: String,
    proxy: String,
}

#[derive(Debug)]
pub(super) struct Roster {
    home: HubPlace,
    /// From before this start; until one has spoken.
    remembered: Vec<HubPlace>,
    kept: Vec<HubPlace>,
    began: Instant,
    times: BTreeMap<String, Times>,
    /// By the name that needs no line of its own.
    doubles: BTreeMap<String, Double>,
}

impl Roster {
    /// Of a machine that joined `home` and remembers these.
    pub(super) fn new(home: HubPlace, remembered: Vec<HubPlace>, now: Instant) -> Self {
        Self {
            home,
            kept: remembered.clone(),
            remembered,
            began: now,
            times: BTreeMap::new(),
            doubles: BTreeMap::new(),
        }
    }

    /// What to do now.
    pub(super) fn look(&mut self, now: Instant, seen: &[Seen], told: &Told) -> Plan {
        self.note(now, seen);
        let named = named(seen, told);
        let mut plan = Plan::default();
        if let Some(named) = &named {
            self.remembered.clear();
            plan.keep = self.news(named);
        }
        self.part(seen, &mut plan);
        self.give_up(now, seen, named.as_deref(), &mut plan);
        let believed = named.as_deref().unwrap_or_default();
        plan.leave.extend(repinned(&self.home, seen, believed));
        let left: Vec<&Seen> = seen
            .iter()
            .filter(|line| !line.is_one_of(&plan.leave))
            .collect();
        let wanted = self.wanted(now, seen, named.as_deref());
        plan.start = self.missing(now, &left, &wanted);
        let missing = (left.len() + plan.start.len()).saturating_sub(LINES_MAX);
        let is_idle = |line: &&&Seen| {
            let is_named = self.is_home(line.url()) || is_in(believed, line.url());
            named.is_some() && !line.is_connected() && !is_named
        };
        let idle = left.iter().filter(is_idle).take(missing);
        let idle: Vec<String> = idle.map(|line| line.url().to_owned()).collect();
        plan.room = (LINES_MAX + idle.len()).saturating_sub(left.len());
        plan.leave.extend(idle);
        plan
    }

    fn is_home(&self, url: &str) -> bool {
        self.home.url == url
    }

    fn note(&mut self, now: Instant, seen: &[Seen]) {
        self.times
            .retain(|url, _| seen.iter().any(|line| line.url() == url));
        for line in seen {
            let times = self.times.entry(line.url().to_owned()).or_insert(Times {
                met_at: now,
                named_at: now,
            });
            if line.is_connected() {
                times.met_at = now;
            }
        }
    }

    /// What is to be remembered of these, if it is another than before. Which proxy a name leads to is new with every start of it.
    fn news(&mut self, named: &[HubPlace]) -> Option<Vec<HubPlace>> {
        let mut plain = without_ids(named);
        plain.dedup_by(|a, b| a.url == b.url);
        if plain == self.kept {
            return None;
        }
        self.kept.clone_from(&plain);
        Some(plain)
    }

    /// Of two lines to one proxy that stays which is connected, and the first if both are: with each registration the proxy forgets the
    /// other one.
    fn part(&mut self, seen: &[Seen], plan: &mut Plan) {
        for (place, line) in seen.iter().enumerate() {
            let others = seen.iter().skip(place + 1);
            for other in others.filter(|other| is_same(line, &other.proxy)) {
                let (stays, goes) = if line.is_connected() {
                    (line, other)
                } else {
                    (other, line)
                };
                if !stays.is_connected() || stays.is_one_of(&plan.leave) {
                    continue;
                }
                plan.leave.push(goes.url().to_owned());
                plan.again.push(stays.url().to_owned());
                self.remember_double(goes.url(), stays);
            }
        }
        plan.leave.sort();
        plan.leave.dedup();
        plan.again.sort();
        plan.again.dedup();
    }

    fn remember_double(&mut self, url: &str, of: &Seen) {
        let double = Double {
            line: of.url().to_owned(),
            proxy: of.proxy.clone(),
        };
        self.doubles.insert(url.to_owned(), double);
    }

    /// Ends lines to proxies that are gone: nobody names them, and they do not answer. Where nobody can be believed, nobody is gone.
    fn give_up(
        &mut self,
        now: Instant,
        seen: &[Seen],
        named: Option<&[HubPlace]>,
        plan: &mut Plan,
    ) {
        for line in seen {
            let is_named = named.is_none_or(|named| is_in(named, line.url()));
            let stays = is_named || line.is_connected() || self.is_home(line.url());
            let Some(times) = self.times.get_mut(line.url()) else {
                continue;
            };
            if stays {
                times.named_at = now;
            }
            if now.duration_since(times.named_at) >= GONE_AFTER {
                plan.leave.push(line.url().to_owned());
            }
        }
    }

    /// All that ought to have a line, under each of their names, the proxy joined first.
    fn wanted(&self, now: Instant, seen: &[Seen], named: Option<&[HubPlace]>) -> Vec<HubPlace> {
        let mut wanted = vec![self.home.clone()];
        let home = seen.iter().find(|line| self.is_home(line.url()));
        let is_late = now.duration_since(self.began) >= HEAD_START
            || home.is_some_and(|home| home.state == State::Failed);
        let remembered = if is_late {
            self.remembered.as_slice()
        } else {
            &[]
        };
        wanted.extend_from_slice(named.unwrap_or(remembered));
        wanted
    }

    /// Those of `wanted` to which no line leads, once each.
    fn missing(&mut self, now: Instant, left: &[&Seen], wanted: &[HubPlace]) -> Vec<HubPlace> {
        let mut missing: Vec<HubPlace> = Vec::new();
        for place in wanted {
            let has_line = left.iter().any(|line| line.url() == place.url);
            if has_line || is_in(&missing, &place.url) {
                continue;
            }
            let names = wanted.iter().filter(|other| other.url == place.url);
            let ids: Vec<&str> = names.map(|name| name.proxy.as_str()).collect();
            if !self.has_double(now, left, (&place.url, &ids)) {
                missing.push(place.clone());
            }
        }
        without_ids(&missing)
    }

    /// Whether a line under another name leads there, and is likely to do so in a moment.
    fn has_double(&mut self, now: Instant, left: &[&Seen], (url, ids): (&str, &[&str])) -> bool {
        let leads_there = |line: &&&Seen| {
            let is_known = self
                .doubles
                .get(url)
                .is_some_and(|double| double.line == line.url() && is_same(line, &double.proxy));
            is_known || ids.iter().any(|id| is_same(line, id))
        };
        let mut present = left.iter().filter(|line| self.is_present(now, line));
        let Some(line) = present.find(leads_there) else {
            return false;
        };
        self.remember_double(url, line);
        true
    }

    fn is_present(&self, now: Instant, line: &Seen) -> bool {
        let times = self.times.get(line.url());
        times.is_some_and(|times| now.duration_since(times.met_at) < ABSENT_MAX)
    }
}

fn is_in(places: &[HubPlace], url: &str) -> bool {
    places.iter().any(|place| place.url == url)
}

fn is_same(line: &Seen, proxy: &str) -> bool {
    !proxy.is_empty() && line.proxy == proxy
}

fn without_ids(places: &[HubPlace]) -> Vec<HubPlace> {
    let plain = |place: &HubPlace| HubPlace {
        proxy: String::new(),
        ..place.clone()
    };
    places.iter().map(plain).collect()
}

/// What those say to which the node is connected; `None` if nobody says anything.
fn named(seen: &[Seen], told: &Told) -> Option<Vec<HubPlace>> {
    let is_believed = |who: &String| {
        let mut lines = seen.iter();
        lines.any(|line| line.url() == who && line.is_connected())
    };
    let mut all: Vec<HubPlace> = told
        .iter()
        .filter(|(who, _)| is_believed(who))
        .flat_map(|(_, hubs)| hubs.iter().cloned())
        .collect();
    all.sort();
    all.dedup();
    (!all.is_empty()).then_some(all)
}

/// Lines that get nowhere with a key that their proxy has no more. The key of the proxy joined came with the link.
fn repinned<'a>(
    home: &HubPlace,
    seen: &'a [Seen],
    named: &[HubPlace],
) -> impl Iterator<Item = String> + use<'a> {
    let (home, named) = (home.url.clone(), named.to_vec());
    let is_old = move |line: &&Seen| {
        let mut names = named.iter().filter(|place| place.url == line.url());
        let first = names.next();
        let is_other = first.is_some_and(|first| first.pin != line.place.pin);
        is_other
            && !names.any(|place| place.pin == line.place.pin)
            && !line.is_connected()
            && line.url() != home
    };
    seen.iter().filter(is_old).map(|line| line.url().to_owned())
}

#[cfg(test)]
mod tests;
