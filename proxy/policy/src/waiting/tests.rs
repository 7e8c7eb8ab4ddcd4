//! Who waits, who goes, and how long somebody waits beside somebody with a hundred.

use config::ids::UserId;
use config::tier::Tier::{Fast, Heavy};
use proptest::prelude::*;

use super::*;
use crate::testing::start;

fn guest(who: &str, cost: u64) -> Guest {
    Guest {
        subject: Subject::of_user(&UserId::new(who)),
        priority: Priority::Normal,
        cost,
        want: 1,
    }
}

/// Everybody in the order in which they are asked, if all of them can go.
fn drain(rooms: &mut Rooms, now: Instant) -> Vec<Ticket> {
    let mut out = Vec::new();
    while let Some(ticket) = rooms.turn(Heavy, now) {
        rooms.go(Heavy, ticket, now);
        out.push(ticket);
    }
    out
}

#[test]
fn persons_take_turns_and_classes_go_first() {
    let now = start();
    let mut rooms = Rooms::new(10);
    let mut enter = |guest| rooms.enter(Heavy, guest).expect("room").ticket;
    let ada = [0, 1, 2].map(|_| enter(guest("ada", 2_000)));
    let ben = enter(guest("ben", 2_000));
    let batch = enter(Guest {
        priority: Priority::Batch,
        ..guest("cy", 1)
    });
    let soon = enter(Guest {
        priority: Priority::Interactive,
        ..guest("dee", 2_000)
    });
    assert_eq!(rooms.ahead(Heavy, ben), 2);
    assert_eq!(
        drain(&mut rooms, now),
        [soon, ada[0], ben, ada[1], ada[2], batch]
    );
    assert_eq!(rooms.waiting(Heavy), 0);
}

#[test]
fn a_full_room_lets_a_newcomer_in_for_the_newest_of_whoever_has_the_most() {
    let mut rooms = Rooms::new(3);
    let ada = [0, 1, 2].map(|_| rooms.enter(Heavy, guest("ada", 1)).expect("room").ticket);
    let ben = rooms.enter(Heavy, guest("ben", 1)).expect("room");
    assert_eq!(ben.displaced, Some(ada[2]));
    let full = rooms.enter(Heavy, guest("ada", 1)).expect_err("full");
    assert!(full.retry_after >= Duration::from_secs(1));
    let full = rooms.enter(Heavy, guest("ben", 1));
    assert!(full.is_err(), "nobody has more than it would have");
    assert!(rooms.enter(Fast, guest("ben", 1)).is_ok(), "a room each");
    assert!(Rooms::new(0).enter(Fast, guest("ben", 1)).is_err());
}

#[test]
fn whoever_cannot_go_keeps_its_place_and_holds_up_nobody_who_can() {
    let now = start();
    let mut rooms = Rooms::new(10);
    let mut enter = |want, who: &str| {
        let guest = Guest {
            want,
            ..guest(who, 1)
        };
        rooms.enter(Heavy, guest).expect("room").ticket
    };
    let (first, alike, other) = (enter(1, "ada"), enter(1, "ben"), enter(2, "cy"));
    assert_eq!(rooms.turn(Heavy, now), Some(first));
    rooms.in_vain(Heavy, first, now);
    assert_eq!(rooms.turn(Heavy, now), Some(other), "not {alike:?}");
    rooms.in_vain(Heavy, other, now);
    assert_eq!(rooms.turn(Heavy, now), None);
    rooms.changed(Heavy, 1);
    assert_eq!(rooms.turn(Heavy, now), Some(first), "its place is kept");
}

#[test]
fn whoever_does_not_answer_is_passed_over_and_not_forgotten() {
    let now = start();
    let mut rooms = Rooms::new(10);
    let slow = rooms.enter(Heavy, guest("ada", 1)).expect("room").ticket;
    let next = rooms.enter(Heavy, guest("ben", 1)).expect("room").ticket;
    assert_eq!(rooms.turn(Heavy, now), Some(slow));
    let later = now + Duration::from_millis(400);
    assert_eq!(rooms.turn(Heavy, later), Some(slow));
    let later = now + Duration::from_millis(600);
    assert_eq!(rooms.turn(Heavy, later), Some(next));
    rooms.leave(Heavy, next);
    assert_eq!(rooms.turn(Heavy, later), None);
    rooms.changed(Heavy, 2);
    assert_eq!(rooms.turn(Heavy, later), Some(slow));
}

#[test]
fn whoever_was_let_in_and_sent_back_keeps_its_place() {
    let now = start();
    let mut rooms = Rooms::new(2);
    let first = rooms.enter(Heavy, guest("ada", 1)).expect("room").ticket;
    let next = rooms.enter(Heavy, guest("ben", 1)).expect("room").ticket;
    assert_eq!(rooms.turn(Heavy, now), Some(first));
    rooms.tries(Heavy, first);
    assert_eq!((rooms.waiting(Heavy), rooms.ahead(Heavy, next)), (1, 0));
    assert_eq!(rooms.turn(Heavy, now), Some(next));
    rooms.in_vain(Heavy, first, now);
    assert_eq!(rooms.turn(Heavy, now), None);
    let later = now + Duration::from_secs(3);
    assert_eq!(
        rooms.turn(Heavy, later),
        Some(first),
        "time alone helps too"
    );
    rooms.leave(Heavy, first);
    assert!(!rooms.holds(Heavy, first) && rooms.holds(Heavy, next));
}

#[test]
fn the_hint_goes_by_how_fast_places_become_free() {
    let start = start();
    let mut rooms = Rooms::new(100);
    for _guest in 0..40 {
        rooms.enter(Heavy, guest("ada", 1)).expect("room");
    }
    assert_eq!(rooms.retry_after(Heavy), RETRY_MAX, "nobody knows yet");
    for step in 0..36 {
        let now = start + Duration::from_millis(500) * step;
        let ticket = rooms.turn(Heavy, now).expect("somebody waits");
        rooms.go(Heavy, ticket, now);
    }
    assert_eq!(rooms.retry_after(Heavy), Duration::from_secs(2));
}

proptest! {
    /// With a hundred of one person in the room, another one's turn comes when the next place is free.
    #[test]
    fn a_hundred_of_one_delay_another_by_one(gone in 0_usize..90, cost in 1_u64..10_000) {
        let now = start();
        let mut rooms = Rooms::new(200);
        for _guest in 0..100 {
            rooms.enter(Heavy, guest("ada", 4_096)).expect("room");
        }
        for _step in 0..gone {
            let ticket = rooms.turn(Heavy, now).expect("somebody waits");
            rooms.go(Heavy, ticket, now);
        }
        let ben = rooms.enter(Heavy, guest("ben", cost)).expect("room").ticket;
        let ahead = rooms.ahead(Heavy, ben);
        prop_assert!(ahead <= usize::from(gone == 0), "{ahead} go before");
    }

    /// Whatever happens, the room knows exactly who is in it.
    #[test]
    fn nobody_is_lost(steps in prop::collection::vec((0_u8..4, 0_usize..12), 0..200)) {
        let (mut now, mut generation) = (start(), 0);
        let mut rooms = Rooms::new(6);
        let mut inside: Vec<Ticket> = Vec::new();
        for (what, which) in steps {
            now += Duration::from_millis(100);
            match what {
                0 | 1 => {
                    let who = ["ada", "ben", "cy"][which % 3];
                    if let Ok(entered) = rooms.enter(Heavy, guest(who, 100)) {
                        inside.retain(|ticket| Some(*ticket) != entered.displaced);
                        inside.push(entered.ticket);
                    }
                }
                2 => if let Some(ticket) = rooms.turn(Heavy, now) {
                    prop_assert!(inside.contains(&ticket));
                    rooms.go(Heavy, ticket, now);
                    inside.retain(|other| *other != ticket);
                },
                _ => if let Some(ticket) = inside.get(which).copied() {
                    rooms.leave(Heavy, ticket);
                    inside.retain(|other| *other != ticket);
                },
            }
            generation += 1;
            rooms.changed(Heavy, generation);
            prop_assert_eq!(rooms.waiting(Heavy), inside.len());
            prop_assert!(inside.len() <= 6);
        }
        prop_assert_eq!(drain(&mut rooms, now).len(), inside.len());
    }
}
