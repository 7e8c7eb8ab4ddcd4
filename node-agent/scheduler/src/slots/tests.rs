//! Who gets which slot, and what its cache holds afterwards.

use std::time::Duration;

use super::*;
use crate::Class;
use crate::job::Principal;
use crate::plan::plan;

#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to make an Instant"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn tokens(range: Range<i32>) -> Vec<Token> {
    range.map(Token).collect()
}

fn job(id: u64, principal: u64, prompt: Vec<Token>) -> Job<()> {
    Job {
        id: JobId(id),
        principal: Principal(principal),
        class: Class::Normal,
        begun: false,
        wall: Wall(u128::from(principal)),
        links: Vec::new(),
        cells: prompt.len(),
        prompt,
        arrived: epoch(),
        deadline: None,
        payload: (),
    }
}

/// Reads the whole prompt of `job` in `slot` and takes the job out again.
fn fill(slots: &mut Slots<()>, slot: SlotId, job: Job<()>) {
    let kept = common_prefix(slots.slots[usize::from(slot.0)].cached(), &job.prompt);
    slots.begin(slot, job, kept).expect("the slot is idle");
    let mut step = BatchPlan::default();
    plan(slots, 1_000, 1_000, &mut step);
    slots.commit(&step);
    slots.release(slot).expect("the job was there");
}

#[test]
fn the_slot_with_the_longest_common_prefix_is_chosen() {
    let mut slots = Slots::new(3);
    fill(&mut slots, SlotId(0), job(1, 1, tokens(0..20)));
    fill(&mut slots, SlotId(1), job(2, 1, tokens(0..30)));

    assert_eq!(slots.choose(Wall(1), &tokens(0..40)), Some((SlotId(1), 30)));
}

#[test]
fn another_principals_cache_is_never_compared() {
    let mut slots = Slots::new(1);
    fill(&mut slots, SlotId(0), job(1, 1, tokens(0..20)));

    assert_eq!(slots.choose(Wall(2), &tokens(0..20)), Some((SlotId(0), 0)));
}

#[test]
fn a_small_likeness_does_not_cost_a_large_cache() {
    let mut slots = Slots::new(2);
    fill(&mut slots, SlotId(0), job(1, 1, tokens(0..500)));
    let mut other = tokens(0..3);
    other.extend(tokens(900..1_000));

    assert_eq!(
        slots.choose(Wall(1), &other),
        Some((SlotId(1), 0)),
        "an empty slot is better"
    );
}

#[test]
fn without_likeness_the_slot_idle_longest_is_taken() {
    let mut slots = Slots::new(2);
    fill(&mut slots, SlotId(1), job(1, 1, tokens(0..5)));
    fill(&mut slots, SlotId(0), job(2, 1, tokens(0..5)));

    assert_eq!(slots.choose(Wall(3), &tokens(50..60)), Some((SlotId(1), 0)));
}

#[test]
fn a_busy_slot_is_not_given_twice() {
    let mut slots = Slots::new(1);
    slots
        .begin(SlotId(0), job(1, 1, tokens(0..5)), 0)
        .expect("the slot is idle");

    assert_eq!(slots.choose(Wall(1), &tokens(0..5)), None);
    assert!(slots.begin(SlotId(0), job(2, 1, tokens(0..5)), 0).is_err());
}

#[test]
fn a_job_cancelled_while_its_prompt_is_read_leaves_what_was_read() {
    let mut slots = Slots::new(1);
    slots
        .begin(SlotId(0), job(1, 1, tokens(0..100)), 0)
        .expect("the slot is idle");
    let mut step = BatchPlan::default();
    plan(&slots, 32, 32, &mut step);
    slots.commit(&step);

    assert_eq!(slots.find(JobId(1)), Some(SlotId(0)));
    assert!(slots.release(SlotId(0)).is_some());

    assert_eq!(slots.busy(), 0);
    assert_eq!(
        slots.choose(Wall(1), &tokens(0..100)),
        Some((SlotId(0), 32))
    );
}

#[test]
fn a_late_job_is_found() {
    let mut slots = Slots::new(1);
    let mut late = job(1, 1, tokens(0..5));
    let arrived = late.arrived;
    let deadline = arrived + Duration::from_secs(1);
    late.deadline = Some(deadline);
    slots.begin(SlotId(0), late, 0).expect("the slot is idle");

    assert!(slots.expired(arrived).is_empty());
    assert_eq!(slots.expired(deadline), [SlotId(0)]);
    assert_eq!(slots.poll_timeout(), Some(deadline));
}
