//! The figures of a tier and their table. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::client::Answer;
use crate::models::progress::{float, size};

/// What is known about a tier besides what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// The model's id.
    pub model: String,
    /// As `Q8_0`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub quantization: String,
    /// Tokens of one request; 0 = unknown.
    pub n_ctx: u64,
    /// Memory of its worker now, in bytes; `None` where somebody else runs it.
    pub memory_bytes: Option<u64>,
}

/// What answers to one prompt after the other were like.
#[derive(Debug, Default)]
pub struct Rates {
    gaps: Vec<f64>,
    firsts: Vec<f64>,
    wholes: Vec<f64>,
    tokens: u64,
    decoding: Duration,
}

impl Rates {
    /// Adds an answer.
    pub fn add(&mut self, answer: &Answer) {
        self.gaps.extend(answer.gaps.iter().copied().map(ms));
        self.firsts.push(ms(answer.first));
        self.wholes.push(ms(answer.whole));
        // The first token belongs to the prompt.
        self.tokens += answer.completion_tokens.saturating_sub(1);
        self.decoding += answer.whole.saturating_sub(answer.first);
    }
}

/// All figures of a tier.
#[derive(Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The tier, or the model where there is none.
    pub name: String,
    /// What is known about it.
    #[serde(flatten)]
    pub facts: Facts,
    /// One answer at a time, without its prompt.
    pub tokens_per_second: f64,
    /// Four answers at a time, all together, prompts included.
    pub tokens_per_second_4: f64,
    /// Of a prompt of some hundred words.
    pub prompt_tokens_per_second: f64,
    /// Milliseconds between tokens, the middle.
    pub token_p50_ms: f64,
    /// The same, of which one in a hundred is longer.
    pub token_p99_ms: f64,
    /// Milliseconds to the first token, the middle.
    pub ttft_p50_ms: f64,
    /// The same, of which one in twenty is longer.
    pub ttft_p95_ms: f64,
    /// Milliseconds to the end of an answer, of which one in twenty is longer.
    pub answer_p95_ms: f64,
}

impl Figures {
    /// From what was measured.
    pub fn new(name: &str, rates: &Rates, long: &Answer, together: f64, facts: Facts) -> Self {
        Self {
            name: name.to_owned(),
            facts,
            tokens_per_second: per_second(rates.tokens, rates.decoding),
            tokens_per_second_4: together,
            prompt_tokens_per_second: per_second(long.prompt_tokens, long.first),
            token_p50_ms: percentile(&rates.gaps, 50),
            token_p99_ms: percentile(&rates.gaps, 99),
            ttft_p50_ms: percentile(&rates.firsts, 50),
            ttft_p95_ms: percentile(&rates.firsts, 95),
            answer_p95_ms: percentile(&rates.wholes, 95),
        }
    }
}

/// The value that `percent` of the values do not exceed; 0 for none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

/// A rate; 0 for no time.
pub fn per_second(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 {
        float(count) / seconds
    } else {
        0.0
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// For people.
pub fn text(all: &[&Figures]) -> String {
    let mut text = format!(
        "{:<9} {:<24} {:>7} {:>8} {:>8} {:>9} {:>8} {:>8} {:>9} {:>9} {:>10} {:>9}",
        "tier",
        "model",
        "context",
        "tokens/s",
        "x4",
        "prompt/s",
        "P50 ms",
        "P99 ms",
        "TTFT P50",
        "TTFT P95",
        "answer P95",
        "memory"
    );
    for one in all {
        let facts = &one.facts;
        let model: String = facts.model.chars().take(24).collect();
        let memory = facts.memory_bytes.map_or_else(|| "-".to_owned(), size);
        let _written = write!(
            text,
            "\n{:<9} {model:<24} {:>7} {:>8.1} {:>8.1} {:>9.0} {:>8.2} {:>8.2} {:>9.1} {:>9.1} {:>10.1} {memory:>9}",
            one.name,
            facts.n_ctx,
            one.tokens_per_second,
            one.tokens_per_second_4,
            one.prompt_tokens_per_second,
            one.token_p50_ms,
            one.token_p99_ms,
            one.ttft_p50_ms,
            one.ttft_p95_ms,
            one.answer_p95_ms,
        );
    }
    text.push_str(
        "\nP50, P99: milliseconds between tokens; TTFT: to the first one; x4: four answers at once",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (percent, want) in [(50, 50.0), (95, 95.0), (99, 99.0), (100, 100.0)] {
            assert!(
                (percentile(&values, percent) - want).abs() < 1e-9,
                "{percent}"
            );
        }
        assert!(percentile(&[], 50).abs() < 1e-9);
        assert!((percentile(&[7.0], 99) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn rates_leave_the_prompt_out() {
        let mut rates = Rates::default();
        rates.add(&Answer {
            first: Duration::from_millis(100),
            whole: Duration::from_millis(1_100),
            gaps: vec![Duration::from_millis(10); 10],
            completion_tokens: 11,
            ..Answer::default()
        });
        let figures = Figures::new("fast", &rates, &Answer::default(), 0.0, Facts::default());
        assert!((figures.tokens_per_second - 10.0).abs() < 1e-6);
        assert!((figures.token_p50_ms - 10.0).abs() < 1e-6);
        let shown = text(&[&figures]);
        assert!(
            shown.contains("tokens/s") && shown.contains("fast"),
            "{shown}"
        );
    }
}
