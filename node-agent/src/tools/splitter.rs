//! Splits an answer, as it comes, into text, thoughts and calls of tools. The parts are the same however the text was cut into
//! pieces, but for where text and arguments are cut. Pure; holds back only what may still turn out to be a tag, and calls that
//! must be checked whole.

mod gemma;
mod json;
mod xml;

use std::sync::Arc;

use super::format::{ThinkTags, ToolFormat};
use super::toolbox::Toolbox;
use json::{Head, Json};

/// A call whose name is not known after this many bytes is read as a whole.
const HEAD_BYTES_MAX: usize = 512;
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

    fn open_call(&mut self, marker: &str) {
        marker.clone_into(&mut self.raw);
        self.pending.clear();
        self.stage = Stage::Head;
    }

    fn head(&mut self, parts: &mut Vec<Part>) -> bool {
        let format = self.format();
        let head = match format {
            ToolFormat::Hermes | ToolFormat::Llama3 => json::head(&self.held),
            ToolFormat::Mistral => json::head_in_list(&self.held),
            ToolFormat::MistralArgs => json::head_with_args(&self.held),
            ToolFormat::Gemma4 => gemma::head(&self.held),
            ToolFormat::QwenXml => xml::head(&self.held),
        };
        match head {
            Head::Open if self.held.len() <= HEAD_BYTES_MAX => false,
            Head::Known { name, at } if at <= HEAD_BYTES_MAX && self.rules.toolbox.knows(&name) => {
                self.eat(at);
                self.begin_call(name.clone(), parts);
                self.stage = match format {
                    ToolFormat::Gemma4 => Stage::Gemma(gemma::Translator::default()),
                    ToolFormat::QwenXml => Stage::Xml(xml::Reader::new(name)),
                    ToolFormat::Hermes
                    | ToolFormat::Llama3
                    | ToolFormat::Mistral
                    | ToolFormat::MistralArgs => Stage::Arguments(Json::default()),
                };
                true
            }
            Head::Open | Head::Known { .. } | Head::Odd => {
                self.stage = Stage::Whole {
                    json: Json::default(),
                    seen: 0,
                };
                true
            }
        }
    }

    fn arguments(&mut self, mut json: Json, parts: &mut Vec<Part>) -> bool {
        let end = json.end_in(&self.held);
        let text = self.eat(end.unwrap_or(self.held.len()));
        self.more_arguments(text, parts);
        if end.is_none() {
            self.stage = Stage::Arguments(json);
            return false;
        }
        let within = match self.format() {
            ToolFormat::MistralArgs => Stage::Gap,
            ToolFormat::Hermes
            | ToolFormat::Llama3
            | ToolFormat::Mistral
            | ToolFormat::Gemma4
            | ToolFormat::QwenXml => Stage::Tail(Json::within()),
        };
        self.end_call(within, parts);
        true
    }

    fn gemma(&mut self, parts: &mut Vec<Part>) -> bool {
        let Stage::Gemma(translator) = &mut self.stage else {
            return false;
        };
        let mut json = String::new();
        let used = translator.translate(&self.held, &mut json);
        let complete = translator.is_complete();
        self.eat(used);
        self.more_arguments(json, parts);
        if complete {
            self.end_call(Stage::Tail(Json::default()), parts);
        }
        complete
    }

    fn xml(&mut self, parts: &mut Vec<Part>) -> bool {
        let Stage::Xml(reader) = &mut self.stage else {
            return false;
        };
        let mut json = String::new();
        let used = reader.read(&self.held, &self.rules.toolbox, &mut json);
        let complete = reader.is_complete();
        self.eat(used);
        self.more_arguments(json, parts);
        if complete {
            self.end_call(Stage::Tail(Json::default()), parts);
        }
        complete
    }

    fn tail(&mut self, mut json: Json) -> bool {
        let format = self.format();
        match format {
            ToolFormat::Hermes | ToolFormat::Gemma4 => {
                let Some((_closing, after)) = self.held.split_once(format.close()) else {
                    return false;
                };
                self.held = after.to_owned();
                self.stage = Stage::Gap;
                true
            }
            ToolFormat::QwenXml => self.xml_tail(),
            ToolFormat::Llama3 | ToolFormat::Mistral | ToolFormat::MistralArgs => {
                let end = json.end_in(&self.held);
                let length = end.unwrap_or(self.held.len());
                drop(take(&mut self.held, length));
                self.stage = if end.is_some() {
                    Stage::Between
                } else {
                    Stage::Tail(json)
                };
                end.is_some()
            }
        }
    }

    /// The tag around a function may be missing.
    fn xml_tail(&mut self) -> bool {
        let close = ToolFormat::QwenXml.close();
        let rest = self.held.trim_start();
        if let Some(after) = rest.strip_prefix(close) {
            self.held = after.to_owned();
        } else if close.starts_with(rest) {
            return false;
        }
        self.stage = Stage::Gap;
        true
    }

    /// A list of calls goes on with a comma (Llama: a semicolon) and ends with a bracket.
    fn between(&mut self) -> bool {
        let rest = self.held.trim_start();
        let Some(letter) = rest.chars().next() else {
            return false;
        };
        let list = self.format() == ToolFormat::Mistral;
        let after = rest.get(letter.len_utf8()..).unwrap_or_default();
        match letter {
            ';' | ',' => {
                let next = after.trim_start();
                if next.is_empty() {
                    return false;
                }
                if next.starts_with('{') {
                    self.held = next.to_owned();
                    self.open_call("");
                } else {
                    self.stage = Stage::Gap;
                }
            }
            ']' if list => {
                self.held = after.to_owned();
                self.stage = Stage::Gap;
            }
            '{' if !list => {
                self.held = rest.to_owned();
                self.open_call("");
            }
            _ => self.stage = Stage::Gap,
        }
        true
    }

    /// Waits for the end of a call that does not begin as calls do.
    fn whole(&mut self, mut json: Json, seen: usize, parts: &mut Vec<Part>) -> bool {
        let close = match self.format() {
            ToolFormat::QwenXml if self.raw.is_empty() => "</function>",
            format => format.close(),
        };
        if !close.is_empty() {
            let Some(at) = self.held.find(close) else {
                return false;
            };
            self.whole_call(at, close, parts);
            return true;
        }
        let unseen = self.held.get(seen..).unwrap_or_default();
        let begins = self.held.trim_start().chars().next();
        if begins.is_some_and(|letter| !matches!(letter, '{' | '[')) {
            self.abandon(0, parts);
            return true;
        }
        match json.end_in(unseen) {
            Some(end) => {
                self.whole_call(seen + end, "", parts);
                true
            }
            None => {
                self.stage = Stage::Whole {
                    json,
                    seen: self.held.len(),
                };
                false
            }
        }
    }

    /// Gives out a complete call of `length` bytes, or the text as it was if it is none.
    fn whole_call(&mut self, length: usize, close: &str, parts: &mut Vec<Part>) {
        let body = self.held.get(..length).unwrap_or_default().trim();
        let calls = match self.format() {
            ToolFormat::Hermes | ToolFormat::Llama3 | ToolFormat::Mistral => json::whole(body),
            ToolFormat::MistralArgs | ToolFormat::Gemma4 | ToolFormat::QwenXml => None,
        };
        let fits = |calls: &Vec<(String, String)>| {
            let toolbox = &self.rules.toolbox;
            calls
                .iter()
                .all(|(name, arguments)| toolbox.accepts(name, arguments))
        };
        let Some(calls) = calls.filter(fits) else {
            self.abandon(length + close.len(), parts);
            return;
        };
        for (name, text) in calls {
            let index = self.calls;
            self.calls += 1;
            parts.push(Part::Call { index, name });
            parts.push(Part::Arguments { index, text });
        }
        drop(take(&mut self.held, length + close.len()));
        self.stage = Stage::Gap;
    }

    /// It was no call: the text of it comes out as text.
    fn abandon(&mut self, length: usize, parts: &mut Vec<Part>) {
        let mut text = std::mem::take(&mut self.raw);
        let length = length.min(self.held.len());
        text.push_str(&take(&mut self.held, length));
        give(parts, Part::Text, text);
        self.stage = Stage::Text;
    }

    fn begin_call(&mut self, name: String, parts: &mut Vec<Part>) {
        let index = self.calls;
        self.calls += 1;
        let part = Part::Call { index, name };
        if self.rules.hold {
            self.pending.push(part);
        } else {
            parts.push(part);
        }
    }

    fn more_arguments(&mut self, text: String, parts: &mut Vec<Part>) {
        let index = self.calls.saturating_sub(1);
        let out = if self.rules.hold {
            &mut self.pending
        } else {
            parts
        };
        give(out, |text| Part::Arguments { index, text }, text);
    }

    /// The arguments are complete.
    fn end_call(&mut self, next: Stage, parts: &mut Vec<Part>) {
        if !self.rules.hold {
            self.stage = next;
            return;
        }
        let mut called = String::new();
        let mut arguments = String::new();
        for part in &self.pending {
            match part {
                Part::Call { name, .. } => called.clone_from(name),
                Part::Arguments { text, .. } => arguments.push_str(text),
                Part::Thought(_) | Part::Text(_) => {}
            }
        }
        if self.rules.toolbox.accepts(&called, &arguments) {
            parts.append(&mut self.pending);
            self.stage = next;
        } else {
            self.calls = self.calls.saturating_sub(1);
            self.abandon(0, parts);
        }
    }

    /// Takes bytes of a call.
    fn eat(&mut self, length: usize) -> String {
        let text = take(&mut self.held, length);
        self.raw.push_str(&text);
        text
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
