//! Guesses how strong a model a request needs, from a table of rules over one pass of the text. Sees the request only while it
//! looks; features and verdict hold numbers and rule names, never text.

mod lexicon;
mod request;
mod scan;
mod weigh;
mod words;

use config::wire::valid::{ValidChat, ValidCompletion};
use serde::Serialize;

pub use weigh::{Category, Reason, Thresholds, Verdict, classify};

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
    /// Words of lookups.
    pub lookup: usize,
    /// Words for other words: translate, rephrase, correct.
    pub rewrite: usize,
    /// Words for making a text shorter.
    pub summarize: usize,
    /// The kind of work that is named first.
    pub first: Option<Category>,
    /// Numbers.
    pub numbers: usize,
    /// Words that announce something to know.
    pub notice: usize,
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
        self.greeting > 0 && !self.asks() && self.words <= 8
    }

    /// Something is told, and nothing asked.
    fn is_notice(&self) -> bool {
        self.notice > 0 && !self.asks() && self.questions == 0 && self.words <= 80
    }

    /// Whether there is any sign of work to do.
    const fn asks(&self) -> bool {
        let signs = self.reason
            + self.maths
            + self.code
            + self.lookup
            + self.explain
            + self.compose
            + self.rewrite
            + self.summarize
            + self.thorough
            + self.media;
        signs > 0
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

#[cfg(test)]
mod tests;
