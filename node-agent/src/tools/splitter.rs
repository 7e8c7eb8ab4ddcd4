//! Splits an answer, as it comes, into text, thoughts and calls of tools. The parts are the same however the text was cut into
//! pieces, but for where text and arguments are cut. Pure; holds back only what may still turn out to be a tag.

use serde_json::Value;

use super::{CLOSE, OPEN};

const THINK_OPEN: &str = "<think>";
const THINK_CLOSE: &str = "</think>";
/// A call whose name is not known after this many bytes is read as a whole.
const HEAD_BYTES_MAX: usize = 512;

/// What to look for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SplitRules {
    /// Calls of tools.
    pub tools: bool,
    /// Thoughts between `<think>` and `</think>` at the start.
    pub thoughts: bool,
    /// What the prompt ended with.
    pub start: Start,
}

/// What the prompt ended with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Start {
    /// The assistant's turn.
    #[default]
    Turn,
    /// `<think>`.
    Thought,
    /// `<tool_call>`.
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
        /// JSON text as the model wrote it.
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
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    /// A call that is read when it is complete.
    Whole,
    Arguments(Json),
    /// After the arguments.
    Tail,
}

/// Where in a JSON value the text stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Json {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Json {
    /// Takes a letter; true if it ends the value.
    const fn take(&mut self, letter: char) -> bool {
        if self.in_string {
            match letter {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match letter {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

impl Splitter {
    /// A splitter for a new answer.
    pub const fn new(rules: SplitRules) -> Self {
        let stage = match rules.start {
            Start::Turn if rules.thoughts => Stage::Begin,
            Start::Turn => Stage::Text,
            Start::Thought => Stage::Thought { begun: false },
            Start::Call => Stage::Head,
        };
        Self {
            rules,
            stage,
            held: String::new(),
            calls: 0,
        }
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
        match self.stage {
            Stage::Begin | Stage::Text => give(parts, Part::Text, held),
            Stage::Thought { .. } => give(parts, Part::Thought, held.trim_end().to_owned()),
            Stage::Gap if held.trim().is_empty() => {}
            Stage::Gap => give(parts, Part::Text, held),
            Stage::Head | Stage::Whole => self.whole_call(&held, "", parts),
            Stage::Arguments(_) | Stage::Tail => {}
        }
        self.stage = Stage::Gap;
    }

    /// Does one change of stage; false when more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.stage {
            Stage::Begin => self.begin(),
            Stage::Thought { begun } => self.thought(begun, parts),
            Stage::Gap => self.gap(),
            Stage::Text => self.text(parts),
            Stage::Head => self.head(parts),
            Stage::Whole => self.whole(parts),
            Stage::Arguments(json) => self.arguments(json, parts),
            Stage::Tail => self.tail(),
        }
    }

    fn begin(&mut self) -> bool {
        let seen = self.held.trim_start();
        if let Some(thought) = seen.strip_prefix(THINK_OPEN) {
            self.held = thought.to_owned();
            self.stage = Stage::Thought { begun: false };
            return true;
        }
        if THINK_OPEN.starts_with(seen) {
            return false;
        }
        self.stage = Stage::Text;
        true
    }

    fn thought(&mut self, begun: bool, parts: &mut Vec<Part>) -> bool {
        if !begun {
            // A line break after the tag belongs to the tag.
            self.held = self.held.trim_start().to_owned();
            self.stage = Stage::Thought {
                begun: !self.held.is_empty(),
            };
        }
        if let Some((thought, after)) = self.held.split_once(THINK_CLOSE) {
            let thought = thought.trim_end().to_owned();
            let after = after.to_owned();
            give(parts, Part::Thought, thought);
            self.held = after;
            self.stage = Stage::Gap;
            return true;
        }
        let ready = settled(&self.held, THINK_CLOSE);
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
        }
        self.stage = Stage::Text;
        true
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        if !self.rules.tools {
            give(parts, Part::Text, std::mem::take(&mut self.held));
            return false;
        }
        if let Some((text, after)) = self.held.split_once(OPEN) {
            let text = text.trim_end().to_owned();
            let after = after.to_owned();
            give(parts, Part::Text, text);
            self.held = after;
            self.stage = Stage::Head;
            return true;
        }
        let ready = settled(&self.held, OPEN);
        give(parts, Part::Text, take(&mut self.held, ready));
        false
    }

    fn head(&mut self, parts: &mut Vec<Part>) -> bool {
        match head_of(&self.held) {
            Head::Open if self.held.len() <= HEAD_BYTES_MAX => false,
            Head::Known { name, at } if at <= HEAD_BYTES_MAX => {
                drop(take(&mut self.held, at));
                parts.push(Part::Call {
                    index: self.calls,
                    name,
                });
                self.calls += 1;
                self.stage = Stage::Arguments(Json::default());
                true
            }
            Head::Open | Head::Known { .. } | Head::Odd => {
                self.stage = Stage::Whole;
                true
            }
        }
    }

    fn arguments(&mut self, mut json: Json, parts: &mut Vec<Part>) -> bool {
        let index = self.calls.saturating_sub(1);
        let end = self
            .held
            .char_indices()
            .find(|(_at, letter)| json.take(*letter))
            .map(|(at, letter)| at + letter.len_utf8());
        let ready = end.unwrap_or(self.held.len());
        let text = take(&mut self.held, ready);
        give(parts, |text| Part::Arguments { index, text }, text);
        self.stage = if end.is_some() {
            Stage::Tail
        } else {
            Stage::Arguments(json)
        };
        end.is_some()
    }

    fn tail(&mut self) -> bool {
        let Some((_closing, after)) = self.held.split_once(CLOSE) else {
            return false;
        };
        self.held = after.to_owned();
        self.stage = Stage::Gap;
        true
    }

    fn whole(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some((body, after)) = self.held.split_once(CLOSE) else {
            return false;
        };
        let (body, after) = (body.to_owned(), after.to_owned());
        self.whole_call(&body, CLOSE, parts);
        self.held = after;
        self.stage = Stage::Gap;
        true
    }

    /// Gives out a complete call, or the text as it was if it is none.
    fn whole_call(&mut self, body: &str, close: &str, parts: &mut Vec<Part>) {
        let Some((name, text)) = parse_call(body) else {
            parts.push(Part::Text(format!("{OPEN}{body}{close}")));
            return;
        };
        let index = self.calls;
        self.calls += 1;
        parts.push(Part::Call { index, name });
        parts.push(Part::Arguments { index, text });
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

/// How many bytes cannot belong to `tag` or to the white space before it.
fn settled(text: &str, tag: &str) -> usize {
    let longest = tag.len().saturating_sub(1).min(text.len());
    let partial = (1..=longest)
        .rev()
        .find(|length| {
            tag.as_bytes()
                .starts_with(&text.as_bytes()[text.len() - length..])
        })
        .unwrap_or(0);
    // The tag is ASCII, so its beginning starts at a character's boundary.
    text.get(..text.len() - partial)
        .map_or(0, |before| before.trim_end().len())
}

fn parse_call(body: &str) -> Option<(String, String)> {
    let call: Value = serde_json::from_str(body.trim()).ok()?;
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        // Some models quote the arguments as OpenAI does.
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    Some((name, arguments))
}

#[derive(Debug, Eq, PartialEq)]
enum Head {
    /// More text is needed.
    Open,
    /// Not `{"name": "…", "arguments": {`; read the whole.
    Odd,
    /// The arguments start at byte `at`.
    Known { name: String, at: usize },
}

fn head_of(body: &str) -> Head {
    let mut reader = Reader { body, at: 0 };
    match reader.head() {
        Ok(name) => Head::Known {
            name,
            at: reader.at,
        },
        Err(head) => head,
    }
}

/// Reads the start of a call; stops with [`Head::Open`] at the end of the text.
struct Reader<'a> {
    body: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn head(&mut self) -> Result<String, Head> {
        self.expect('{')?;
        self.key(&["name"])?;
        let name = self.string()?;
        self.expect(',')?;
        self.key(&["arguments", "parameters"])?;
        match self.peek()? {
            '{' | '[' => Ok(name),
            _ => Err(Head::Odd),
        }
    }

    fn rest(&self) -> &str {
        self.body.get(self.at..).unwrap_or_default()
    }

    /// The next letter that is not white space.
    fn peek(&mut self) -> Result<char, Head> {
        let rest = self.rest();
        let space = rest.len() - rest.trim_start().len();
        self.at += space;
        self.rest().chars().next().ok_or(Head::Open)
    }

    fn expect(&mut self, letter: char) -> Result<(), Head> {
        if self.peek()? != letter {
            return Err(Head::Odd);
        }
        self.at += letter.len_utf8();
        Ok(())
    }

    fn key(&mut self, names: &[&str]) -> Result<(), Head> {
        let key = self.string()?;
        if !names.contains(&key.as_str()) {
            return Err(Head::Odd);
        }
        self.expect(':')
    }

    fn string(&mut self) -> Result<String, Head> {
        if self.peek()? != '"' {
            return Err(Head::Odd);
        }
        let rest = self.rest();
        let mut json = Json::default();
        let end = rest
            .char_indices()
            .find(|(_at, letter)| {
                json.take(*letter);
                !json.in_string
            })
            .map(|(at, _quote)| at + 1)
            .ok_or(Head::Open)?;
        let text = rest
            .get(..end)
            .and_then(|quoted| serde_json::from_str(quoted).ok())
            .ok_or(Head::Odd)?;
        self.at += end;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
