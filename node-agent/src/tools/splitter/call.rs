//! Within a call of a tool: from the mark that opens it to the one that closes it. What is no call after all comes out as the text that
//! it was. Pure; must never give out arguments of a call that is held back until it is complete.

use super::json::{Head, Json};
use super::{Part, Splitter, Stage, gemma, give, json, take, xml};
use crate::tools::format::ToolFormat;

/// A call whose name is not known after this many bytes is read as a whole.
const HEAD_BYTES_MAX: usize = 512;

impl Splitter {
    pub(super) fn open_call(&mut self, marker: &str) {
        marker.clone_into(&mut self.raw);
        self.pending.clear();
        self.stage = Stage::Head;
    }

    pub(super) fn head(&mut self, parts: &mut Vec<Part>) -> bool {
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

    pub(super) fn arguments(&mut self, mut json: Json, parts: &mut Vec<Part>) -> bool {
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

    pub(super) fn gemma(&mut self, parts: &mut Vec<Part>) -> bool {
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

    pub(super) fn xml(&mut self, parts: &mut Vec<Part>) -> bool {
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

    pub(super) fn tail(&mut self, mut json: Json) -> bool {
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
    pub(super) fn between(&mut self) -> bool {
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
    pub(super) fn whole(&mut self, mut json: Json, seen: usize, parts: &mut Vec<Part>) -> bool {
        let bare = self.format() == ToolFormat::QwenXml && self.raw.is_empty();
        let close = if bare {
            "</function>"
        } else {
            self.format().close()
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
        if let Some(end) = json.end_in(unseen) {
            self.whole_call(seen + end, "", parts);
            return true;
        }
        self.stage = Stage::Whole {
            json,
            seen: self.held.len(),
        };
        false
    }

    /// Gives out a complete call of `length` bytes, or the text as it was if it is none.
    pub(super) fn whole_call(&mut self, length: usize, close: &str, parts: &mut Vec<Part>) {
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
