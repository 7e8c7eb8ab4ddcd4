//! Bounds, order and progress of plans.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::Class;
use crate::job::Job;
use crate::job::JobId;
use crate::job::Principal;
use crate::job::Wall;

#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to make an Instant"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn slots_with(prompts: &[usize]) -> Slots<()> {
    let mut slots = Slots::new(u16::try_from(prompts.len()).expect("few slots"));
    for (number, length) in (0_u16..).zip(prompts) {
        let job = Job {
            id: JobId(u64::from(number)),
            principal: Principal(0),
            class: Class::Normal,
            begun: false,
            wall: Wall(0),
            links: Vec::new(),
            cells: *length,
            prompt: vec![Token(7); *length],
            arrived: epoch(),
            deadline: None,
            payload: (),
        };
        slots
            .begin(SlotId(number), job, 0)
            .expect("the slot is idle");
    }
    slots
}

/// Computes a plan and chooses a token wherever there are logits.
fn step(slots: &mut Slots<()>, batch_max: usize, prefill_max: usize) -> BatchPlan {
    let mut step = BatchPlan::default();
    plan(slots, batch_max, prefill_max, &mut step);
    slots.commit(&step);
    for part in step.parts().iter().filter(|part| part.output.is_some()) {
        slots.chose(part.slot, Token(9));
    }
    step
}

#[test]
fn running_answers_come_before_prompts() {
    let mut slots = slots_with(&[1, 1, 500]);
    step(&mut slots, 64, 64);

    let next = step(&mut slots, 8, 8);

    assert_eq!(next.decode_len(), 2);
    assert_eq!(next.prefill_len(), 6);
    assert!(!next.parts()[0].prefill && !next.parts()[1].prefill);
}

#[test]
fn prompts_share_and_a_short_one_leaves_its_rest_to_the_others() {
    let mut slots = slots_with(&[400, 10, 400]);

    let first = step(&mut slots, 90, 90);

    let lengths: Vec<usize> = first.parts().iter().map(|part| part.len).collect();
    assert_eq!(lengths, [10, 40, 40]);
    assert_eq!(
        first.parts()[0].output,
        Some(9),
        "the short prompt is read to its end"
    );
    assert_eq!(first.parts()[1].output, None);
}

#[test]
fn a_paused_answer_takes_no_part() {
    let mut slots = slots_with(&[1, 1]);
    step(&mut slots, 8, 8);
    slots.work_mut(SlotId(0)).expect("at work").paused = true;

    let next = step(&mut slots, 8, 8);

    assert_eq!(next.parts().len(), 1);
    assert_eq!(next.parts()[0].slot, SlotId(1));
}

#[test]
fn a_draft_is_computed_with_the_token_it_follows() {
    let mut slots = slots_with(&[1, 1]);
    step(&mut slots, 8, 8);
    slots.work_mut(SlotId(0)).expect("at work").draft = vec![Token(1), Token(2), Token(3)];

    let next = step(&mut slots, 4, 4);

    let lengths: Vec<usize> = next.parts().iter().map(|part| part.len).collect();
    assert_eq!(lengths, [3, 1], "the other answer goes on in any case");
    assert_eq!(next.parts()[0].outputs(), 0..3);
    assert_eq!(next.decode_len(), 2);
}

#[test]
fn reading_halts_where_the_cache_is_to_be_kept() {
    let mut slots = slots_with(&[100]);
    slots.work_mut(SlotId(0)).expect("at work").halt = Some(30);

    assert_eq!(step(&mut slots, 64, 64).prefill_len(), 30);
    assert_eq!(
        step(&mut slots, 64, 64).prefill_len(),
        64,
        "then it goes on"
    );
}

proptest! {
    #[test]
    fn no_plan_is_too_large_and_no_prompt_starves(
        prompts in prop::collection::vec(1_usize..300, 1..8),
        batch_max in 8_usize..64,
        prefill_max in 1_usize..64,
    ) {
        let mut slots = slots_with(&prompts);
        let total: usize = prompts.iter().sum();
        let mut read = 0;
        for _step in 0..=total {
            let next = step(&mut slots, batch_max, prefill_max);
            prop_assert!(next.tokens().len() <= batch_max);
            prop_assert!(next.prefill_len() <= prefill_max);
            let still_reading = slots.iter().any(|slot| matches!(slot.work().map(|work| work.phase), Some(Phase::Prefill { .. })));
            prop_assert!(!still_reading || next.prefill_len() > 0, "every step reads something");
            read += next.prefill_len();
        }
        prop_assert_eq!(read, total, "every prompt token is read exactly once");
        for (slot, length) in slots.iter().zip(&prompts) {
            let decoding = matches!(slot.work().map(|work| work.phase), Some(Phase::Decode { .. }));
            prop_assert!(decoding);
            prop_assert!(slot.cached().len() >= *length);
        }
    }

    #[test]
    fn positions_follow_one_another(prompts in prop::collection::vec(1_usize..60, 1..5)) {
        let mut slots = slots_with(&prompts);
        let mut next_position = vec![0; prompts.len()];
        for _step in 0..40 {
            let planned = step(&mut slots, 16, 16);
            for token in planned.tokens() {
                let expected = &mut next_position[usize::from(token.slot.0)];
                prop_assert_eq!(token.position, *expected);
                *expected += 1;
            }
        }
    }
}
