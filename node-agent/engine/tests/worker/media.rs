//! Pictures and sound through a real worker, with projectors of random weights: the answers are nonsense, the ways are not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::GenerateSpec;
use engine::LoadError;
use engine::LoadSpec;
use engine::Media;
use engine::Prompt;
use engine::Refusal;
use engine::Segment;
use engine::Worker;

use crate::projector;
use crate::projector::AUDIO_TOKENS;
use crate::projector::IMAGE_TOKENS;
use crate::projector::TINY_WIDTH;
use crate::support::Answer;
use crate::support::answer;
use crate::support::ask;
use crate::support::load;
use crate::support::next;
use crate::support::start;
use crate::support::tiny;
use crate::support::until;

fn seeing(folder: &Path) -> LoadSpec {
    LoadSpec {
        projector: Some(projector::write_vision(folder, TINY_WIDTH)),
        slots: 2,
        ..tiny("fast")
    }
}

fn hearing(folder: &Path) -> LoadSpec {
    LoadSpec {
        projector: Some(projector::write_audio(folder, TINY_WIDTH)),
        slots: 2,
        ..tiny("fast")
    }
}

/// A picture of one colour with a darker half.
fn picture(red: u8) -> Arc<Media> {
    let pixel = |at: usize| [if at % 64 < 32 { red } else { red / 2 }, 40, 200];
    let rgb: Vec<u8> = (0..64 * 48).flat_map(pixel).collect();
    Arc::new(Media::Image {
        width: 64,
        height: 48,
        rgb: rgb.into(),
    })
}

/// Half a second of a tone.
fn tone(hertz: f32) -> Arc<Media> {
    let sample = |at: u16| (f32::from(at) / 16_000.0 * hertz * std::f32::consts::TAU).sin();
    let pcm: Vec<f32> = (0..8_000).map(sample).collect();
    Arc::new(Media::Audio { pcm: pcm.into() })
}

fn text(text: &str) -> Segment {
    Segment::Text(text.to_owned())
}

/// A question about some media, answered greedily.
fn about(media: Vec<Arc<Media>>, question: &str) -> GenerateSpec {
    let mut segments = vec![text("<|im_start|>user\n")];
    segments.extend((0..).zip(&media).map(|(index, _one)| Segment::Media(index)));
    segments.push(text(&format!(
        "{question}<|im_end|>\n<|im_start|>assistant\n"
    )));
    GenerateSpec {
        prompt: Prompt::Segments(segments),
        media,
        max_tokens: Some(8),
        ignore_eos: true,
        logprobs: Some(3),
        ..ask("")
    }
}

fn numbers(answer: &Answer) -> Vec<f32> {
    let tokens = answer.logprobs.iter();
    tokens.map(|token| token.chosen.logprob).collect()
}

async fn fresh(worker: &Worker, mut spec: GenerateSpec) -> Answer {
    spec.cache_prompt = false;
    answer(worker, spec).await
}

#[tokio::test]
async fn the_same_picture_gives_the_same_answer_and_another_one_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let (worker, card) = load(seeing(folder.path())).await.expect("it loads");
    assert!(card.modalities.image && card.modalities.audio_hz.is_none());
    let one = fresh(&worker, about(vec![picture(250)], "What is it?")).await;
    let same = fresh(&worker, about(vec![picture(250)], "What is it?")).await;
    let other = fresh(&worker, about(vec![picture(20)], "What is it?")).await;
    assert_eq!(one.text, same.text);
    assert_eq!(numbers(&one), numbers(&same));
    assert_ne!(numbers(&one), numbers(&other), "the model sees the picture");
    let usage = one.usage();
    // The texts around a picture, for which this vocabulary has no token of its own, are its tokens too.
    assert!(u64::from(usage.image_tokens) > IMAGE_TOKENS);
    assert_eq!((usage.audio_tokens, usage.cached_tokens), (0, 0));
    let blind = fresh(&worker, about(vec![], "What is it?")).await.usage();
    assert_eq!(
        usage.prompt_tokens - blind.prompt_tokens,
        usage.image_tokens
    );
    worker.shutdown().await;
}

#[tokio::test]
async fn a_conversation_about_a_picture_is_reused_only_with_that_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(seeing(folder.path())).await;
    let asked =
        "What do you see in this picture, and what else might be there that one does not see?";
    let two = || vec![picture(250), picture(90)];
    let first = answer(&worker, about(two(), asked)).await;
    let again = answer(&worker, about(two(), asked)).await;
    assert!(
        again.cached + 1 >= first.usage().prompt_tokens,
        "all but the last token"
    );
    assert_eq!(again.text, first.text);
    // The second picture is another one: reuse ends before it.
    let swapped = about(vec![picture(250), picture(91)], asked);
    let reused = answer(&worker, swapped.clone()).await;
    let plain = fresh(&worker, swapped).await;
    let both = first.usage().image_tokens;
    assert!(
        reused.cached > both / 2 && reused.cached < both,
        "{} of {both}",
        reused.cached
    );
    assert_eq!(reused.text, plain.text);
    for (left, right) in numbers(&reused).iter().zip(numbers(&plain)) {
        assert!(
            (left - right).abs() < 2e-3,
            "reuse does not change what is computed"
        );
    }
    worker.shutdown().await;
}

#[tokio::test]
async fn pictures_and_texts_of_others_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(seeing(folder.path())).await;
    let spec = |red| about(vec![picture(red), picture(red / 2)], "And now?");
    let mut alone = Vec::new();
    for red in [10, 100, 200] {
        alone.push(fresh(&worker, spec(red)).await.text);
    }
    let told = answer(&worker, ask("Tell me a story.")).await.text;
    let (a, b, c, story) = tokio::join!(
        fresh(&worker, spec(10)),
        fresh(&worker, spec(100)),
        fresh(&worker, spec(200)),
        answer(&worker, ask("Tell me a story.")),
    );
    assert_eq!([a.text, b.text, c.text], *alone);
    assert_eq!(story.text, told);
    worker.shutdown().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_numbers_and_the_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = LoadSpec {
        n_ctx: 64,
        ..seeing(folder.path())
    };
    let worker = start(spec).await;
    let many = answer(&worker, about(vec![picture(1); 16], "Many?")).await;
    let Refusal::ContextLengthExceeded {
        prompt_tokens,
        n_ctx,
        ..
    } = many.refusal()
    else {
        panic!("{:?}", many.refusal());
    };
    assert!(u64::from(*prompt_tokens) >= 16 * IMAGE_TOKENS && *n_ctx == 64);
    let sound = answer(&worker, about(vec![picture(1), tone(440.0)], "Hm?")).await;
    let Refusal::Invalid { param, reason } = sound.refusal() else {
        panic!("{:?}", sound.refusal());
    };
    assert_eq!(param, "media[1]");
    assert!(reason.contains("pictures only, no sound"), "{reason}");
    let mut open = about(vec![picture(1)], "");
    open.prompt = Prompt::Segments(vec![text("Look: "), Segment::Media(0)]);
    let open = answer(&worker, open).await;
    assert!(
        matches!(open.refusal(), Refusal::Invalid { .. }),
        "text must follow"
    );
    worker.shutdown().await;

    let blind = start(tiny("fast")).await;
    let refused = answer(&blind, about(vec![picture(1)], "Hm?")).await;
    assert!(
        matches!(refused.refusal(), Refusal::Invalid { reason, .. } if reason.contains("text only")),
        "{:?}",
        refused.refusal()
    );
    blind.shutdown().await;
}

#[tokio::test]
async fn sound_is_heard_where_the_projector_has_ears() {
    let folder = tempfile::tempdir().expect("a folder");
    let (worker, card) = load(hearing(folder.path())).await.expect("it loads");
    assert_eq!(card.modalities.audio_hz, Some(16_000));
    assert!(!card.modalities.image);
    let low = fresh(&worker, about(vec![tone(220.0)], "What?")).await;
    let same = fresh(&worker, about(vec![tone(220.0)], "What?")).await;
    let high = fresh(&worker, about(vec![tone(1_760.0)], "What?")).await;
    assert_eq!(numbers(&low), numbers(&same));
    assert_ne!(numbers(&low), numbers(&high), "the model hears the tone");
    assert_eq!(u64::from(low.usage().audio_tokens), AUDIO_TOKENS);
    let picture = fresh(&worker, about(vec![picture(1)], "Hm?")).await;
    assert!(
        matches!(picture.refusal(), Refusal::Invalid { reason, .. } if reason.contains("sound only, no pictures")),
        "{:?}",
        picture.refusal()
    );
    worker.shutdown().await;
}

#[tokio::test]
async fn a_request_that_leaves_between_two_sounds_frees_its_slot() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start(hearing(folder.path())).await;
    let many = about(
        (0..8_u8).map(|at| tone(f32::from(at) + 100.0)).collect(),
        "?",
    );
    let mut generation = worker.generate(many).await.expect("taken");
    let _started = next(&mut generation).await;
    drop(generation);
    let begun = std::time::Instant::now();
    until(&worker, |stats| stats.slots_busy == 0).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "not after all eight"
    );
    worker.shutdown().await;
}

#[tokio::test]
async fn a_projector_that_is_broken_or_of_another_model_is_a_clear_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = projector::write_vision(folder.path(), TINY_WIDTH);
    let bytes = std::fs::read(&whole).expect("written");
    for cut in [0, 7, 24, 200, 700, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&whole, &bytes[..cut]).expect("writable");
        let spec = LoadSpec {
            projector: Some(whole.clone()),
            ..tiny("fast")
        };
        let Err(error) = load(spec).await else {
            panic!("{cut} bytes of a projector were loaded");
        };
        assert!(
            matches!(&error, LoadError::Model { path, reason } if path.ends_with("mmproj-vision.gguf") && reason.contains("projector")),
            "cut at {cut}: {error:?}"
        );
    }
    let other = LoadSpec {
        projector: Some(projector::write_vision(folder.path(), 64)),
        ..tiny("fast")
    };
    let error = load(other).await.expect_err("it is of another model");
    assert!(error.to_string().contains("mismatch"), "{error}");
}
