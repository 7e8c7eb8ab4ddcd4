//! Settings of the classifier: what each of its rules weighs, and whether the fast tier is asked when the score is close. Knows names
//! and numbers only; what a rule looks for is the classifier's business.

use std::fmt;
use std::time::Duration;

/// One rule of the classifier. Its weight is how far the first sign of it moves the score.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rule {
    /// Where a request without any sign starts.
    Base,
    /// The last message is long; per step of length.
    Length,
    /// Words that ask for several steps of thought.
    Reasoning,
    /// Words that ask for an explanation.
    Explanation,
    /// Words and signs of mathematics.
    Maths,
    /// Words and signs of programming.
    Code,
    /// A fenced block of code.
    CodeBlock,
    /// A piece of writing is wanted.
    Composition,
    /// A text is to be shortened.
    Summary,
    /// A wish for care: `think hard`, `step by step`.
    Thorough,
    /// A wish for little: `briefly`, `kurz`.
    Brief,
    /// A fact or a small transformation.
    Lookup,
    /// Something is to be said in other words: less for a few words, more for a paragraph.
    Rewrite,
    /// Several numbers in a question.
    Quantities,
    /// Several questions or numbered demands at once.
    Demands,
    /// The conversation is long; per step of turns.
    Depth,
    /// Much context; per step of bytes.
    Context,
    /// Tools are offered.
    Tools,
    /// The answer must follow a schema.
    Schema,
    /// Pictures and sounds.
    Media,
    /// `reasoning_effort` is high.
    EffortHigh,
    /// `max_tokens` allows only a few words.
    AnswerShort,
    /// `max_tokens` allows a long answer.
    AnswerLong,
}

impl Rule {
    /// Every rule with its key and its default weight.
    pub const ALL: [(Self, &'static str, f64); 23] = [
        (Self::Base, "base", 0.24),
        (Self::Length, "length", 0.06),
        (Self::Reasoning, "reasoning", 0.26),
        (Self::Explanation, "explanation", 0.12),
        (Self::Maths, "maths", 0.16),
        (Self::Code, "code", 0.12),
        (Self::CodeBlock, "code_block", 0.08),
        (Self::Composition, "composition", 0.12),
        (Self::Summary, "summary", 0.12),
        (Self::Thorough, "thorough", 0.26),
        (Self::Brief, "brief", -0.16),
        (Self::Lookup, "lookup", -0.10),
        (Self::Rewrite, "rewrite", 0.12),
        (Self::Quantities, "quantities", 0.14),
        (Self::Demands, "demands", 0.06),
        (Self::Depth, "depth", 0.06),
        (Self::Context, "context", 0.10),
        (Self::Tools, "tools", 0.14),
        (Self::Schema, "schema", 0.10),
        (Self::Media, "media", 0.16),
        (Self::EffortHigh, "effort_high", 0.40),
        (Self::AnswerShort, "answer_short", -0.10),
        (Self::AnswerLong, "answer_long", 0.08),
    ];

    /// Its key in `[routing.classifier.weights]`, and its name among the reasons of a verdict.
    pub const fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// What each rule weighs.
#[derive(Clone, Copy, PartialEq)]
pub struct Weights([f64; Rule::ALL.len()]);

impl Weights {
    /// Reads each weight with `given`; where it says nothing the default stands.
    pub fn read(mut given: impl FnMut(&'static str) -> Option<f64>) -> Self {
        Self(Rule::ALL.map(|(_, name, default)| given(name).unwrap_or(default)))
    }

    /// What the first sign of a rule moves.
    pub const fn of(&self, rule: Rule) -> f64 {
        self.0[rule as usize]
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self::read(|_| None)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Rule::ALL
            .iter()
            .map(|(rule, name, _)| (name, self.of(*rule)));
        f.debug_map().entries(named).finish()
    }
}

/// `[routing.classifier]`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classifier {
    /// What each rule weighs, -1 to 1.
    pub weights: Weights,
    /// Whether the fast tier is asked for its opinion when the score is close to a threshold. Default false.
    pub second_opinion: bool,
    /// How close to a threshold the score must be. Default 0.05.
    pub second_opinion_margin: f64,
    /// So long its opinion is waited for. Default 400 ms.
    pub second_opinion_patience: Duration,
}

impl Default for Classifier {
    fn default() -> Self {
        Self {
            weights: Weights::default(),
            second_opinion: false,
            second_opinion_margin: 0.05,
            second_opinion_patience: Duration::from_millis(400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_stands_at_its_own_place_in_the_table() {
        for (place, (rule, name, weight)) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(rule as usize, place, "{name}");
            assert_eq!(rule.as_str(), name);
            assert!((-1.0..=1.0).contains(&weight), "{name}");
        }
    }
}
