//! Measures one worker without HTTP: tokens per second at several numbers of streams, and the longest gap that a long prompt
//! causes in a running answer. `cargo run --release -p engine --example load -- WORKER MODEL [setting=value…]`

use std::io::Write as _;
use std::time::Duration;
use std::time::Instant;

use engine::Event;
use engine::GenerateSpec;
use engine::LoadSpec;
use engine::Prompt;
use engine::Sampling;
use engine::Worker;
use futures_util::future::join_all;

type Failure = Box<dyn std::error::Error>;

/// Tokens of each answer.
const TOKENS: u32 = 128;
/// Tokens of the long prompt: about 1,000 words for the test models' tokenizer.
const LONG: i32 = 2_000;

fn ask(tokens: i32, first: i32, answer: u32) -> GenerateSpec {
    GenerateSpec {
        prompt: Prompt::Tokens(
            (0..tokens)
                .map(|index| 300 + (index * 7_919 + first * 31) % 600)
                .collect(),
        ),
        max_tokens: Some(answer),
        ignore_eos: true,
        principal: u64::from(first.unsigned_abs()),
        sampling: Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            ..Sampling::default()
        },
        ..GenerateSpec::from_template("")
    }
}

/// One answer: tokens, time to the first, and the longest gap between two after that.
async fn run(worker: &Worker, spec: GenerateSpec) -> Result<(u32, Duration, Duration), Failure> {
    let begun = Instant::now();
    let mut generation = worker.generate(spec).await?;
    let (mut first, mut last, mut gap, mut made) = (None, begun, Duration::ZERO, 0);
    while let Some(event) = generation.next().await {
        match event {
            Event::Piece { tokens, .. } => {
                made += tokens;
                if first.is_some() {
                    gap = gap.max(last.elapsed());
                }
                first.get_or_insert_with(|| begun.elapsed());
                last = Instant::now();
            }
            Event::Refused(refusal) => return Err(refusal.into()),
            Event::Done { usage, .. } => made = usage.completion_tokens,
            Event::Started { .. } | Event::Progress(_) => {}
        }
    }
    Ok((made, first.unwrap_or_default(), gap))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mut out = std::io::stdout();
    let worker = args.next().ok_or("the path of hearth-worker comes first")?;
    let model = args.next().ok_or("the path of a model comes second")?;
    let mut settings = serde_json::to_value(LoadSpec {
        n_ctx: 4_096,
        slots: 16,
        batch: 512,
        ..LoadSpec::new(model)
    })?;
    for setting in args {
        let (name, value) = setting.split_once('=').ok_or("a setting is name=value")?;
        let value = serde_json::from_str(value).unwrap_or_else(|_error| value.into());
        settings
            .as_object_mut()
            .ok_or("settings are an object")?
            .insert(name.to_owned(), value);
    }
    let spec: LoadSpec = serde_json::from_value(settings)?;
    let (worker, card) = Worker::spawn(worker, [] as [&str; 0], spec).await?;
    writeln!(out, "{} weights, {} threads", card.parameters, card.threads)?;

    let running = run(&worker, ask(16, 100, 600));
    let long = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        run(&worker, ask(LONG, 101, 4)).await
    };
    let (running, long) = tokio::join!(running, long);
    writeln!(
        out,
        "first long prompt: gap {:?}, its first token after {:?}",
        running?.2, long?.1
    )?;
    let running = run(&worker, ask(16, 102, 600));
    let long = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        run(&worker, ask(LONG, 103, 4)).await
    };
    let (running, long) = tokio::join!(running, long);
    writeln!(
        out,
        "second long prompt: gap {:?}, its first token after {:?}",
        running?.2, long?.1
    )?;
    let alone = run(&worker, ask(LONG, 104, 1)).await?;
    writeln!(
        out,
        "alone: {:.0} prompt tokens/s",
        f64::from(LONG) / alone.1.as_secs_f64()
    )?;

    for streams in [1, 4, 8, 16] {
        let begun = Instant::now();
        let answers =
            join_all((0..streams).map(|number| run(&worker, ask(16, number, TOKENS)))).await;
        let mut made = 0;
        for answer in answers {
            made += answer?.0;
        }
        writeln!(
            out,
            "{streams} streams: {:.0} tokens/s",
            f64::from(made) / begun.elapsed().as_secs_f64()
        )?;
    }
    let stats = *worker.stats().borrow();
    writeln!(
        out,
        "{} of {} guesses right",
        stats.accepted_tokens_total, stats.drafted_tokens_total
    )?;
    Ok(())
}
