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
    // Accepted for templates that spell out the defaults.
    let _ascii: Option<bool> = args.get("ensure_ascii")?;
    let _separators: Option<Value> = args.get("separators")?;
    let sort_keys: Option<bool> = args.get("sort_keys")?;
    args.assert_all_used()?;
    let mut json = serde_json::to_value(value).map_err(cannot_serialise)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let indent = indent.filter(|indent| indent.kind() == ValueKind::Number);
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let width = usize::try_from(indent)?.min(16);
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            json.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => json.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(cannot_serialise)?;
    String::from_utf8(out)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "not text").with_source(error))
}

fn cannot_serialise(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, "not representable as JSON").with_source(error)
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
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
