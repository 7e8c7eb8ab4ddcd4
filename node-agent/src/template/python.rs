//! The places where jinja2 in Python and minijinja differ: `tojson` and the `generation` tag. Pure text.

use std::borrow::Cow;
use std::io::{self, Write};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `json.dumps(value, ensure_ascii=False)` as chat templates know it: a space after commas and colons, nothing escaped for HTML.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja's filters take their arguments so"
)]
pub(super) fn tojson(value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = args.get("indent")?;
    let ascii: Option<bool> = args.get("ensure_ascii")?;
    let separators: Option<Value> = args.get("separators")?;
    let sort_keys: Option<bool> = args.get("sort_keys")?;
    args.assert_all_used()?;
    let mut json = serde_json::to_value(value).map_err(cannot_serialise)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let indent = indent.filter(|indent| indent.kind() == ValueKind::Number);
    let mut out = Vec::new();
    let written = if let Some(indent) = indent {
        let width = usize::try_from(indent)?.min(16);
        let spaces = " ".repeat(width);
        let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
        json.serialize(&mut Serializer::with_formatter(&mut out, formatter))
    } else {
        let separated = Separated::new(separators.as_ref());
        json.serialize(&mut Serializer::with_formatter(&mut out, separated))
    };
    written.map_err(cannot_serialise)?;
    let text = String::from_utf8(out)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "not text").with_source(error))?;
    Ok(if ascii == Some(true) {
        in_ascii(&text)
    } else {
        text
    })
}

/// Letters beyond ASCII as `\u` escapes of UTF-16, which in JSON only strings contain.
fn in_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            let mut units = [0; 2];
            out.extend(letter.encode_utf16(&mut units).iter().copied().map(escape));
        }
    }
    out
}

fn escape(unit: u16) -> String {
    format!("\\u{unit:04x}")
}

/// `length`, which is 0 for what is not there.
pub(super) fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("a {} has no length", value.kind()),
        )
    })
}

/// `string`: lists and objects as Python writes them.
pub(super) fn string(value: &Value) -> String {
    let kinds = [ValueKind::Map, ValueKind::Seq, ValueKind::Iterable];
    if !kinds.contains(&value.kind()) {
        return value.to_string();
    }
    serde_json::to_value(value).map_or_else(|_error| value.to_string(), |json| repr(&json))
}

/// Writes values into the text.
pub(super) fn format(
    out: &mut minijinja::Output<'_>,
    state: &minijinja::State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    if matches!(value.kind(), ValueKind::Map | ValueKind::Seq) {
        return out
            .write_str(&string(value))
            .map_err(|error| Error::new(ErrorKind::WriteFailure, "no room").with_source(error));
    }
    minijinja::escape_formatter(out, state, value)
}

/// Python's `repr` of what JSON can say.
fn repr(value: &serde_json::Value) -> String {
    use serde_json::Value as Json;
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Number(number) => number.to_string(),
        Json::String(text) => quoted(text),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, field)| format!("{}: {}", quoted(name), repr(field)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

/// Single quotation marks unless only those are in the text.
fn quoted(text: &str) -> String {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(mark);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            same if same == mark => {
                out.push('\\');
                out.push(same);
            }
            other => out.push(other),
        }
    }
    out.push(mark);
    out
}

fn cannot_serialise(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, "not representable as JSON").with_source(error)
}

/// With Python's separators, `, ` and `: `, or those that are asked for.
struct Separated {
    items: String,
    keys: String,
}

impl Separated {
    fn new(asked: Option<&Value>) -> Self {
        let word = |at: usize, usual: &str| {
            let asked = asked.and_then(|asked| asked.get_item_by_index(at).ok());
            let asked = asked.and_then(|asked| asked.as_str().map(str::to_owned));
            asked.unwrap_or_else(|| usual.to_owned())
        };
        Self {
            items: word(0, ", "),
            keys: word(1, ": "),
        }
    }

    fn next<W: ?Sized + Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(self.items.as_bytes())
        }
    }
}

impl Formatter for Separated {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.keys.as_bytes())
    }
}

/// `{% generation %}` marks text for training; minijinja does not know the tag. A block that is always true keeps its white space
/// rules and its place.
pub(super) fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, tail)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        let word =
            tag.trim_matches(|letter: char| matches!(letter, '-' | '+') || letter.is_whitespace());
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = tail;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, value: serde_json::Value) -> String {
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        environment
            .render_str(
                template,
                minijinja::context! { value => Value::from_serialize(value) },
            )
            .expect("renders")
    }

    #[test]
    fn json_is_spaced_and_ordered_as_in_python() {
        let value = serde_json::json!({"b": [1, 2.0, null, true], "a": {}, "c": [], "d": "<é'&\n"});
        assert_eq!(
            render("{{ value | tojson }}", value.clone()),
            "{\"b\": [1, 2.0, null, true], \"a\": {}, \"c\": [], \"d\": \"<é'&\\n\"}"
        );
        assert_eq!(
            render(
                "{{ value | tojson(ensure_ascii=False, sort_keys=true) }}",
                value
            ),
            "{\"a\": {}, \"b\": [1, 2.0, null, true], \"c\": [], \"d\": \"<é'&\\n\"}"
        );
        assert_eq!(
            render(
                "{{ value | tojson(indent=2) }}",
                serde_json::json!({"a": [1]})
            ),
            "{\n  \"a\": [\n    1\n  ]\n}"
        );
    }

    #[test]
    fn generation_tags_become_blocks_that_are_always_true() {
        assert_eq!(
            without_generation_tags("a{%- generation %}b{% endgeneration -%}c {% if generation %}"),
            "a{%- if true %}b{% endif -%}c {% if generation %}"
        );
        assert_eq!(without_generation_tags("{% generation"), "{% generation");
    }
}
