//! A made-up machine whose speed is known.

use std::time::Instant;

use super::*;
use crate::Class;
use crate::job::Job;
use crate::job::JobId;
use crate::job::Principal;
use crate::job::Token;
use crate::job::Wall;
use crate::plan::plan;
use crate::slots::SlotId;
use crate::slots::Slots;

/// Seconds for each token and each pair, and for the answer that is running.
struct Machine {
    each: f64,
    pair: f64,
    decode: f64,
}

impl Machine {
    fn secs(&self, plan: &BatchPlan) -> f64 {
        let reading: f64 = plan
            .prefill_parts()
            .map(|(len, before)| {
                let (len, before) = (count(len), count(before));
                self.each * len + self.pair * len * (before + len / 2.0)
            })
            .sum();
        reading
            + if plan.decode_len() > 0 {
                self.decode
            } else {
                0.0
            }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "there is no other way to make an Instant"
)]
fn job(id: u64, len: usize) -> Job<()> {
    Job {
        id: JobId(id),
        principal: Principal(0),
        class: Class::Normal,
        begun: false,
        wall: Wall(0),
        links: Vec::new(),
        prompt: vec![Token(7); len],
        cells: len,
        arrived: Instant::now(),
        deadline: None,
        payload: (),
    }
}

/// Reads a prompt of `len` tokens while another answer runs; gives the longest step in seconds and the number of steps.
fn read(machine: &Machine, pacer: &mut Pacer, len: usize) -> (f64, usize) {
    let mut slots = Slots::new(2);
    slots.begin(SlotId(0), job(1, 1), 0).expect("idle");
    let mut step = BatchPlan::default();
    let mut longest: f64 = 0.0;
    let mut steps = 0;
    let mut began = false;
    loop {
        let before = slots.get(SlotId(1)).map_or(0, |slot| slot.cached().len());
        plan(&slots, 512, pacer.budget(began, before), &mut step);
        let secs = machine.secs(&step);
        pacer.observe(&step, Duration::from_secs_f64(secs));
        slots.commit(&step);
        for part in step.parts().iter().filter(|part| part.output.is_some()) {
            slots.chose(part.slot, Token(9));
        }
        if !began {
            slots.begin(SlotId(1), job(2, len), 0).expect("idle");
            began = true;
            continue;
        }
        longest = longest.max(secs);
        steps += 1;
        if slots
            .get(SlotId(1))
            .is_some_and(|slot| slot.cached().len() >= len)
        {
            return (longest, steps);
        }
    }
}

#[test]
fn a_long_prompt_never_stalls_an_answer_for_longer_than_allowed() {
    for each in [20e-6, 1e-3, 3e-3] {
        for pair in [0.0, 1e-7, 1e-6] {
            let machine = Machine {
                each,
                pair,
                decode: 6e-3,
            };
            let mut pacer = Pacer::new(Duration::from_millis(100), 512);
            let (longest, _steps) = read(&machine, &mut pacer, 3_000);
            assert!(
                longest < 0.1,
                "{longest} s at {each} s per token and {pair} s per pair"
            );
        }
    }
}

#[test]
fn the_time_that_is_allowed_is_used() {
    let machine = Machine {
        each: 1e-3,
        pair: 0.0,
        decode: 6e-3,
    };
    let mut pacer = Pacer::new(Duration::from_millis(100), 512);
    read(&machine, &mut pacer, 1_000);

    let (longest, steps) = read(&machine, &mut pacer, 3_000);

    assert!(longest > 0.05, "{longest}");
    assert!(steps < 60, "{steps} steps for 3,000 tokens at 64 a step");
}

#[test]
fn a_machine_that_became_slower_is_believed_at_once() {
    let mut pacer = Pacer::new(Duration::from_millis(100), 512);
    let fast = Machine {
        each: 0.2e-3,
        pair: 0.0,
        decode: 1e-3,
    };
    read(&fast, &mut pacer, 2_000);
    let before = pacer.budget(true, 0);

    let mut slots = Slots::new(1);
    slots.begin(SlotId(0), job(1, 64), 0).expect("idle");
    let mut step = BatchPlan::default();
    plan(&slots, 512, 64, &mut step);
    pacer.observe(&step, Duration::from_millis(64));

    assert!(
        pacer.budget(true, 0) * 2 < before,
        "{} after {before}",
        pacer.budget(true, 0)
    );
}

#[test]
fn a_slow_machine_still_reads_prompts() {
    let mut pacer = Pacer::new(Duration::from_millis(100), 512);
    let mut slots = Slots::new(1);
    slots.begin(SlotId(0), job(1, 100), 0).expect("idle");
    let mut step = BatchPlan::default();
    plan(&slots, 512, 100, &mut step);
    pacer.observe(&step, Duration::from_mins(1));

    assert_eq!(pacer.budget(true, 0), LEAST);
}

#[test]
fn without_running_answers_steps_may_be_longer() {
    let machine = Machine {
        each: 0.5e-3,
        pair: 0.0,
        decode: 1e-3,
    };
    let mut pacer = Pacer::new(Duration::from_millis(100), 512);
    read(&machine, &mut pacer, 2_000);

    assert!(pacer.budget(false, 0) > pacer.budget(true, 0));
}
