//! What is told of tokens is what the engine counted, however an answer ends.

use engine::Event;
use engine::Finish;
use engine::GenerateSpec;
use engine::Grammar;
use engine::Prompt;
use engine::Sampling;
use engine::Segment;

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
        let told = u32::try_from(said.ids.len()).expect("few tokens");
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
