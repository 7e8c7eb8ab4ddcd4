//! Gemma 4's calls, `call:name{key:<|"|>text<|"|>,list:[1,true]}`, translated into JSON as they come. Pure.

use super::json::{Head, is_name};

const QUOTE: &str = "<|\"|>";
const LEAD: &str = "call:";

/// `call:name`.
pub(super) fn head(body: &str) -> Head {
    let text = body.trim_start();
    if text.len() < LEAD.len() && LEAD.starts_with(text) {
        return Head::Open;
    }
    let Some(rest) = text.strip_prefix(LEAD) else {
        return Head::Odd;
    };
    let name: String = rest.chars().take_while(|letter| is_name(*letter)).collect();
    let after = rest.get(name.len()..).unwrap_or_default().trim_start();
    match after.chars().next() {
        None => Head::Open,
        Some('{') if !name.is_empty() => Head::Known {
            name,
            at: body.len() - after.len(),
        },
        Some(_) => Head::Odd,
    }
}

/// Translates the arguments of one call.
#[derive(Debug, Default)]
pub(super) struct Translator {
    /// Open brackets; true for objects.
    brackets: Vec<bool>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// A value may begin.
    #[default]
    Value,
    /// A key or the end of an object.
    Key,
    /// Within a quoted value.
    Quoted,
    /// After a value.
    After,
    Complete,
}

impl Translator {
    pub(super) fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Appends the JSON of as much of `text` as is certain and says how many bytes that was.
    pub(super) fn translate(&mut self, text: &str, json: &mut String) -> usize {
        let mut used = 0;
        while self.state != State::Complete {
            let rest = text.get(used..).unwrap_or_default();
            let taken = match self.state {
                State::Value => self.value(rest, json),
                State::Key => self.key(rest, json),
                State::Quoted => self.quoted(rest, json),
                State::After => self.after(rest, json),
                State::Complete => None,
            };
            let Some(taken) = taken else {
                break;
            };
            used += taken;
        }
        used
    }

    fn value(&mut self, rest: &str, json: &mut String) -> Option<usize> {
        let text = rest.trim_start();
        let space = rest.len() - text.len();
        match text.chars().next()? {
            '{' => {
                json.push('{');
                self.brackets.push(true);
                self.state = State::Key;
                Some(space + 1)
            }
            '[' => {
                json.push('[');
                self.brackets.push(false);
                Some(space + 1)
            }
            ']' if self.brackets.last() == Some(&false) => {
                self.close(json);
                Some(space + 1)
            }
            '<' if QUOTE.starts_with(text) && text.len() < QUOTE.len() => None,
            '<' if text.starts_with(QUOTE) => {
                json.push('"');
                self.state = State::Quoted;
                Some(space + QUOTE.len())
            }
            _ => self.bare(text, json).map(|taken| space + taken),
        }
    }

    /// A number, `true`, `false`, `null`; anything else becomes a string.
    fn bare(&mut self, text: &str, json: &mut String) -> Option<usize> {
        let end = text.find([',', '}', ']'])?;
        let word = text.get(..end)?.trim_end();
        match serde_json::from_str::<serde_json::Value>(word) {
            Ok(_value) => json.push_str(word),
            Err(_) => json.push_str(&quote(word)),
        }
        self.state = State::After;
        Some(end)
    }

    fn key(&mut self, rest: &str, json: &mut String) -> Option<usize> {
        let text = rest.trim_start();
        let space = rest.len() - text.len();
        if text.starts_with('}') {
            self.close(json);
            return Some(space + 1);
        }
        if QUOTE.starts_with(text) && text.len() < QUOTE.len() {
            return None;
        }
        let (key, length) = if let Some(quoted) = text.strip_prefix(QUOTE) {
            let (key, after) = quoted.split_once(QUOTE)?;
            let colon = after.find(':')?;
            (key, QUOTE.len() * 2 + key.len() + colon + 1)
        } else {
            let colon = text.find(':')?;
            (text.get(..colon)?.trim(), colon + 1)
        };
        json.push_str(&quote(key.trim_matches('"')));
        json.push(':');
        self.state = State::Value;
        Some(space + length)
    }

    fn quoted(&mut self, rest: &str, json: &mut String) -> Option<usize> {
        if let Some((text, _after)) = rest.split_once(QUOTE) {
            json.push_str(&escaped(text));
            json.push('"');
            self.state = State::After;
            return Some(text.len() + QUOTE.len());
        }
        let ready = rest.len() - super::partial(rest, QUOTE);
        let text = rest.get(..ready).filter(|text| !text.is_empty())?;
        json.push_str(&escaped(text));
        Some(ready)
    }

    fn after(&mut self, rest: &str, json: &mut String) -> Option<usize> {
        let text = rest.trim_start();
        let space = rest.len() - text.len();
        let letter = text.chars().next()?;
        match letter {
            '}' | ']' => self.close(json),
            // Anything else between two values is read as the comma that is missing.
            _ => {
                json.push(',');
                self.state = if self.brackets.last() == Some(&true) {
                    State::Key
                } else {
                    State::Value
                };
            }
        }
        let written = matches!(letter, '}' | ']' | ',');
        Some(space + usize::from(written))
    }

    fn close(&mut self, json: &mut String) {
        let object = self.brackets.pop().unwrap_or(true);
        json.push(if object { '}' } else { ']' });
        self.state = if self.brackets.is_empty() {
            State::Complete
        } else {
            State::After
        };
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The inside of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = quote(text);
    let inside = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inside.unwrap_or_default().to_owned()
}
