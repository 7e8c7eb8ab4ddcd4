//! Where requests wait while every backend of their route is full. Who is next is [`policy::waiting`]'s; this room only wakes those who
//! wait when something changes, and takes them out however they leave. Holds no request and asks no node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use config::settings::proxy::Routing as Rules;
use config::tier::Tier;
use policy::identity::Subject;
use policy::refusal::Refusal;
use policy::waiting::{Guest, Rooms, Ticket};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::nodes::fleet::Fleet;

/// Everybody looks up this often, so that nobody who is slow holds up the others, and no change is missed for long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The waiting rooms of all tiers.
pub struct Waiting {
    inside: Mutex<Inside>,
    /// Somebody tried, went or left: it may be another one's turn.
    moved: watch::Sender<u64>,
    fleet: Arc<Fleet>,
    /// So long somebody waits at most.
    pub patience: Duration,
}

struct Inside {
    rooms: Rooms,
    /// Requests of each person that are waiting for a tier or at work there.
    present: HashMap<(Tier, Subject), u32>,
}

/// Counts a request as present until dropped.
pub struct Present {
    waiting: Arc<Waiting>,
    key: (Tier, Subject),
}

/// A place in a room, left when dropped.
pub struct Place {
    waiting: Arc<Waiting>,
    tier: Tier,
    ticket: Ticket,
    changes: watch::Receiver<u64>,
    moved: watch::Receiver<u64>,
}

/// Somebody else needed the place more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Displaced;

impl Waiting {
    /// Empty rooms.
    pub fn new(rules: &Rules, fleet: Arc<Fleet>) -> Self {
        let seats = if rules.queue_wait.is_zero() {
            0
        } else {
            rules.queue_max
        };
        Self {
            inside: Mutex::new(Inside {
                rooms: Rooms::new(seats),
                present: HashMap::new(),
            }),
            moved: watch::channel(0).0,
            fleet,
            patience: rules.queue_wait,
        }
    }

    /// Notes that a person has one more request at a tier.
    pub fn arrive(self: &Arc<Self>, tier: Tier, subject: &Subject) -> Present {
        let key = (tier, subject.clone());
        *self.inside().present.entry(key.clone()).or_insert(0) += 1;
        Present {
            waiting: Arc::clone(self),
            key,
        }
    }

    /// Lets a guest wait.
    pub fn enter(self: &Arc<Self>, tier: Tier, guest: Guest) -> Result<Place, Refusal> {
        let entered = self.inside().rooms.enter(tier, guest);
        let entered = entered.map_err(|full| Refusal::QueueFull {
            retry_after: full.retry_after,
        })?;
        if entered.displaced.is_some() {
            self.stir();
        }
        Ok(Place {
            waiting: Arc::clone(self),
            tier,
            ticket: entered.ticket,
            changes: self.fleet.changes(),
            moved: self.moved.subscribe(),
        })
    }

    /// The refusal of somebody who has waited in vain.
    pub fn full(&self, tier: Tier) -> Refusal {
        Refusal::QueueFull {
            retry_after: self.inside().rooms.retry_after(tier),
        }
    }

    /// How many wait for a tier.
    pub fn len(&self, tier: Tier) -> usize {
        self.inside().rooms.waiting(tier)
    }

    fn stir(&self) {
        self.moved
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Present {
    /// Whether the person has nothing else there.
    pub fn is_alone(&self) -> bool {
        let inside = self.waiting.inside();
        inside
            .present
            .get(&self.key)
            .is_none_or(|count| *count <= 1)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut inside = self.waiting.inside();
        if let Some(count) = inside.present.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                inside.present.remove(&self.key);
            }
        }
    }
}

impl Place {
    /// Returns when it is this one's turn to try. Safe to cancel.
    pub async fn turn(&mut self) -> Result<(), Displaced> {
        loop {
            self.moved.mark_unchanged();
            let generation = *self.changes.borrow_and_update();
            let now = Instant::now();
            {
                let mut inside = self.waiting.inside();
                inside.rooms.changed(self.tier, generation);
                if !inside.rooms.holds(self.tier, self.ticket) {
                    return Err(Displaced);
                }
                if inside.rooms.turn(self.tier, now) == Some(self.ticket) {
                    return Ok(());
                }
            }
            let something = async {
                tokio::select! {
                    _changed = self.changes.changed() => {}
                    _moved = self.moved.changed() => {}
                }
            };
            // Whether something happened or not, it looks again.
            let _late = timeout(LOOK_EVERY, something).await;
        }
    }

    /// So many go before it.
    pub fn ahead(&self) -> u32 {
        let ahead = self.waiting.inside().rooms.ahead(self.tier, self.ticket);
        u32::try_from(ahead).unwrap_or(u32::MAX)
    }

    /// It has been let in somewhere, and whoever is next may try; its place is kept until it is known whether it stays.
    pub fn tries(&self) {
        self.waiting.inside().rooms.tries(self.tier, self.ticket);
        self.waiting.stir();
    }

    /// It tried and there was no room.
    pub fn in_vain(&self) {
        self.waiting
            .inside()
            .rooms
            .in_vain(self.tier, self.ticket, Instant::now());
        self.waiting.stir();
    }

    /// It goes.
    pub fn go(self) {
        let now = Instant::now();
        self.waiting.inside().rooms.go(self.tier, self.ticket, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.inside().rooms.leave(self.tier, self.ticket);
        self.waiting.stir();
    }
}
