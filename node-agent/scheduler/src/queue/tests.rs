//! Turn-taking, bounds and deadlines of the queue.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::Class;
use crate::job::Token;
use crate::job::Wall;

/// Any instant will do; the queue only compares.
#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to make an Instant"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn job(id: u64, principal: u64, start: Instant) -> Job<()> {
    Job {
        id: JobId(id),
        principal: Principal(principal),
        class: Class::Normal,
        begun: false,
        wall: Wall(0),
        links: Vec::new(),
        cells: 1,
        prompt: vec![Token(1)],
        arrived: start,
        deadline: None,
        payload: (),
    }
}

fn drain(queue: &mut Queue<()>) -> Vec<u64> {
    std::iter::from_fn(|| queue.pop())
        .map(|job| job.id.0)
        .collect()
}

#[test]
fn principals_take_turns() {
    let start = epoch();
    let mut queue = Queue::new(10, 10);
    for (id, principal) in [(1, 7), (2, 7), (3, 7), (4, 8), (5, 9), (6, 8)] {
        queue
            .push(job(id, principal, start))
            .expect("there is room");
    }

    assert_eq!(drain(&mut queue), [1, 4, 5, 2, 6, 3]);
}

#[test]
fn both_limits_refuse_and_give_the_job_back() {
    let start = epoch();
    let mut queue = Queue::new(3, 2);
    queue.push(job(1, 1, start)).expect("there is room");
    queue.push(job(2, 1, start)).expect("there is room");
    let full = queue
        .push(job(3, 1, start))
        .expect_err("one principal may not fill the queue");
    assert_eq!((full.job.id, full.waiting), (JobId(3), 2));
    queue
        .push(job(4, 2, start))
        .expect("another principal still has room");
    let full = queue
        .push(job(5, 2, start))
        .expect_err("the queue is full, and nobody has more than it would have");
    assert_eq!(full.waiting, 3);
}

#[test]
fn a_full_queue_takes_a_newcomer_in_place_of_the_newest_of_whoever_has_the_most() {
    let start = epoch();
    let mut queue = Queue::new(4, 4);
    for id in 1..=3 {
        queue.push(job(id, 1, start)).expect("there is room");
    }
    let mut idle = job(4, 1, start);
    idle.class = Class::Batch;
    queue.push(idle).expect("there is room");

    let displaced = queue.push(job(5, 2, start)).expect("taken in");
    assert_eq!(
        displaced.map(|job| job.id),
        Some(JobId(4)),
        "the lowest class first"
    );
    let displaced = queue.push(job(6, 3, start)).expect("taken in");
    assert_eq!(
        displaced.map(|job| job.id),
        Some(JobId(3)),
        "then the newest"
    );
    assert_eq!(queue.len(), 4);
    assert_eq!(drain(&mut queue), [1, 5, 6, 2]);
}

#[test]
fn a_higher_class_goes_first_and_the_lower_ones_do_not_starve() {
    let start = epoch();
    let mut queue = Queue::new(1_000, 1_000);
    let classed = |id, class| Job {
        class,
        cells: 1_024,
        ..job(id, id % 3, start)
    };
    for id in 0..300 {
        queue
            .push(classed(id, Class::Interactive))
            .expect("there is room");
    }
    for id in 300..303 {
        queue
            .push(classed(id, Class::Normal))
            .expect("there is room");
    }
    for id in 303..305 {
        queue
            .push(classed(id, Class::Batch))
            .expect("there is room");
    }

    let order = drain(&mut queue);

    let at = |wanted: u64| order.iter().position(|id| *id == wanted);
    // Four jobs of 1,024 tokens are the patience of the second class, thirty-two that of the third.
    assert_eq!(at(300), Some(4), "{order:?}");
    assert_eq!(at(301), Some(9), "{order:?}");
    assert_eq!(at(303), Some(32), "{order:?}");
    assert_eq!(at(304), Some(65), "{order:?}");
}

#[test]
fn the_order_that_is_told_is_the_order_that_comes() {
    let start = epoch();
    let mut queue = Queue::new(100, 100);
    for id in 0..40 {
        let class = Class::ALL[usize::try_from(id % 3).expect("small")];
        let cells = usize::try_from(100 + id * 37 % 900).expect("small");
        let next = Job {
            class,
            cells,
            ..job(id, id % 7, start)
        };
        queue.push(next).expect("there is room");
    }
    let told: Vec<u64> = queue.in_turn().into_iter().map(|id| id.0).collect();
    assert_eq!(drain(&mut queue), told);
}

#[test]
fn a_passed_deadline_takes_a_job_out() {
    let start = epoch();
    let mut queue = Queue::new(4, 4);
    let mut hurried = job(1, 1, start);
    hurried.deadline = Some(start + Duration::from_secs(1));
    queue.push(hurried).expect("there is room");
    queue.push(job(2, 1, start)).expect("there is room");

    assert_eq!(queue.poll_timeout(), Some(start + Duration::from_secs(1)));
    assert!(queue.expire(start).is_empty(), "too early");
    let out = queue.expire(start + Duration::from_secs(1));

    assert_eq!(out.len(), 1);
    assert_eq!(drain(&mut queue), [2]);
    assert_eq!(queue.poll_timeout(), None);
}

proptest! {
    /// Whatever comes, nothing is lost or doubled, and nobody is served twice before another who waits.
    #[test]
    fn every_job_comes_out_once_and_in_turn(principals in prop::collection::vec(0_u64..4, 0..40), removed in 0_u64..40) {
        let start = epoch();
        let mut queue = Queue::new(64, 64);
        for (id, principal) in (0..).zip(&principals) {
            queue.push(job(id, *principal, start)).expect("there is room");
        }
        let taken = usize::from(queue.remove(JobId(removed)).is_some());
        prop_assert_eq!(queue.len(), principals.len() - taken);

        let mut last_turn = HashMap::new();
        let mut seen = 0;
        for turn in 0_usize.. {
            let waiting = queue.principals();
            let Some(job) = queue.pop() else { break };
            prop_assert_ne!(job.id, JobId(removed));
            if let Some(before) = last_turn.insert(job.principal, turn) {
                prop_assert!(turn - before >= waiting, "served again before the others");
            }
            seen += 1;
        }
        prop_assert_eq!(seen + taken, principals.len());
        prop_assert!(queue.is_empty());
    }
}

#[test]
fn tokens_are_shared_fairly_and_not_requests() {
    let start = epoch();
    let mut queue = Queue::new(100, 100);
    for id in 0..10 {
        queue
            .push(Job {
                cells: 4 * 1_024,
                ..job(id, 1, start)
            })
            .expect("there is room");
        for small in 0..4 {
            queue
                .push(Job {
                    cells: 1_024,
                    ..job(100 + id * 4 + small, 2, start)
                })
                .expect("there is room");
        }
    }

    let order = drain(&mut queue);

    let large = |ids: &[u64]| ids.iter().filter(|id| **id < 100).count();
    assert_eq!(large(&order[..25]), 5, "{order:?}");
    assert!(
        order[..6].contains(&0),
        "the large ones do not starve: {order:?}"
    );
}

/// A house of slots in invented time: when each job got its slot.
fn started(
    slots: usize,
    jobs: &[(u64, Job<()>)],
    service: impl Fn(u64) -> u64,
) -> HashMap<u64, u64> {
    let mut queue = Queue::new(1_000, 1_000);
    let mut free_at = vec![0_u64; slots];
    let mut started = HashMap::new();
    let mut coming = jobs.iter().peekable();
    let mut now = 0;
    while coming.peek().is_some() || !queue.is_empty() {
        while let Some((_, job)) = coming.next_if(|(at, _)| *at <= now) {
            queue.push(job.clone()).expect("there is room");
        }
        for slot in &mut free_at {
            if *slot <= now
                && let Some(job) = queue.pop()
            {
                started.insert(job.id.0, now);
                *slot = now + service(job.id.0);
            }
        }
        let next_free = free_at.iter().copied().filter(|at| *at > now).min();
        let next_in = coming.peek().map(|(at, _)| *at).filter(|at| *at > now);
        now = match (next_free, next_in) {
            (Some(free), Some(next)) => free.min(next),
            (one, other) => one.or(other).unwrap_or(now + 1),
        };
    }
    started
}

proptest! {
    /// One person with a hundred long jobs makes another wait for one of them to end, never for two.
    #[test]
    fn a_hundred_long_jobs_of_one_delay_another_by_at_most_one_service_time(
        slots in 1_usize..5,
        long in 50_u64..2_000,
        comes_at in 0_u64..20_000,
        cells in 16_usize..4_096,
    ) {
        let start = epoch();
        let mut jobs: Vec<(u64, Job<()>)> = (0..100)
            .map(|id| (0, Job { cells: 4_096, ..job(id, 1, start) }))
            .collect();
        jobs.push((comes_at, Job { cells, ..job(1_000, 2, start) }));
        // No two of them take equally long.
        let started = started(slots, &jobs, |id| long + id % 7);
        let waited = started[&1_000].saturating_sub(comes_at);
        prop_assert!(waited <= long + 6, "waited {waited} for jobs of {long}");
    }
}

#[test]
fn whoever_is_in_the_middle_of_a_sentence_goes_before_all_that_has_not_begun() {
    let start = epoch();
    let mut queue = Queue::new(3, 3);
    for (id, principal) in [(1, 7), (2, 8), (3, 9)] {
        queue
            .push(job(id, principal, start))
            .expect("there is room");
    }
    let begun = |id, principal, class| Job {
        begun: true,
        class,
        ..job(id, principal, start)
    };
    // A full queue has room for it, and its class is that of its reader: nobody's.
    queue
        .push(begun(4, 7, Class::Batch))
        .expect("it goes first");
    queue
        .push(begun(5, 9, Class::Normal))
        .expect("it goes next");
    assert!(
        queue.push(begun(6, 7, Class::Normal)).is_err(),
        "one of each principal goes first; the queue is full for the others"
    );
    assert_eq!(queue.peek().map(|job| job.id), Some(JobId(4)));
    let turns: Vec<u64> = queue.in_turn().iter().map(|id| id.0).collect();
    assert_eq!(turns, [4, 5, 1, 2, 3]);
    assert_eq!(queue.remove(JobId(5)).map(|job| job.id), Some(JobId(5)));
    assert_eq!(drain(&mut queue), [4, 1, 2, 3]);
    assert_eq!((queue.len(), queue.principals()), (0, 0));
}

#[test]
fn an_answer_that_began_elsewhere_has_a_deadline_too() {
    let start = epoch();
    let mut queue = Queue::new(3, 3);
    let late = Job {
        begun: true,
        deadline: Some(start + Duration::from_secs(1)),
        ..job(1, 7, start)
    };
    queue.push(late).expect("there is room");
    queue.push(job(2, 7, start)).expect("there is room");
    let expired = queue.expire(start + Duration::from_secs(2));
    assert_eq!(expired.len(), 1);
    assert_eq!(drain(&mut queue), [2]);
}
