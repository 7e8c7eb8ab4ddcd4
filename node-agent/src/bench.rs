//! `hearth-node bench`: what a tier gives, as a client sees it: tokens per second, time per token, time to the first one, memory; and with
//! `--golden`, how many of a list of prompts it answers rightly. Measures over HTTP, as everybody asks; changes nothing.

pub mod client;
pub mod golden;
pub mod table;
mod target;

use std::path::PathBuf;

use clap::Args;
use config::settings::node::Settings;
use config::tier::Tier;
use serde::Serialize;

use crate::tiers::Launcher;
use client::Ask;
use golden::{Report, Set};
use table::{Figures, Rates};
use target::Target;

/// Streams side by side in the second measurement.
const STREAMS: usize = 4;
/// About so many words of a prompt that nobody has sent before.
const PROMPT_WORDS: usize = 400;

/// `hearth-node bench`
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Only this tier. Default: all that the settings have.
    #[arg(long, value_name = "TIER")]
    pub tier: Option<Tier>,
    /// A server that runs already, such as `http://127.0.0.1:8090`, or any that speaks OpenAI's API.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The model to ask for at --url. Default: the tier's name, else the first that the server lists.
    #[arg(long, value_name = "MODEL", requires = "url")]
    pub model: Option<String>,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub tokens: u32,
    /// Answers that are measured, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// For programs.
    #[arg(long)]
    pub json: bool,
    /// Ask these prompts instead and judge the answers; one JSON object a line: prompt, and expect (a regular expression), contains or json.
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// With --golden: fail below this share of right answers, 0 to 1.
    #[arg(long, value_name = "SHARE", requires = "golden", value_parser = share)]
    pub min_accuracy: Option<f64>,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text
        .parse()
        .map_err(|_error| format!("\"{text}\" is no number; 0.9 is nine of ten"))?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(format!("{share} is not within 0 and 1; 0.9 is nine of ten"))
    }
}

impl BenchArgs {
    /// A few seconds for one tier.
    pub const fn short(tier: Tier) -> Self {
        Self {
            tier: Some(tier),
            url: None,
            model: None,
            tokens: 32,
            rounds: 2,
            json: false,
            golden: None,
            min_accuracy: None,
        }
    }
}

/// The text to print, and whether that is a failure.
#[derive(Debug)]
pub struct Outcome {
    /// For the standard output.
    pub text: String,
    /// The accuracy is below what was asked for.
    pub failed: Option<String>,
}

/// What one tier gave.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Found {
    Figures(Box<Figures>),
    Golden(Box<Report>),
}

/// Measures. `settings` are asked for unless a server is named.
pub async fn run(
    args: &BenchArgs,
    settings: impl FnOnce() -> Result<Settings, String>,
    launcher: &Launcher,
) -> Result<Outcome, String> {
    let set = args.golden.as_deref().map(Set::read).transpose()?;
    let targets = match &args.url {
        Some(url) => vec![Target::of_url(url, args.model.as_deref(), args.tier).await?],
        None => Target::of_settings(settings()?, args.tier, launcher).await?,
    };
    let mut found = Vec::new();
    for target in &targets {
        let measured = match &set {
            Some(set) => golden::ask(set, target.client(), target.name())
                .await
                .map(|report| Found::Golden(Box::new(report))),
            None => measure(target, args)
                .await
                .map(|figures| Found::Figures(Box::new(figures))),
        };
        found.push(measured.map_err(|error| format!("{}: {error}", target.name()))?);
    }
    for target in targets {
        target.end().await;
    }
    Ok(outcome(&found, args))
}

async fn measure(target: &Target, args: &BenchArgs) -> Result<Figures, client::ClientError> {
    let client = target.client();
    let ask = |number: u32, words: usize, tokens: u32| Ask {
        messages: Ask::user(&prompt(number, words)),
        max_tokens: tokens,
        to_the_end: true,
        temperature: None,
        json: false,
        seed: number,
    };
    // The first answer warms caches and, of a sleeping model, loads it.
    client.ask(&ask(0, 8, 8)).await?;
    let mut rates = Rates::default();
    for number in 0..args.rounds {
        rates.add(&client.ask(&ask(number + 1, 8, args.tokens)).await?);
    }
    let long = client.ask(&ask(1_001, PROMPT_WORDS, 8)).await?;
    let began = std::time::Instant::now();
    let asks: Vec<Ask> = (0..STREAMS)
        .map(|stream| {
            let number = 2_000 + u32::try_from(stream).unwrap_or(0);
            ask(number, 8, args.tokens)
        })
        .collect();
    let together = futures_util::future::try_join_all(asks.iter().map(|ask| client.ask(ask)));
    let together = together.await?;
    let tokens: u64 = together.iter().map(|answer| answer.completion_tokens).sum();
    Ok(Figures::new(
        target.name(),
        &rates,
        &long,
        table::per_second(tokens, began.elapsed()),
        target.facts(),
    ))
}

/// Words that no cache has seen: the number stands at the front.
fn prompt(number: u32, words: usize) -> String {
    let mut text = format!("{number}. Tell me about number {number}.");
    for word in 0..words {
        text.push_str([" the", " house", " and", " its", " garden", " are", " old"][word % 7]);
    }
    text
}

fn outcome(found: &[Found], args: &BenchArgs) -> Outcome {
    let failed = args.min_accuracy.and_then(|least| {
        found.iter().find_map(|one| match one {
            Found::Golden(report) if report.accuracy < least => Some(format!(
                "{} answered {:.1} % rightly, and --min-accuracy asks for {:.1} %",
                report.name,
                report.accuracy * 100.0,
                least * 100.0
            )),
            Found::Golden(_) | Found::Figures(_) => None,
        })
    });
    let text = if args.json {
        let all = serde_json::json!({"area": "bench", "tiers": found});
        serde_json::to_string_pretty(&all).unwrap_or_default()
    } else {
        let figures: Vec<&Figures> = found
            .iter()
            .filter_map(|one| match one {
                Found::Figures(figures) => Some(figures.as_ref()),
                Found::Golden(_) => None,
            })
            .collect();
        let reports = found.iter().filter_map(|one| match one {
            Found::Golden(report) => Some(report.text()),
            Found::Figures(_) => None,
        });
        if figures.is_empty() {
            reports.collect::<Vec<_>>().join("\n\n")
        } else {
            table::text(&figures)
        }
    };
    Outcome { text, failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_from_the_first_letter_on() {
        assert!(prompt(1, 0).starts_with("1. ") && prompt(2, 0).starts_with("2. "));
        assert!(prompt(1, 400).split_whitespace().count() > 400);
    }

    #[test]
    fn a_share_is_between_nothing_and_everything() {
        assert_eq!(share("0.9"), Ok(0.9));
        assert!(share("90").is_err() && share("x").is_err() && share("NaN").is_err());
    }
}
