//! Calls written as JSON: where a value ends, how a call begins. Pure.

use serde_json::Value;

/// Where in a JSON value the text stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Json {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Json {
    /// Within an object whose bracket is already read.
    pub(super) const fn within() -> Self {
        Self {
            depth: 1,
            in_string: false,
            escaped: false,
        }
    }

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

    /// Takes text up to the end of the value; the byte after it, if it is there.
    pub(super) fn end_in(&mut self, text: &str) -> Option<usize> {
        text.char_indices()
            .find(|(_at, letter)| self.take(*letter))
            .map(|(at, letter)| at + letter.len_utf8())
    }
}

/// How a call begins.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Head {
    /// More text is needed.
    Open,
    /// Not as calls begin; read the whole.
    Odd,
    /// The arguments start at byte `at`.
    Known { name: String, at: usize },
}

/// `{"name": "…", "arguments": {`.
pub(super) fn head(body: &str) -> Head {
    let mut reader = Reader { body, at: 0 };
    reader.known(Reader::head)
}

/// The same, within a list.
pub(super) fn head_in_list(body: &str) -> Head {
    let mut reader = Reader { body, at: 0 };
    reader.known(|reader| {
        if reader.peek()? == '[' {
            reader.expect('[')?;
        }
        reader.head()
    })
}

/// `name[ARGS]{`, `name{`, and with `[CALL_ID]…` between.
pub(super) fn head_with_args(body: &str) -> Head {
    let text = body.trim_start();
    let Some(at) = text.find('{') else {
        let plain = |letter: char| is_name(letter) || matches!(letter, '[' | ']' | ' ');
        return if text.chars().all(plain) {
            Head::Open
        } else {
            Head::Odd
        };
    };
    let before = text.get(..at).unwrap_or_default();
    let name = before.split('[').next().unwrap_or_default().trim();
    if name.is_empty() || !name.chars().all(is_name) {
        return Head::Odd;
    }
    Head::Known {
        name: name.to_owned(),
        at: body.len() - text.len() + at,
    }
}

pub(super) fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.')
}

/// Names and arguments of complete calls, one or a list.
pub(super) fn whole(body: &str) -> Option<Vec<(String, String)>> {
    let body: Value = serde_json::from_str(body).ok()?;
    match body.as_array() {
        Some(calls) if !calls.is_empty() => calls.iter().map(one).collect(),
        Some(_) | None => Some(vec![one(&body)?]),
    }
}

fn one(call: &Value) -> Option<(String, String)> {
    let call = call
        .get("function")
        .filter(|inner| inner.is_object())
        .unwrap_or(call);
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        // Some models quote the arguments as OpenAI does.
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    Some((name, arguments))
}

/// Reads the start of a call; stops with [`Head::Open`] at the end of the text.
struct Reader<'a> {
    body: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn known(&mut self, read: impl FnOnce(&mut Self) -> Result<String, Head>) -> Head {
        match read(self) {
            Ok(name) => Head::Known { name, at: self.at },
            Err(head) => head,
        }
    }

    fn head(&mut self) -> Result<String, Head> {
        self.expect('{')?;
        let mut key = self.any_key()?;
        // `"type": "function"` in front says nothing.
        if key == "type" {
            self.string()?;
            self.expect(',')?;
            key = self.any_key()?;
        }
        if key != "name" {
            return Err(Head::Odd);
        }
        let name = self.string()?;
        self.expect(',')?;
        if !matches!(self.any_key()?.as_str(), "arguments" | "parameters") {
            return Err(Head::Odd);
        }
        match self.peek()? {
            '{' => Ok(name),
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

    fn any_key(&mut self) -> Result<String, Head> {
        let key = self.string()?;
        self.expect(':')?;
        Ok(key)
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
