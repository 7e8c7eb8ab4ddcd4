//! Qwen 3 Coder's calls, `<function=name><parameter=key>value</parameter></function>`, translated into JSON parameter by parameter.
//! Pure.

use serde_json::Value;

use super::json::Head;
use crate::tools::toolbox::Toolbox;

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// `<function=name>`.
pub(super) fn head(body: &str) -> Head {
    let text = body.trim_start();
    if FUNCTION.starts_with(text) {
        return Head::Open;
    }
    let Some(rest) = text.strip_prefix(FUNCTION) else {
        return Head::Odd;
    };
    match rest.split_once('>') {
        None => Head::Open,
        Some((name, after)) => Head::Known {
            name: name.trim().to_owned(),
            at: body.len() - after.len(),
        },
    }
}

/// Reads the parameters of one call.
#[derive(Debug)]
pub(super) struct Reader {
    function: String,
    parameters: usize,
    complete: bool,
}

impl Reader {
    pub(super) const fn new(function: String) -> Self {
        Self {
            function,
            parameters: 0,
            complete: false,
        }
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Appends the JSON of as many parameters of `text` as are complete and says how many bytes that was.
    pub(super) fn read(&mut self, text: &str, toolbox: &Toolbox, json: &mut String) -> usize {
        let mut used = 0;
        while !self.complete {
            let rest = text.get(used..).unwrap_or_default();
            let Some(taken) = self.parameter(rest, toolbox, json) else {
                break;
            };
            used += taken;
        }
        used
    }

    fn parameter(&mut self, rest: &str, toolbox: &Toolbox, json: &mut String) -> Option<usize> {
        let text = rest.trim_start();
        let space = rest.len() - text.len();
        if text.starts_with(FUNCTION_END) {
            json.push_str(if self.parameters == 0 { "{}" } else { "}" });
            self.complete = true;
            return Some(space + FUNCTION_END.len());
        }
        let Some(inner) = text.strip_prefix(PARAMETER) else {
            if PARAMETER.starts_with(text) || FUNCTION_END.starts_with(text) {
                return None;
            }
            // Stray text between two parameters means nothing.
            return text.chars().next().map(|letter| space + letter.len_utf8());
        };
        let (key, value) = inner.split_once('>')?;
        let (value, _after) = value.split_once(PARAMETER_END)?;
        json.push(if self.parameters == 0 { '{' } else { ',' });
        self.parameters += 1;
        let read = typed(value, toolbox.is_text(&self.function, key.trim()));
        json.push_str(&Value::from(key.trim()).to_string());
        json.push(':');
        json.push_str(&read.to_string());
        let tags = PARAMETER.len() + 1 + PARAMETER_END.len();
        Some(space + tags + key.len() + value.len())
    }
}

/// One line break on each side belongs to the tags.
fn typed(value: &str, is_text: bool) -> Value {
    let text = value.strip_prefix('\n').unwrap_or(value);
    let text = text.strip_suffix('\n').unwrap_or(text);
    if is_text {
        return text.into();
    }
    match text.trim() {
        // The template writes values as Python does.
        "True" => true.into(),
        "False" => false.into(),
        "None" => Value::Null,
        trimmed => serde_json::from_str(trimmed).unwrap_or_else(|_text| text.into()),
    }
}
