//! Guesses how strong a model a request needs, from a table of rules over one pass of the text. Sees the request only while it
//! looks; features and verdict hold numbers and rule names, never text.

mod request;
mod scan;
mod words;

use config::settings::proxy::Routing;
use config::tier::Tier;
use config::wire::valid::{ValidChat, ValidCompletion};
use serde::Serialize;

/// Who said a piece of text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaker {
    /// Instructions of the application.
    System,
    /// The person.
    User,
    /// The model, earlier.
    Assistant,
    /// A tool's result.
    Tool,
}

/// One message, or one part of it.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Who.
    pub speaker: Speaker,
    /// What; the parts of one message may come as several turns.
    pub text: &'a str,
}

/// What the classifier looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// The conversation.
    pub turns: &'a [Turn<'a>],
    /// Tools offered.
    pub tools: usize,
    /// The answer must follow a schema or be JSON.
    pub schema: bool,
    /// Images and sounds.
    pub media: usize,
    /// `reasoning_effort`: high.
    pub effort_high: bool,
    /// `max_tokens`, if set.
    pub max_tokens: Option<u32>,
}

/// What was found in a request; numbers only.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Features {
    /// Bytes of what the person said last.
    pub bytes: usize,
    /// Bytes of the whole conversation.
    pub context_bytes: usize,
    /// Times the person spoke.
    pub user_turns: usize,
    /// Words of what the person said last; a CJK character counts as one.
    pub words: usize,
    /// Words that ask for several steps of thought.
    pub reason: usize,
    /// Words that ask for an explanation.
    pub explain: usize,
    /// Words and signs of mathematics.
    pub maths: usize,
    /// Words and signs of programming.
    pub code: usize,
    /// Code fences.
    pub fences: usize,
    /// Words for long pieces of writing.
    pub compose: usize,
    /// Wishes for care.
    pub thorough: usize,
    /// Wishes for little.
    pub brief: usize,
    /// Words of lookups and simple transformations.
    pub lookup: usize,
    /// Greetings and thanks.
    pub greeting: usize,
    /// Question marks.
    pub questions: usize,
    /// Lines that start like an item of a list.
    pub items: usize,
    /// Tools offered.
    pub tools: usize,
    /// The answer must follow a schema or be JSON.
    pub schema: bool,
    /// Images and sounds.
    pub media: usize,
    /// `reasoning_effort`: high.
    pub effort_high: bool,
    /// `max_tokens`, if set.
    pub max_tokens: Option<u32>,
}

impl Features {
    /// Looks at a chat request.
    pub fn of(chat: &ValidChat) -> Self {
        request::of_chat(chat)
    }

    /// Looks at a text completion.
    pub fn of_completion(completion: &ValidCompletion) -> Self {
        request::of_completion(completion)
    }

    /// Looks at a request once. The cost is bounded: of a long last message only its head and its tail are read.
    pub fn of_ask(ask: &Ask<'_>) -> Self {
        let mut features = Self {
            context_bytes: ask.turns.iter().map(|turn| turn.text.len()).sum(),
            user_turns: user_turns(ask.turns),
            tools: ask.tools,
            schema: ask.schema,
            media: ask.media,
            effort_high: ask.effort_high,
            max_tokens: ask.max_tokens,
            ..Self::default()
        };
        let mut budget = scan::BYTES_MAX;
        for turn in last_words(ask.turns) {
            features.bytes += turn.text.len();
            budget = scan::scan(turn.text, budget, &mut features);
        }
        features
    }

    /// Nothing but hello.
    fn is_greeting(&self) -> bool {
        let other =
            self.reason + self.maths + self.code + self.lookup + self.explain + self.compose;
        self.greeting > 0 && other == 0 && self.words <= 6 && self.media == 0
    }
}

/// What the person said last: their last turn with the turns right before it, up to the model's or a tool's. An agent's request
/// often ends with a tool's result, and a prefill with the model's own words; what the person wants stands before that.
fn last_words<'a>(turns: &'a [Turn<'a>]) -> impl Iterator<Item = &'a Turn<'a>> {
    let end = turns
        .iter()
        .rposition(|turn| turn.speaker == Speaker::User)
        .map_or(0, |last| last + 1);
    let said = turns.get(..end).unwrap_or_default();
    let start = said
        .iter()
        .rposition(|turn| matches!(turn.speaker, Speaker::Assistant | Speaker::Tool))
        .map_or(0, |other| other + 1);
    said.iter()
        .skip(start)
        .filter(|turn| turn.speaker == Speaker::User)
}

/// Runs of user turns, because the parts of one message come as several.
fn user_turns(turns: &[Turn<'_>]) -> usize {
    let mut count = 0;
    let mut before = None;
    for turn in turns {
        if turn.speaker == Speaker::User && before != Some(Speaker::User) {
            count += 1;
        }
        before = Some(turn.speaker);
    }
    count
}

/// The guess.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The tier to use.
    pub tier: Tier,
    /// 0 (trivial) to 1 (hard).
    pub score: f64,
    /// The rules that fired, the strongest first.
    pub reasons: Vec<&'static str>,
}

/// Where the score turns into a tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Up to here it is fast.
    pub fast_to: f64,
    /// From here it is heavy.
    pub heavy_from: f64,
}

impl From<&Routing> for Thresholds {
    fn from(routing: &Routing) -> Self {
        Self {
            fast_to: routing.fast_to,
            heavy_from: routing.heavy_from,
        }
    }
}

/// One rule: its name and how far it moves the score; 0 = does not fire.
struct Rule {
    name: &'static str,
    weigh: fn(&Features) -> f64,
}

/// Where a request without any mark starts: a short sentence that says nothing is the fast tier's.
const BASE: f64 = 0.24;

/// The rules. Weights were set by hand against the corpus in the tests: two clear marks of difficulty make a heavy request, one
/// makes a primary one.
const RULES: &[Rule] = &[
    Rule {
        name: "length",
        weigh: |f| match f.bytes {
            0..=90 => 0.0,
            91..=240 => 0.06,
            241..=800 => 0.12,
            801..=3_000 => 0.18,
            3_001..=10_000 => 0.24,
            _ => 0.32,
        },
    },
    Rule {
        name: "reasoning",
        weigh: |f| steps(f.reason, 0.26, 0.10, 0.46),
    },
    Rule {
        name: "explanation",
        weigh: |f| steps(f.explain, 0.12, 0.04, 0.18),
    },
    Rule {
        name: "maths",
        weigh: |f| steps(f.maths, 0.16, 0.05, 0.30),
    },
    Rule {
        name: "code",
        weigh: |f| steps(f.code, 0.12, 0.04, 0.30),
    },
    Rule {
        name: "code_block",
        weigh: |f| if f.fences > 0 { 0.12 } else { 0.0 },
    },
    Rule {
        name: "composition",
        weigh: |f| steps(f.compose, 0.12, 0.04, 0.18),
    },
    Rule {
        name: "thorough",
        weigh: |f| steps(f.thorough, 0.22, 0.06, 0.30),
    },
    Rule {
        name: "brief",
        weigh: |f| -steps(f.brief, 0.16, 0.04, 0.22),
    },
    Rule {
        name: "lookup",
        weigh: |f| -steps(f.lookup, 0.10, 0.02, 0.14),
    },
    Rule {
        name: "list_of_demands",
        weigh: |f| steps((f.items + f.questions).saturating_sub(2), 0.06, 0.03, 0.18),
    },
    Rule {
        name: "depth",
        weigh: |f| match f.user_turns {
            0..=2 => 0.0,
            3..=7 => 0.06,
            _ => 0.12,
        },
    },
    Rule {
        name: "context",
        weigh: |f| match f.context_bytes {
            0..=8_000 => 0.0,
            8_001..=40_000 => 0.10,
            _ => 0.18,
        },
    },
    Rule {
        name: "tools",
        weigh: |f| steps(f.tools, 0.14, 0.02, 0.24),
    },
    Rule {
        name: "schema",
        weigh: |f| if f.schema { 0.10 } else { 0.0 },
    },
    Rule {
        name: "media",
        weigh: |f| steps(f.media, 0.16, 0.04, 0.28),
    },
    Rule {
        name: "effort_high",
        weigh: |f| if f.effort_high { 0.40 } else { 0.0 },
    },
    Rule {
        name: "answer_length",
        weigh: |f| match f.max_tokens {
            Some(0..=16) => -0.10,
            Some(4_096..) => 0.08,
            Some(17..=4_095) | None => 0.0,
        },
    },
];

/// `first` for the first find, `more` for each further one, `most` at most.
fn steps(found: usize, first: f64, more: f64, most: f64) -> f64 {
    let Some(further) = found.checked_sub(1) else {
        return 0.0;
    };
    let further = u32::try_from(further).unwrap_or(u32::MAX);
    (first + more * f64::from(further)).min(most)
}

/// Weighs what was found.
pub fn classify(features: &Features, thresholds: Thresholds) -> Verdict {
    if features.is_greeting() {
        return Verdict {
            tier: Tier::Fast,
            score: 0.0,
            reasons: vec!["greeting"],
        };
    }
    let mut fired: Vec<(&'static str, f64)> = RULES
        .iter()
        .map(|rule| (rule.name, (rule.weigh)(features)))
        .filter(|(_, weight)| *weight != 0.0)
        .collect();
    let sum: f64 = fired.iter().map(|(_, weight)| weight).sum();
    let score = (BASE + sum).clamp(0.0, 1.0);
    fired.sort_by(|(_, a), (_, b)| b.abs().total_cmp(&a.abs()));
    let tier = if score >= thresholds.heavy_from {
        Tier::Heavy
    } else if score > thresholds.fast_to {
        Tier::Primary
    } else {
        Tier::Fast
    };
    let mut reasons: Vec<&'static str> = fired.into_iter().map(|(name, _)| name).collect();
    if reasons.is_empty() {
        reasons.push("plain");
    }
    Verdict {
        tier,
        score,
        reasons,
    }
}

#[cfg(test)]
mod tests;
