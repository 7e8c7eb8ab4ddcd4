//! Turn-taking, bounds and deadlines of the queue.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
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
        wall: Wall(0),
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
    let full = queue.push(job(5, 3, start)).expect_err("the queue is full");
    assert_eq!(full.waiting, 3);
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
            let waiting = queue.waiting.len();
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
