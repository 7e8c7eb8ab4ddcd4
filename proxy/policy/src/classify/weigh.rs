//! Turns what was found into a score with its reasons, and into a kind of work. A weighted sum and nothing else: every reason says how
//! far it moved the score, and the reasons add up to it. Sees no text.

use config::settings::classifier::{Rule, Weights};
use config::settings::proxy::Routing;
use config::tier::Tier;
use serde::{Deserialize, Serialize, Serializer};

use super::Features;
use super::lexicon::Hint;

/// What the sum is weighed with, and where it turns into a tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Up to here it is fast.
    pub fast_to: f64,
    /// From here it is heavy.
    pub heavy_from: f64,
    /// What each rule weighs.
    pub weights: Weights,
}

impl From<&Routing> for Thresholds {
    fn from(routing: &Routing) -> Self {
        Self {
            fast_to: routing.fast_to,
            heavy_from: routing.heavy_from,
            weights: routing.classifier.weights,
        }
    }
}

impl Thresholds {
    /// The tier of a score.
    pub fn tier_of(&self, score: f64) -> Tier {
        if score >= self.heavy_from {
            Tier::Heavy
        } else if score > self.fast_to {
            Tier::Primary
        } else {
            Tier::Fast
        }
    }

    /// Whether a little more or less would have made another tier.
    pub fn is_close(&self, score: f64, margin: f64) -> bool {
        let near = |threshold: f64| (score - threshold).abs() <= margin;
        near(self.fast_to) || near(self.heavy_from)
    }
}

/// What kind of work is wanted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Hello and thanks.
    Greeting,
    /// Something to know; nothing is asked.
    Fyi,
    /// A fact, or whatever has no mark of the others.
    SimpleQuestion,
    /// Make it shorter.
    Summarize,
    /// Say it in other words, in another language, or without mistakes.
    Rewrite,
    /// A program.
    Code,
    /// Weigh, compare, prove, compute.
    Analysis,
    /// A piece of writing.
    LongForm,
    /// Hard, and none of the others.
    Complex,
}

impl Category {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Greeting,
        Self::Fyi,
        Self::SimpleQuestion,
        Self::Summarize,
        Self::Rewrite,
        Self::Code,
        Self::Analysis,
        Self::LongForm,
        Self::Complex,
    ];

    /// The kind of work that a word names.
    pub(super) const fn named_by(hint: Hint) -> Option<Self> {
        match hint {
            Hint::Reason | Hint::Maths => Some(Self::Analysis),
            Hint::Code => Some(Self::Code),
            Hint::Compose => Some(Self::LongForm),
            Hint::Summarize => Some(Self::Summarize),
            Hint::Rewrite => Some(Self::Rewrite),
            Hint::Explain
            | Hint::Thorough
            | Hint::Brief
            | Hint::Lookup
            | Hint::Notice
            | Hint::Greeting
            | Hint::Nothing => None,
        }
    }

    /// Its word in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Fyi => "fyi",
            Self::SimpleQuestion => "simple_question",
            Self::Summarize => "summarize",
            Self::Rewrite => "rewrite",
            Self::Code => "code",
            Self::Analysis => "analysis",
            Self::LongForm => "long_form",
            Self::Complex => "complex",
        }
    }
}

/// One rule that fired.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// Its name.
    pub rule: &'static str,
    /// How far it moved the score.
    #[serde(serialize_with = "in_thousandths")]
    pub weight: f64,
}

/// The guess.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The tier to use.
    #[serde(rename = "class")]
    pub tier: Tier,
    /// What kind of work it is.
    pub category: Category,
    /// 0 (trivial) to 1 (hard).
    #[serde(serialize_with = "in_thousandths")]
    pub score: f64,
    /// The rules that fired, the strongest first.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// The names of its reasons, for `_routing.reason`.
    pub fn why(&self) -> String {
        let names: Vec<&str> = self.reasons.iter().map(|reason| reason.rule).collect();
        if names.is_empty() {
            "auto".to_owned()
        } else {
            names.join(",")
        }
    }
}

/// Nobody reads the fourth digit, and binary fractions look odd.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn in_thousandths<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((number * 1_000.0).round() / 1_000.0)
}

/// Weighs what was found.
pub fn classify(features: &Features, thresholds: Thresholds) -> Verdict {
    if features.is_greeting() {
        return plain(Category::Greeting, "greeting");
    }
    if features.is_notice() {
        return plain(Category::Fyi, "fyi");
    }
    let mut reasons = Vec::with_capacity(8);
    let mut score = thresholds.weights.of(Rule::Base);
    for (rule, name, _) in Rule::ALL {
        let weight = thresholds.weights.of(rule) * strength(rule, features);
        if weight != 0.0 && rule != Rule::Base {
            score += weight;
            reasons.push(Reason { rule: name, weight });
        }
    }
    let score = score.clamp(0.0, 1.0);
    reasons.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
    if reasons.is_empty() {
        reasons.push(Reason {
            rule: "plain",
            weight: 0.0,
        });
    }
    let tier = thresholds.tier_of(score);
    Verdict {
        tier,
        category: category(features, tier),
        score,
        reasons,
    }
}

fn plain(category: Category, rule: &'static str) -> Verdict {
    Verdict {
        tier: Tier::Fast,
        category,
        score: 0.0,
        reasons: vec![Reason { rule, weight: 0.0 }],
    }
}

/// How strongly a rule fires: 0 not at all, 1 for a first sign, more for further ones.
fn strength(rule: Rule, f: &Features) -> f64 {
    match rule {
        Rule::Base => 1.0,
        Rule::Length => match f.bytes {
            0..=90 => 0.0,
            91..=240 => 1.0,
            241..=800 => 2.0,
            801..=3_000 => 3.0,
            3_001..=10_000 => 4.0,
            _ => 5.0,
        },
        Rule::Reasoning => steps(f.reason, 0.4, 1.8),
        Rule::Explanation => steps(f.explain, 0.3, 1.5),
        Rule::Maths => steps(f.maths, 0.3, 1.9),
        Rule::Code => steps(f.code, 0.25, 2.5),
        Rule::CodeBlock => f64::from(u8::from(f.fences > 0)),
        Rule::Composition => steps(f.compose, 0.3, 1.5),
        Rule::Summary => steps(f.summarize, 0.3, 1.5),
        Rule::Thorough => steps(f.thorough, 0.3, 1.4),
        Rule::Brief => steps(f.brief, 0.25, 1.4),
        Rule::Lookup => steps(f.lookup, 0.2, 1.4),
        // A few words to translate are a lookup, a paragraph is work.
        Rule::Rewrite if f.rewrite == 0 => 0.0,
        Rule::Rewrite if f.bytes <= 100 => -1.0,
        Rule::Rewrite => 1.0,
        Rule::Quantities if f.fences > 0 || f.questions == 0 => 0.0,
        Rule::Quantities => steps(f.numbers.saturating_sub(1), 0.2, 1.4),
        Rule::Demands => steps((f.items + f.questions).saturating_sub(2), 0.5, 3.0),
        Rule::Depth => match f.user_turns {
            0..=2 => 0.0,
            3..=7 => 1.0,
            _ => 2.0,
        },
        Rule::Context => match f.context_bytes {
            0..=8_000 => 0.0,
            8_001..=40_000 => 1.0,
            _ => 1.8,
        },
        Rule::Tools => steps(f.tools, 0.15, 1.7),
        Rule::Schema => f64::from(u8::from(f.schema)),
        Rule::Media => steps(f.media, 0.25, 1.75),
        Rule::EffortHigh => f64::from(u8::from(f.effort_high)),
        Rule::AnswerShort => f64::from(u8::from(f.max_tokens.is_some_and(|most| most <= 16))),
        Rule::AnswerLong => f64::from(u8::from(f.max_tokens.is_some_and(|most| most >= 4_096))),
    }
}

/// 1 for the first find, `more` for each further one, `most` at most.
fn steps(found: usize, more: f64, most: f64) -> f64 {
    let Some(further) = found.checked_sub(1) else {
        return 0.0;
    };
    let further = u32::try_from(further).unwrap_or(u32::MAX);
    more.mul_add(f64::from(further), 1.0).min(most)
}

/// Signs that being named first is worth.
const FIRST: usize = 7;

/// The kind with the most signs; of two alike, the more particular one.
fn category(f: &Features, tier: Tier) -> Category {
    let quantities = if f.questions > 0 {
        f.numbers.saturating_sub(1)
    } else {
        0
    };
    // One verb that names the work outweighs several nouns of its matter.
    let rivals = [
        (Category::Summarize, 6 * f.summarize),
        (Category::Rewrite, 6 * f.rewrite),
        (Category::Code, 3 * f.code + 3 * f.fences),
        (Category::Analysis, 3 * f.reason + 2 * f.maths + quantities),
        (Category::LongForm, 3 * f.compose),
    ];
    // What is named first is what is wanted; the rest is about how.
    let weigh = |(category, signs)| match f.first {
        Some(first) if first == category => (category, signs + FIRST),
        Some(_) | None => (category, signs),
    };
    let mut best = (Category::SimpleQuestion, 0);
    for rival in rivals.map(weigh) {
        if rival.1 > best.1 {
            best = rival;
        }
    }
    if best.0 == Category::SimpleQuestion && tier == Tier::Heavy {
        return Category::Complex;
    }
    best.0
}
