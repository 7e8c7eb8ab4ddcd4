//! The decode loop with a scripted engine: order, limits, fairness, cancellation.

use std::time::Duration;

use engine::Event;
use engine::Finish;
use engine::LoadSpec;
use engine::Refusal;
use engine::Script;
use engine::ScriptedReply;

use crate::support::answer;
use crate::support::ask;
use crate::support::first_piece;
use crate::support::next;
use crate::support::play;
use crate::support::read;
use crate::support::start;
use crate::support::until;

/// An answer that takes far longer than any test.
fn endless() -> Script {
    Script {
        say: "on and on ".repeat(700),
        step_ms: 1,
        ..Script::default()
    }
}

fn one_slot(script: &Script) -> LoadSpec {
    LoadSpec {
        slots: 1,
        ..LoadSpec::new(script.path())
    }
}

#[tokio::test]
async fn a_script_answers_and_counts() {
    let worker = play(&Script::say("hi \u{1F600}")).await;

    let said = answer(&worker, ask("hello")).await;

    assert_eq!(said.text, "hi \u{1F600}");
    assert_eq!(said.finish(), Finish::Stop);
    assert_eq!(
        said.usage().completion_tokens,
        8,
        "seven bytes and the end token"
    );
    assert!(
        said.pieces.contains(&"\u{1F600}".to_owned()),
        "the emoji came in one piece: {:?}",
        said.pieces
    );
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    let worker = play(&Script::say("one two three")).await;
    let mut spec = ask("count");
    spec.stop = vec!["zzz".to_owned(), " th".to_owned()];

    let said = answer(&worker, spec).await;

    assert_eq!(said.text, "one two");
    assert_eq!(said.finish(), Finish::StopString);
}

#[tokio::test]
async fn max_tokens_and_the_end_of_the_context_end_the_answer() {
    let script = endless();
    let mut load = one_slot(&script);
    load.n_ctx = 200;
    let worker = start(load).await;

    let mut limited = ask("go");
    limited.max_tokens = Some(5);
    let said = answer(&worker, limited).await;
    assert_eq!(
        (said.text.as_str(), said.finish()),
        ("on an", Finish::Length)
    );
    assert_eq!(said.usage().completion_tokens, 5);

    let said = answer(&worker, ask("go")).await;
    assert_eq!(said.finish(), Finish::Length);
    let usage = said.usage();
    assert_eq!(
        usage.prompt_tokens + usage.completion_tokens,
        200,
        "the whole context was used"
    );
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_numbers() {
    let mut load = one_slot(&Script::say("hi"));
    load.n_ctx = 100;
    let worker = start(load).await;

    let long = answer(&worker, ask(&"x".repeat(200))).await;
    let Refusal::ContextLengthExceeded {
        prompt_tokens,
        max_tokens: None,
        n_ctx: 100,
    } = long.refusal()
    else {
        panic!("{:?}", long.refusal());
    };
    assert!(*prompt_tokens > 200);

    let mut greedy = ask("hi");
    greedy.max_tokens = Some(99);
    let greedy = answer(&worker, greedy).await;
    assert!(matches!(
        greedy.refusal(),
        Refusal::ContextLengthExceeded {
            max_tokens: Some(99),
            ..
        }
    ));
}

#[tokio::test]
async fn a_dropped_answer_frees_its_slot() {
    let worker = start(one_slot(&endless())).await;
    let mut generation = worker.generate(ask("go")).await.expect("the worker lives");
    first_piece(&mut generation).await;
    until(&worker, |stats| stats.slots_busy == 1).await;

    drop(generation);

    until(&worker, |stats| stats.slots_busy == 0).await;
}

#[tokio::test]
async fn a_dropped_answer_leaves_the_queue() {
    let worker = start(one_slot(&endless())).await;
    let _running = worker.generate(ask("go")).await.expect("the worker lives");
    let waiting = worker
        .generate(ask("wait"))
        .await
        .expect("the worker lives");
    until(&worker, |stats| stats.queue_depth == 1).await;

    drop(waiting);

    until(&worker, |stats| {
        stats.queue_depth == 0 && stats.slots_busy == 1
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let mut load = one_slot(&endless());
    load.queue_max = 2;
    let worker = start(load).await;
    let _running = worker.generate(ask("go")).await.expect("the worker lives");
    let _second = worker.generate(ask("go")).await.expect("the worker lives");
    let _third = worker.generate(ask("go")).await.expect("the worker lives");

    let fourth = answer(&worker, ask("go")).await;

    assert_eq!(fourth.refusal(), &Refusal::QueueFull { waiting: 2 });
}

#[tokio::test]
async fn principals_take_turns_in_the_queue() {
    let mut script = Script::say("done");
    script.replies.push(ScriptedReply {
        when: "block".to_owned(),
        say: "x".repeat(3_000),
    });
    script.step_ms = 1;
    let worker = start(one_slot(&script)).await;
    let mut running = worker
        .generate(ask("block"))
        .await
        .expect("the worker lives");
    first_piece(&mut running).await;
    let (sender, mut order) = tokio::sync::mpsc::channel(8);
    for principal in [1, 1, 1, 2] {
        let mut spec = ask("short");
        spec.principal = principal;
        let generation = worker.generate(spec).await.expect("the worker lives");
        let sender = sender.clone();
        tokio::spawn(async move {
            assert_eq!(read(generation).await.text, "done");
            sender.send(principal).await.expect("somebody listens");
        });
    }
    until(&worker, |stats| stats.queue_depth == 4).await;

    drop(running);

    let mut finished = Vec::new();
    while finished.len() < 4 {
        finished.push(order.recv().await.expect("four answers come"));
    }
    assert_eq!(
        finished,
        [1, 2, 1, 1],
        "the second principal waits for one answer, not for three"
    );
}

#[tokio::test]
async fn a_deadline_ends_waiting_and_working() {
    let worker = start(one_slot(&endless())).await;
    let mut hurried = ask("go");
    hurried.deadline = Some(Duration::from_millis(1_200));
    let running = worker
        .generate(hurried.clone())
        .await
        .expect("the worker lives");
    until(&worker, |stats| stats.slots_busy == 1).await;
    hurried.deadline = Some(Duration::from_millis(50));

    let waited = answer(&worker, hurried).await;
    assert_eq!(waited.refusal(), &Refusal::DeadlineExceeded);

    let worked = read(running).await;
    assert_eq!(worked.finish(), Finish::Deadline);
    assert!(!worked.text.is_empty(), "what was made is delivered");
    until(&worker, |stats| stats.slots_busy == 0).await;
}

#[tokio::test]
async fn a_slow_reader_pauses_only_its_own_slot() {
    let mut script = Script::say("x".repeat(2_000));
    script.replies.push(ScriptedReply {
        when: "short".to_owned(),
        say: "brisk ".repeat(200),
    });
    let mut load = LoadSpec::new(script.path());
    load.slots = 2;
    let worker = start(load).await;
    let slow = worker
        .generate(ask("long"))
        .await
        .expect("the worker lives");

    let quick = answer(&worker, ask("short")).await;
    assert_eq!(quick.text.len(), 1_200);
    // The other slot has stopped by itself: nobody takes its pieces.
    let paused = until(&worker, |stats| stats.slots_busy == 1).await;
    assert!(paused.completion_tokens_total < 2_000, "{paused:?}");

    let slow = read(slow).await;
    assert_eq!(slow.text.len(), 2_000, "nothing was lost");
    assert_eq!(slow.tokens, 2_000);
}

#[tokio::test]
async fn a_common_beginning_is_read_once_and_only_for_its_owner() {
    let worker = start(one_slot(&Script::say("hi"))).await;
    let question = "a long beginning that both questions share, ".repeat(4);
    let first = answer(&worker, ask(&question)).await;
    assert_eq!(first.cached, 0);

    let again = answer(&worker, ask(&format!("{question} and more"))).await;
    assert!(
        again.cached > 150,
        "only {} tokens were reused",
        again.cached
    );
    assert_eq!(again.usage().cached_tokens, again.cached);
    assert_eq!(again.text, "hi");

    let mut other = ask(&question);
    other.principal = 2;
    assert_eq!(
        answer(&worker, other).await.cached,
        0,
        "another principal's cache stays closed"
    );

    let mut forgetful = ask(&question);
    forgetful.principal = 3;
    forgetful.cache_prompt = false;
    answer(&worker, forgetful.clone()).await;
    forgetful.cache_prompt = true;
    assert_eq!(
        answer(&worker, forgetful).await.cached,
        0,
        "nothing was kept"
    );
}

#[tokio::test]
async fn a_failed_step_ends_its_answers_and_not_the_worker() {
    let mut script = Script::say("fine");
    script.fault_on = Some("poison".to_owned());
    let worker = play(&script).await;

    let failed = answer(&worker, ask("poison")).await;
    assert!(matches!(failed.refusal(), Refusal::EngineFault { .. }));

    assert_eq!(answer(&worker, ask("hello")).await.text, "fine");
}

#[tokio::test]
async fn bad_requests_are_refused_before_they_travel() {
    let worker = play(&Script::say("hi")).await;
    let mut wrong = ask("x");
    wrong.sampling.top_p = f32::NAN;
    assert!(
        matches!(answer(&worker, wrong).await.refusal(), Refusal::Invalid { param, .. } if param == "top_p")
    );
    let mut wrong = ask("x");
    wrong.prompt = engine::Prompt::Tokens(vec![1, 258]);
    assert!(
        matches!(answer(&worker, wrong).await.refusal(), Refusal::Invalid { param, .. } if param == "prompt")
    );
    let mut wrong = ask("x");
    wrong.prompt = engine::Prompt::Tokens(Vec::new());
    assert!(matches!(
        answer(&worker, wrong).await.refusal(),
        Refusal::Invalid { .. }
    ));
    assert_eq!(
        answer(&worker, ask("x")).await.text,
        "hi",
        "the worker took no harm"
    );
}

#[tokio::test]
async fn events_come_in_order() {
    let worker = play(&Script::say("ab")).await;
    let mut generation = worker.generate(ask("x")).await.expect("the worker lives");

    assert!(matches!(
        next(&mut generation).await,
        Some(Event::Started { .. })
    ));
    assert!(matches!(
        next(&mut generation).await,
        Some(Event::Piece { .. })
    ));
    assert!(matches!(
        next(&mut generation).await,
        Some(Event::Piece { .. })
    ));
    assert!(matches!(
        next(&mut generation).await,
        Some(Event::Done { .. })
    ));
    assert_eq!(next(&mut generation).await, None);
}

#[tokio::test]
async fn tokens_and_text_turn_into_each_other() {
    let worker = play(&Script::say("hi")).await;

    let tokens = worker
        .tokenize("<|im_start|>é", false, true)
        .await
        .expect("the worker lives");
    assert_eq!(tokens, [257, 0xC3, 0xA9]);
    assert_eq!(
        worker.detokenize(tokens).await.expect("the worker lives"),
        "<|im_start|>é"
    );
    assert_eq!(
        worker
            .detokenize(vec![-1, 9_999])
            .await
            .expect("the worker lives"),
        ""
    );
}
