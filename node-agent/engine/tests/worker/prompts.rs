//! How a prompt begins: the begin token stands there once, in whatever form the prompt comes.

use engine::GenerateSpec;
use engine::LoadSpec;
use engine::Prompt;
use engine::Segment;
use tempfile::TempDir;

use crate::gguf_writer::Arch;
use crate::gguf_writer::Extra;
use crate::gguf_writer::write_with;
use crate::support::answer;
use crate::support::ask;
use crate::support::load;

const BEGIN: &str = "<|endoftext|>";
const BEGIN_ID: i32 = 257;
const WORDS: &str = "this and that";

fn model(folder: &TempDir, begins: bool) -> LoadSpec {
    let extra = Extra {
        begins,
        ..Extra::default()
    };
    LoadSpec {
        n_ctx: 256,
        ..LoadSpec::new(write_with(folder.path(), Arch::Llama, "begins", extra))
    }
}

fn text(text: impl Into<String>) -> Segment {
    Segment::Text(text.into())
}

fn literal(text: &str) -> Segment {
    Segment::Literal(text.to_owned())
}

fn whole(text: String) -> Prompt {
    Prompt::Text {
        text,
        parse_special: true,
        add_special: true,
    }
}

fn asked(prompt: Prompt) -> GenerateSpec {
    GenerateSpec {
        prompt,
        max_tokens: Some(4),
        ignore_eos: true,
        logprobs: Some(3),
        cache_prompt: false,
        ..ask("")
    }
}

#[tokio::test]
async fn the_begin_token_stands_once_before_a_prompt_of_any_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let (worker, card) = load(model(&folder, true)).await.expect("it loads");
    assert!(card.add_bos);
    assert_eq!(card.bos_token, BEGIN);
    let words = worker
        .tokenize(WORDS, false, false)
        .await
        .expect("the worker lives");
    let begun = [vec![BEGIN_ID], words.clone()].concat();
    let expected = answer(&worker, asked(Prompt::Tokens(begun.clone()))).await;
    let tokens = expected.usage().prompt_tokens;
    assert_eq!(usize::try_from(tokens).ok(), Some(words.len() + 1));
    for prompt in [
        whole(WORDS.to_owned()),
        whole(format!("{BEGIN}{WORDS}")),
        Prompt::Segments(vec![text(WORDS)]),
        Prompt::Segments(vec![literal(WORDS)]),
        Prompt::Segments(vec![Segment::Tokens(words.clone())]),
        Prompt::Segments(vec![Segment::Tokens(begun)]),
        Prompt::Segments(vec![text(format!("{BEGIN}{WORDS}"))]),
        Prompt::Segments(vec![text(""), text(BEGIN), literal(WORDS)]),
        Prompt::Segments(vec![literal("this"), text(" and that")]),
        Prompt::Segments(vec![text(BEGIN), text("this"), literal(" and that")]),
        Prompt::Segments(vec![
            Segment::Tokens(vec![BEGIN_ID]),
            text(BEGIN),
            text(WORDS),
        ]),
    ] {
        let told = answer(&worker, asked(prompt.clone())).await;
        assert_eq!(told.usage(), expected.usage(), "{prompt:?}");
        assert_eq!(told.logprobs, expected.logprobs, "{prompt:?}");
    }
    // In the middle it is the caller's wish, and in a literal it is words.
    let again = vec![text(WORDS), text(BEGIN), text(WORDS)];
    let again = answer(&worker, asked(Prompt::Segments(again))).await;
    let twice = u32::try_from(2 * words.len() + 2).expect("few tokens");
    assert_eq!(again.usage().prompt_tokens, twice);
    let written = answer(&worker, asked(Prompt::Segments(vec![literal(BEGIN)]))).await;
    assert!(written.usage().prompt_tokens > 2);
}

#[tokio::test]
async fn a_model_without_a_begin_token_gets_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let (worker, card) = load(model(&folder, false)).await.expect("it loads");
    assert!(!card.add_bos);
    let words = worker
        .tokenize(WORDS, false, false)
        .await
        .expect("the worker lives");
    let count = u32::try_from(words.len()).expect("few tokens");
    for prompt in [
        whole(WORDS.to_owned()),
        Prompt::Segments(vec![text(WORDS)]),
        Prompt::Segments(vec![Segment::Tokens(words)]),
    ] {
        let told = answer(&worker, asked(prompt)).await;
        assert_eq!(told.usage().prompt_tokens, count);
    }
}
