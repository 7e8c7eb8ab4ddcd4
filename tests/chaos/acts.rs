//! What is done to the town, to whom, and when it is over. One machine is always spared, so that somebody can go on with every answer, but
//! in a blackout.

use std::fmt;
use std::time::{Duration, Instant};

use tests::shaper::Weather;

use crate::dice::Dice;
use crate::town::{MACHINES, Town};

/// What can be done to a machine or a proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Act {
    KillAgents,
    KillWorkers,
    StopAgents,
    StopWorkers,
    Cut,
    /// Packets are lost, per mille, and late.
    Storm(u32, Duration),
    Restart,
    /// No new work for it: what it does it finishes.
    Drain,
    KillProxy,
    RestartProxy,
    /// Its next version takes over from it.
    UpgradeProxy,
    Blackout,
}

/// One thing that was done.
#[derive(Clone, Debug)]
pub(crate) struct Deed {
    pub(crate) act: Act,
    /// A machine, or a proxy.
    pub(crate) whom: usize,
    pub(crate) began: Instant,
    pub(crate) held: Duration,
    /// From the end of it until all were back.
    pub(crate) back: Duration,
    pub(crate) ended: Instant,
}

impl Deed {
    /// Whom it was done to, by name.
    pub(crate) fn victim(&self) -> String {
        match self.act {
            Act::KillProxy | Act::RestartProxy | Act::UpgradeProxy => {
                format!("proxy {}", self.whom)
            }
            Act::Blackout => "all".to_owned(),
            Act::KillAgents
            | Act::KillWorkers
            | Act::StopAgents
            | Act::StopWorkers
            | Act::Cut
            | Act::Storm(..)
            | Act::Drain
            | Act::Restart => MACHINES[self.whom].to_owned(),
        }
    }

    /// Whether it was done to this machine.
    pub(crate) fn strikes(&self, machine: usize) -> bool {
        match self.act {
            Act::Blackout => true,
            Act::KillProxy | Act::RestartProxy | Act::UpgradeProxy => false,
            Act::KillAgents
            | Act::KillWorkers
            | Act::StopAgents
            | Act::StopWorkers
            | Act::Cut
            | Act::Storm(..)
            | Act::Drain
            | Act::Restart => self.whom == machine,
        }
    }

    /// Whether a stream through this proxy may break because of it.
    pub(crate) fn excuses(&self, proxy: usize) -> bool {
        match self.act {
            Act::Blackout => true,
            Act::KillProxy | Act::RestartProxy => self.whom == proxy,
            Act::KillAgents
            | Act::KillWorkers
            | Act::StopAgents
            | Act::StopWorkers
            | Act::Cut
            | Act::Storm(..)
            | Act::Drain
            | Act::UpgradeProxy
            | Act::Restart => false,
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::KillAgents => "kill -9 agent",
            Self::KillWorkers => "kill -9 worker",
            Self::StopAgents => "SIGSTOP agent",
            Self::StopWorkers => "SIGSTOP worker",
            Self::Cut => "network cut",
            Self::Storm(loss, delay) => {
                let late = format!("{} % lost, {} ms late", loss / 10, delay.as_millis());
                return f.pad(&late);
            }
            Self::Restart => "restart (TERM)",
            Self::KillProxy => "kill -9",
            Self::RestartProxy => "restart (TERM)",
            Self::Drain => "drain",
            Self::UpgradeProxy => "upgrade",
            Self::Blackout => "blackout (kill -9)",
        };
        f.pad(words)
    }
}

/// One round: what to do to whom, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) acts: Vec<(Act, usize)>,
    pub(crate) holds: Duration,
    /// Calm before the next.
    pub(crate) calm: Duration,
}

impl Round {
    /// Every kind comes before any comes again: they are a shuffled list.
    pub(crate) fn drawn(dice: &mut Dice, left: &mut Vec<Act>) -> Self {
        if left.is_empty() {
            *left = every_kind(dice);
        }
        let act = left.swap_remove(dice.below(left.len()));
        let whom = match act {
            Act::KillProxy | Act::RestartProxy | Act::UpgradeProxy => dice.below(2),
            Act::KillAgents
            | Act::KillWorkers
            | Act::StopAgents
            | Act::StopWorkers
            | Act::Cut
            | Act::Storm(..)
            | Act::Restart
            | Act::Drain
            | Act::Blackout => dice.below(MACHINES.len()),
        };
        let mut acts = vec![(act, whom)];
        let is_of_a_machine = !matches!(
            act,
            Act::KillProxy | Act::RestartProxy | Act::UpgradeProxy | Act::Blackout
        );
        if is_of_a_machine && dice.below(3) == 0 {
            let other = (whom + 1 + dice.below(2)) % MACHINES.len();
            let second =
                dice.one_of(&[Act::KillAgents, Act::StopAgents, Act::Cut, Act::KillWorkers]);
            acts.push((second, other));
        }
        let holds = match act {
            Act::Storm(..) => dice.between(3_000, 6_000),
            Act::StopWorkers => dice.between(2_500, 5_000),
            Act::KillProxy | Act::Blackout => dice.between(100, 800),
            Act::KillAgents
            | Act::KillWorkers
            | Act::StopAgents
            | Act::Cut
            | Act::Restart
            | Act::Drain
            | Act::UpgradeProxy
            | Act::RestartProxy => dice.between(300, 3_000),
        };
        let calm = dice.between(100, 900);
        Self { acts, holds, calm }
    }

    /// Does it all, undoes it, and waits until the town is whole again.
    pub(crate) async fn done(&self, town: &mut Town) -> Vec<Deed> {
        let began = Instant::now();
        for (act, whom) in &self.acts {
            begin(town, *act, *whom).await;
        }
        tokio::time::sleep(self.holds).await;
        let held = began.elapsed();
        for (act, whom) in &self.acts {
            end(town, *act, *whom).await;
        }
        let undone = Instant::now();
        town.is_whole().await;
        let back = undone.elapsed();
        town.is_trusted().await;
        tokio::time::sleep(self.calm).await;
        let deed = |(act, whom): &(Act, usize)| Deed {
            act: *act,
            whom: *whom,
            began,
            held,
            back,
            ended: Instant::now(),
        };
        self.acts.iter().map(deed).collect()
    }
}

fn every_kind(dice: &mut Dice) -> Vec<Act> {
    vec![
        Act::KillAgents,
        Act::KillWorkers,
        Act::StopAgents,
        Act::StopWorkers,
        Act::Cut,
        Act::Storm(300, dice.between(20, 200)),
        Act::Restart,
        Act::Drain,
        Act::KillProxy,
        Act::RestartProxy,
        Act::UpgradeProxy,
        Act::Blackout,
    ]
}

async fn begin(town: &mut Town, act: Act, whom: usize) {
    match act {
        Act::KillAgents => town.machines[whom].kill(),
        Act::KillWorkers => town.machines[whom].signal_workers("KILL"),
        Act::StopAgents => town.machines[whom].signal("STOP"),
        Act::StopWorkers => town.machines[whom].signal_workers("STOP"),
        Act::Cut => town.weather(whom, Weather::CUT),
        Act::Storm(loss, delay) => town.weather(whom, Weather::bad(loss, delay)),
        Act::Restart => town.terminate(whom).await,
        Act::Drain => town.tell(&["node", "drain", MACHINES[whom]]),
        Act::UpgradeProxy => {
            let mut old = town.proxies[whom].upgrade();
            old.ended(Duration::from_mins(1)).await;
        }
        Act::KillProxy => town.proxies[whom].kill(),
        Act::RestartProxy => {
            let process = town.proxies[whom].process();
            process.signal("TERM");
            let status = process.ended(Duration::from_mins(1)).await;
            let log = process.log();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            assert!(status.success(), "{status}: {last:#?}");
        }
        Act::Blackout => town
            .machines
            .iter_mut()
            .for_each(crate::town::Machine::kill),
    }
}

async fn end(town: &mut Town, act: Act, whom: usize) {
    match act {
        Act::KillAgents | Act::Restart => town.machines[whom].start(),
        Act::KillWorkers | Act::UpgradeProxy => {}
        Act::Drain => town.tell(&["node", "undrain", MACHINES[whom]]),
        Act::StopAgents => town.machines[whom].signal("CONT"),
        // One that was killed meanwhile has a successor, which does not mind.
        Act::StopWorkers => town.machines[whom].signal_workers("CONT"),
        Act::Cut | Act::Storm(..) => town.weather(whom, Weather::CLEAR),
        Act::KillProxy | Act::RestartProxy => town.proxies[whom].restart().await,
        Act::Blackout => town
            .machines
            .iter_mut()
            .for_each(crate::town::Machine::start),
    }
}
