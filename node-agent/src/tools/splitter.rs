//! Splits an answer, as it comes, into text, thoughts and calls of tools. The parts are the same however the text was cut into
//! pieces, but for where text and arguments are cut. Pure; holds back only what may still turn out to be a tag, and calls that
//! must be checked whole.

mod call;
mod gemma;
mod json;
mod xml;

use std::sync::Arc;

use super::format::{ThinkTags, ToolFormat};
use super::toolbox::Toolbox;
use json::Json;

/// What a call in XML may begin with when the model leaves out the tag around it.
const BARE_XML: &str = "<function=";

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SplitRules {
    /// Calls of tools, if any can come.
    pub calls: Option<ToolFormat>,
    /// Thoughts, if the model thinks aloud.
    pub thoughts: Option<ThinkTags>,
    /// What the prompt ended with.
    pub start: Start,
    /// The functions that may be called.
    pub toolbox: Arc<Toolbox>,
    /// Calls leave only when they are complete and fit their function, because nothing else made them fit.
    pub hold: bool,
}

/// What the prompt ended with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Start {
    /// The assistant's turn.
    #[default]
    Turn,
    /// The tag that opens a thought.
    Thought,
    /// The tag that opens a call.
    Call,
}

/// A part of an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Part {
    /// What the model thinks.
    Thought(String),
    /// What it says.
    Text(String),
    /// It calls a function.
    Call {
        /// Which call, from 0.
        index: u32,
        /// The function.
        name: String,
    },
    /// More of the arguments of a call.
    Arguments {
        /// Which call.
        index: u32,
        /// JSON text.
        text: String,
    },
}

/// Splits one answer.
#[derive(Debug)]
pub struct Splitter {
    rules: SplitRules,
    stage: Stage,
    /// Received, not yet given out.
    held: String,
    calls: u32,
    /// The text of the present call so far, should it turn out to be none.
    raw: String,
    /// The present call, while it is held back.
    pending: Vec<Part>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing seen yet that would tell.
    Begin,
    Thought {
        /// Something was given out of it.
        begun: bool,
    },
    /// After a thought or a call: white space is dropped if nothing follows it.
    Gap,
    Text,
    /// Within a call, before its arguments.
    Head,
    /// A call that is read when it is complete, and how far it has been looked through.
    Whole {
        json: Json,
        seen: usize,
    },
    Arguments(Json),
    Gemma(gemma::Translator),
    Xml(xml::Reader),
    /// After the arguments, before the tag or bracket that closes the call.
    Tail(Json),
    /// After a call, where the next may follow without a tag of its own.
    Between,
}

impl Splitter {
    /// A splitter for a new answer.
    pub fn new(rules: SplitRules) -> Self {
        let looks = rules.thoughts.is_some() || rules.calls == Some(ToolFormat::Llama3);
        let stage = match rules.start {
            Start::Turn if looks => Stage::Begin,
            Start::Turn => Stage::Text,
            Start::Thought => Stage::Thought { begun: false },
            Start::Call => Stage::Head,
        };
        let mut splitter = Self {
            rules,
            stage: Stage::Text,
            held: String::new(),
            calls: 0,
            raw: String::new(),
            pending: Vec::new(),
        };
        if matches!(stage, Stage::Head) {
            splitter.open_call(splitter.format().open());
        } else {
            splitter.stage = stage;
        }
        splitter
    }

    /// How many calls began so far.
    pub const fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether the text now belongs to a thought.
    pub const fn is_thinking(&self) -> bool {
        matches!(self.stage, Stage::Thought { .. })
    }

    /// Takes the next piece and appends the parts that it makes certain.
    pub fn push(&mut self, piece: &str, parts: &mut Vec<Part>) {
        self.held.push_str(piece);
        while self.step(parts) {}
    }

    /// The answer is complete: what was held back comes out.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.stage, Stage::Gap) {
            Stage::Begin | Stage::Text => give(parts, Part::Text, held),
            Stage::Thought { .. } => give(parts, Part::Thought, held.trim_end().to_owned()),
            Stage::Gap | Stage::Between if held.trim().is_empty() => {}
            Stage::Gap | Stage::Between => give(parts, Part::Text, held),
            Stage::Head | Stage::Whole { .. } => {
                self.held = held;
                self.whole_call(self.held.len(), "", parts);
            }
            // What is out is out; what was held back did not become a call.
            Stage::Arguments(_) | Stage::Gemma(_) | Stage::Xml(_) if self.rules.hold => {
                self.calls = self
                    .calls
                    .saturating_sub(u32::from(!self.pending.is_empty()));
                self.pending.clear();
                give(parts, Part::Text, format!("{}{held}", self.raw));
            }
            Stage::Arguments(_) | Stage::Gemma(_) | Stage::Xml(_) | Stage::Tail(_) => {}
        }
    }

    fn format(&self) -> ToolFormat {
        self.rules.calls.unwrap_or_default()
    }

    /// Does one change of stage; false when more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match &mut self.stage {
            Stage::Begin => self.begin(),
            Stage::Thought { begun } => {
                let begun = *begun;
                self.thought(begun, parts)
            }
            Stage::Gap => self.gap(),
            Stage::Text => self.text(parts),
            Stage::Head => self.head(parts),
            Stage::Whole { json, seen } => {
                let (json, seen) = (*json, *seen);
                self.whole(json, seen, parts)
            }
            Stage::Arguments(json) => {
                let json = *json;
                self.arguments(json, parts)
            }
            Stage::Gemma(_) => self.gemma(parts),
            Stage::Xml(_) => self.xml(parts),
            Stage::Tail(json) => {
                let json = *json;
                self.tail(json)
            }
            Stage::Between => self.between(),
        }
    }

    fn begin(&mut self) -> bool {
        let seen = self.held.trim_start();
        if let Some(tags) = self.rules.thoughts {
            if let Some(thought) = seen.strip_prefix(tags.open) {
                self.held = thought.to_owned();
                self.stage = Stage::Thought { begun: false };
                return true;
            }
            if tags.open.starts_with(seen) {
                return false;
            }
        }
        self.stage = if seen.is_empty() {
            return false;
        } else if self.rules.calls == Some(ToolFormat::Llama3) && seen.starts_with('{') {
            self.open_call("");
            return true;
        } else {
            Stage::Text
        };
        true
    }

    fn thought(&mut self, begun: bool, parts: &mut Vec<Part>) -> bool {
        let close = self
            .rules
            .thoughts
            .map_or(ThinkTags::THINK.close, |tags| tags.close);
        if !begun {
            // A line break after the tag belongs to the tag.
            self.held = self.held.trim_start().to_owned();
            self.stage = Stage::Thought {
                begun: !self.held.is_empty(),
            };
        }
        if let Some((thought, after)) = self.held.split_once(close) {
            let thought = thought.trim_end().to_owned();
            let after = after.to_owned();
            give(parts, Part::Thought, thought);
            self.held = after;
            self.stage = Stage::Gap;
            return true;
        }
        let ready = settled(&self.held, &[close]);
        give(parts, Part::Thought, take(&mut self.held, ready));
        false
    }

    fn gap(&mut self) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        if self.calls == 0 {
            self.held = text.to_owned();
            // A thought is followed by what an answer may begin with.
            if self.rules.calls == Some(ToolFormat::Llama3) && self.held.starts_with('{') {
                self.open_call("");
                return true;
            }
        }
        self.stage = Stage::Text;
        true
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        let markers = self.markers();
        let found = markers
            .iter()
            .filter_map(|marker| Some((self.held.find(marker)?, *marker)))
            .min();
        if let Some((at, marker)) = found {
            let text = take(&mut self.held, at);
            give(parts, Part::Text, text.trim_end().to_owned());
            if self.rules.thoughts.is_some_and(|tags| tags.open == marker) {
                drop(take(&mut self.held, marker.len()));
                self.stage = Stage::Thought { begun: false };
            } else if marker == BARE_XML {
                self.open_call("");
            } else {
                drop(take(&mut self.held, marker.len()));
                self.open_call(marker);
            }
            return true;
        }
        let ready = if markers.is_empty() {
            self.held.len()
        } else {
            settled(&self.held, &markers)
        };
        give(parts, Part::Text, take(&mut self.held, ready));
        false
    }

    /// What ends ordinary text.
    fn markers(&self) -> Vec<&'static str> {
        let mut markers = Vec::new();
        if let Some(format) = self.rules.calls {
            markers.push(format.open());
            if format == ToolFormat::QwenXml {
                markers.push(BARE_XML);
            }
        }
        // A tag that is a control token is never meant as text.
        if let Some(tags) = self.rules.thoughts
            && tags.special
        {
            markers.push(tags.open);
        }
        markers
    }
}

fn give(parts: &mut Vec<Part>, part: impl FnOnce(String) -> Part, text: String) {
    if !text.is_empty() {
        parts.push(part(text));
    }
}

/// Cuts the first `ready` bytes off.
fn take(held: &mut String, ready: usize) -> String {
    let rest = held.split_off(ready);
    std::mem::replace(held, rest)
}

/// How many bytes cannot belong to one of the tags or to the white space before it.
fn settled(text: &str, tags: &[&str]) -> usize {
    let partial = tags.iter().map(|tag| partial(text, tag)).max();
    // Tags are ASCII, so their beginnings start at a character's boundary.
    text.get(..text.len() - partial.unwrap_or(0))
        .map_or(0, |before| before.trim_end().len())
}

/// The longest end of `text` that `tag` begins with.
fn partial(text: &str, tag: &str) -> usize {
    let longest = tag.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|length| {
            text.as_bytes()
                .ends_with(tag.as_bytes().get(..*length).unwrap_or_default())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
