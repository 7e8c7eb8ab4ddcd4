//! What is told of tokens is what the engine counted, however an answer ends.

use engine::Event;
use engine::Finish;
use engine::GenerateSpec;
use engine::Grammar;
use engine::LoadSpec;
use engine::Prompt;
use engine::Sampling;
use engine::Segment;
use engine::Usage;
use engine::Worker;
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::answer;
use crate::support::ask;
use crate::support::next;
use crate::support::start;
use crate::support::tiny;
use crate::support::until;

#[tokio::test]
async fn usage_is_the_engines_own_count_however_an_answer_ends() {
    let worker = start(tiny("fast")).await;
    let question = ask("What is the capital of France?");
    let length = GenerateSpec {
        max_tokens: Some(3),
        ..question.clone()
    };
    let stopped = GenerateSpec {
        stop: vec!["France".to_owned()],
        ..question.clone()
    };
    let formed = GenerateSpec {
        grammar: Some(Grammar::Gbnf("root ::= \"yes indeed\"".to_owned())),
        ..question.clone()
    };
    let at_least = GenerateSpec {
        min_tokens: 20,
        max_tokens: Some(20),
        ..question.clone()
    };
    let mut total = 0;
    for (spec, finish) in [
        (question, Finish::Stop),
        (length, Finish::Length),
        (stopped, Finish::StopString),
        (formed, Finish::Stop),
        (at_least, Finish::Length),
    ] {
        let said = answer(&worker, spec).await;
        let usage = said.usage();
        let told = said.tokens;
        assert_eq!(said.finish(), finish, "{}", said.text);
        // The end token and those of a stop string make no text, so only the end tells of them.
        let untold = match finish {
            Finish::Length | Finish::Deadline => 0,
            Finish::Stop => 1,
            Finish::StopString => 2,
        };
        assert_eq!(told + untold, usage.completion_tokens, "{finish:?}");
        total += u64::from(usage.completion_tokens);
    }
    let counted = until(&worker, |stats| stats.completion_tokens_total >= total).await;
    assert_eq!(counted.completion_tokens_total, total);
}

#[tokio::test]
async fn tokens_are_told_with_the_text_wherever_the_reader_leaves() {
    let worker = start(tiny("fast")).await;
    let spec = GenerateSpec {
        ignore_eos: true,
        max_tokens: Some(40),
        cache_prompt: false,
        ..ask("Tell me a story.")
    };
    let whole = answer(&worker, spec.clone()).await;
    for leaves_after in [1, 2, 5, 17, 39] {
        let mut generation = worker.generate(spec.clone()).await.expect("it is accepted");
        let mut ids: Vec<i32> = Vec::new();
        while ids.len() < leaves_after {
            if let Some(Event::Piece {
                ids: new, tokens, ..
            }) = next(&mut generation).await
            {
                assert_eq!(usize::try_from(tokens).ok(), Some(new.len()));
                ids.extend(new);
            }
        }
        drop(generation);
        assert_eq!(ids, whole.ids[..ids.len()]);
    }
    until(&worker, |stats| stats.slots_busy == 0).await;
}

/// Asks what an answer used whose reader leaves after so many events; `None` if it had come to its end.
async fn leave(worker: &Worker, spec: GenerateSpec, after: usize) -> Option<Usage> {
    let mut generation = worker.generate(spec).await.expect("it is accepted");
    let mut told = 0;
    for _event in 0..after {
        match next(&mut generation).await {
            Some(Event::Piece { tokens, .. }) => told += tokens,
            Some(Event::Started { .. } | Event::Progress(_)) => {}
            Some(Event::Done { usage, .. }) => return Some(usage),
            other => panic!("{other:?}"),
        }
    }
    let usage = timeout(PATIENCE, generation.abort().usage())
        .await
        .expect("the engine answers")
        .expect("it knows what it did");
    assert!(usage.completion_tokens >= told, "{usage:?}");
    Some(usage)
}

#[tokio::test]
async fn all_that_the_engine_made_is_in_the_usage_of_some_answer_wherever_readers_leave() {
    for ngram in [false, true] {
        let worker = start(LoadSpec {
            ngram,
            slots: 2,
            ..tiny("fast")
        })
        .await;
        let (mut completion, mut prompt) = (0, 0);
        for after in 0..40 {
            let spec = GenerateSpec {
                max_tokens: Some(30),
                stop: vec!["never said".to_owned()],
                ..ask("Tell me a story.")
            };
            // Two at once, one of them to its end, and more that wait until they are called back.
            let (one, other, third) = tokio::join!(
                leave(&worker, spec.clone(), after),
                leave(&worker, spec.clone(), usize::MAX),
                leave(&worker, spec, after / 4),
            );
            for usage in [one, other, third].into_iter().flatten() {
                completion += u64::from(usage.completion_tokens);
                prompt += u64::from(usage.prompt_tokens);
            }
        }
        let counted = until(&worker, |stats| {
            stats.slots_busy == 0 && stats.completion_tokens_total >= completion
        })
        .await;
        assert_eq!(counted.completion_tokens_total, completion, "{ngram}");
        let read = counted.prompt_tokens_total + counted.cached_tokens_total;
        assert!(read <= prompt, "{read} of {prompt}");
    }
}

#[tokio::test]
async fn an_answer_that_has_ended_or_was_refused_or_lost_its_worker_ends_an_abort() {
    let worker = start(tiny("fast")).await;
    let short = GenerateSpec {
        max_tokens: Some(1),
        ..ask("Hello")
    };
    let generation = worker.generate(short.clone()).await.expect("accepted");
    // Its last event lies unread in the agent.
    until(&worker, |stats| stats.completion_tokens_total == 1).await;
    let usage = generation.abort().usage().await.expect("it ended well");
    assert_eq!(usage.completion_tokens, 1);

    let mut read = worker.generate(short).await.expect("accepted");
    while next(&mut read).await.is_some() {}
    assert_eq!(read.abort().usage().await, None, "it was told before");

    let long = ask(&"long ".repeat(9_000));
    let refused = worker.generate(long).await.expect("sent");
    assert_eq!(refused.abort().usage().await, None);

    let endless = GenerateSpec {
        ignore_eos: true,
        ..ask("Hello")
    };
    let mut running = worker.generate(endless).await.expect("accepted");
    assert!(next(&mut running).await.is_some());
    worker.shutdown().await;
    assert_eq!(running.abort().usage().await, None);
}

#[tokio::test]
async fn words_that_look_like_control_tokens_are_words_in_a_literal() {
    let (worker, card) = crate::support::load(tiny("fast"))
        .await
        .expect("the model loads");
    assert!(card.control_tokens.contains(&"<|im_end|>".to_owned()));
    let asked = |segment: fn(String) -> Segment| GenerateSpec {
        prompt: Prompt::Segments(vec![
            Segment::Text("<|im_start|>user\n".to_owned()),
            segment("<|im_end|>".to_owned()),
            Segment::Text("<|im_end|>\n<|im_start|>assistant\n".to_owned()),
        ]),
        max_tokens: Some(1),
        ..ask("")
    };
    let parsed = answer(&worker, asked(Segment::Text)).await.usage();
    let literal = answer(&worker, asked(Segment::Literal)).await.usage();
    assert!(literal.prompt_tokens > parsed.prompt_tokens, "{literal:?}");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text_and_another_one_does_not() {
    let worker = start(tiny("fast")).await;
    let told = async |seed| {
        let spec = GenerateSpec {
            sampling: Sampling {
                seed: Some(seed),
                temperature: 1.5,
                ..Sampling::default()
            },
            ignore_eos: true,
            max_tokens: Some(40),
            ..ask("Tell me a story.")
        };
        answer(&worker, spec).await.text
    };
    let first = told(1).await;
    assert_eq!(told(1).await, first);
    assert_ne!(told(2).await, first);
}
