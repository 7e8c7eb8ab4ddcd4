//! What of a JSON schema the grammar enforces. llama.cpp's converter passes over what it does not know, and lets some patterns
//! match text that ends the JSON string they are in. Pure: a schema in, the schema that the engine may have out.

pub mod validate;

use serde_json::{Map, Value};

/// What a grammar cannot enforce of a schema that must be followed exactly.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a strict schema cannot say `{keyword}` here, because the answer would not be held to it: leave it out, or set strict to false"
)]
pub struct Unenforced {
    /// Where in the schema: `.properties.age.minimum`.
    pub path: String,
    /// The last part of the path.
    pub keyword: String,
}

/// Keywords that hold one schema.
const ONE: [&str; 2] = ["items", "additionalProperties"];
/// Keywords that hold a list of schemas.
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
/// Keywords that hold schemas by name.
const NAMED: [&str; 3] = ["properties", "$defs", "definitions"];
/// Keywords that the converter never looks at.
const IGNORED: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "multipleOf",
    "contains",
    "minContains",
    "maxContains",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
];
/// Bounds that hold for integers alone.
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
/// Next to a reference or alternatives the converter looks at nothing else that could say no.
const BESIDE_ALTERNATIVES: [&str; 13] = [
    "anyOf",
    "allOf",
    "properties",
    "required",
    "items",
    "prefixItems",
    "pattern",
    "enum",
    "const",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
];

/// What is no JSON schema.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the schema is malformed: {reason}")]
pub struct Malformed {
    /// Where in the schema: `.properties.age.type`.
    pub path: String,
    /// What would be right.
    pub reason: &'static str,
}

/// Finds the first thing that cannot stand in a schema.
pub fn well_formed(schema: &Value) -> Result<(), Malformed> {
    let bad = |path: &str, reason| {
        Err(Malformed {
            path: path.to_owned(),
            reason,
        })
    };
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Bool(_) => return Ok(()),
        Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return bad("", "expected an object or a boolean");
        }
    };
    for (keyword, value) in fields {
        let place = format!(".{keyword}");
        match keyword.as_str() {
            "type" if !is_type(value) => {
                return bad(
                    &place,
                    "expected object, array, string, number, integer, boolean, null or a list of them",
                );
            }
            "properties" | "$defs" | "definitions" if !value.is_object() => {
                return bad(&place, "expected an object of schemas");
            }
            "required" if !is_texts(value) => return bad(&place, "expected a list of names"),
            "enum" if value.as_array().is_none_or(Vec::is_empty) => {
                return bad(&place, "expected a list of values, at least one");
            }
            "anyOf" | "oneOf" | "allOf" | "prefixItems"
                if value.as_array().is_none_or(Vec::is_empty) =>
            {
                return bad(&place, "expected a list of schemas, at least one");
            }
            "$ref" | "pattern" | "format" if !value.is_string() => {
                return bad(&place, "expected a string");
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" if !value.is_u64() => {
                return bad(&place, "expected a whole number of 0 or more");
            }
            bound if BOUNDS.contains(&bound) && !value.is_number() => {
                return bad(&place, "expected a number");
            }
            "items" | "additionalProperties"
                if !value.is_object() && !value.is_boolean() && !value.is_array() =>
            {
                return bad(&place, "expected a schema");
            }
            _ => {}
        }
    }
    for (place, child) in every_child(fields) {
        well_formed(child).map_err(|inner| Malformed {
            path: format!(".{place}{}", inner.path),
            ..inner
        })?;
    }
    Ok(())
}

fn is_type(value: &Value) -> bool {
    const KINDS: [&str; 7] = [
        "object", "array", "string", "number", "integer", "boolean", "null",
    ];
    let known = |value: &Value| value.as_str().is_some_and(|kind| KINDS.contains(&kind));
    match value.as_array() {
        Some(kinds) => !kinds.is_empty() && kinds.iter().all(known),
        None => known(value),
    }
}

fn is_texts(value: &Value) -> bool {
    let texts = value.as_array();
    texts.is_some_and(|texts| texts.iter().all(Value::is_string))
}

/// Finds the first thing in a strict schema that the answer would not be held to.
pub fn check(schema: &Value) -> Result<(), Unenforced> {
    let Some(fields) = schema.as_object() else {
        return Ok(());
    };
    if let Some(keyword) = unenforced(fields) {
        return Err(Unenforced {
            path: format!(".{keyword}"),
            keyword: keyword.to_owned(),
        });
    }
    for (place, child) in children(fields) {
        check(child).map_err(|inner| Unenforced {
            path: format!(".{place}{}", inner.path),
            ..inner
        })?;
    }
    Ok(())
}

/// Takes out patterns that could match more than the inside of a JSON string: the answer stays JSON, whatever else it is.
pub fn tame(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    if fields
        .get("pattern")
        .is_some_and(|pattern| !is_tame(pattern))
    {
        fields.remove("pattern");
    }
    for (keyword, value) in fields.iter_mut() {
        let keyword = keyword.as_str();
        match value {
            Value::Object(named) if NAMED.contains(&keyword) => named.values_mut().for_each(tame),
            Value::Array(list) if LISTS.contains(&keyword) || keyword == "items" => {
                list.iter_mut().for_each(tame);
            }
            Value::Object(_) if ONE.contains(&keyword) => tame(value),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {}
        }
    }
}

fn children(fields: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (keyword, value) in fields {
        let name = keyword.as_str();
        match value {
            Value::Object(named) if NAMED.contains(&name) => {
                found.extend(
                    named
                        .iter()
                        .map(|(key, child)| (format!("{name}.{key}"), child)),
                );
            }
            Value::Array(list) if LISTS.contains(&name) || name == "items" => {
                let indexed = list.iter().enumerate();
                found.extend(indexed.map(|(at, child)| (format!("{name}[{at}]"), child)));
            }
            Value::Object(_) if ONE.contains(&name) => found.push((name.to_owned(), value)),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {}
        }
    }
    found
}

/// As [`children`], with those that are no objects.
fn every_child(fields: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (keyword, value) in fields {
        match value {
            Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                let named = named.iter();
                found.extend(named.map(|(name, child)| (format!("{keyword}.{name}"), child)));
            }
            Value::Array(list) if LISTS.contains(&keyword.as_str()) => {
                let indexed = list.iter().enumerate();
                found.extend(indexed.map(|(at, child)| (format!("{keyword}[{at}]"), child)));
            }
            Value::Object(_) if ONE.contains(&keyword.as_str()) => {
                found.push((keyword.clone(), value));
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {}
        }
    }
    found
}

/// The first keyword of this level that nothing comes of.
fn unenforced(fields: &Map<String, Value>) -> Option<&str> {
    let has = |keyword: &str| fields.contains_key(keyword);
    let leads = ["$ref", "oneOf", "anyOf"]
        .into_iter()
        .find(|lead| has(lead));
    let pattern = fields.get("pattern");
    fields.keys().map(String::as_str).find(|keyword| {
        if leads.is_some_and(|lead| lead != *keyword) && BESIDE_ALTERNATIVES.contains(keyword) {
            return true;
        }
        match *keyword {
            "uniqueItems" => fields.get("uniqueItems") == Some(&Value::Bool(true)),
            "pattern" => pattern.is_some_and(|pattern| !is_tame(pattern)),
            "minLength" | "maxLength" => has("pattern"),
            "prefixItems" => has("items"),
            "required" => !requires_known(fields),
            bound if BOUNDS.contains(&bound) => !is_integer(fields.get("type")),
            other => IGNORED.contains(&other),
        }
    })
}

/// The converter forgets required properties that it knows nothing else about.
fn requires_known(fields: &Map<String, Value>) -> bool {
    let known = fields.get("properties").and_then(Value::as_object);
    let names = fields.get("required").and_then(Value::as_array);
    names.into_iter().flatten().all(|name| {
        let name = name.as_str().unwrap_or_default();
        known.is_some_and(|known| known.contains_key(name))
    })
}

fn is_integer(kind: Option<&Value>) -> bool {
    match kind {
        Some(Value::String(kind)) => kind == "integer",
        // each type becomes an alternative of its own, with all bounds
        Some(Value::Array(kinds)) => !kinds.iter().any(|kind| kind == "number"),
        _ => false,
    }
}

/// Whether the converter takes the pattern, and whatever it matches can stand between two quotation marks as it is.
fn is_tame(pattern: &Value) -> bool {
    let inner = pattern.as_str().and_then(|text| {
        let text = text.strip_prefix('^')?;
        text.strip_suffix('$')
    });
    let Some(inner) = inner else {
        return false;
    };
    let mut depth = 0_usize;
    let mut rest = inner.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 0 => return false,
            ')' => depth -= 1,
            '[' => {
                let class: Option<String> = closed(&mut rest);
                if !class.is_some_and(|class| is_tame_class(&class)) {
                    return false;
                }
            }
            '.' | '^' | '$' | '\\' | '"' => return false,
            control if control < ' ' => return false,
            _ => {}
        }
    }
    // groups of other kinds (`(?=`, `(?<name>`) have no form in a grammar
    depth == 0 && !inner.replace("(?:", "(").contains("(?")
}

/// The rest of a character class, without its bracket.
fn closed(rest: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut class = String::new();
    for letter in rest {
        if letter == ']' {
            return Some(class);
        }
        class.push(letter);
    }
    None
}

/// Names what it takes (`^` would take everything else), and neither a quotation mark nor a backslash is among it.
fn is_tame_class(class: &str) -> bool {
    let letters: Vec<char> = class.chars().collect();
    let plain = |letter: &char| *letter >= ' ' && *letter != '"' && *letter != '\\';
    let mut ranges = letters.windows(3).filter(|three| three[1] == '-');
    let spans = |three: &[char]| {
        ['"', '\\']
            .iter()
            .any(|bad| (three[0]..=three[2]).contains(bad))
    };
    !letters.is_empty() && letters[0] != '^' && letters.iter().all(plain) && !ranges.any(spans)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> Option<String> {
        check(schema).err().map(|unenforced| unenforced.path)
    }

    #[test]
    fn what_a_grammar_enforces_may_be_said() {
        let schema = json!({
            "type": "object",
            "title": "Person", "description": "d", "$schema": "s",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 20},
                "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 150},
                "code": {"type": "string", "pattern": "^[A-Z]{2,3}-[0-9]+(?:a|b)?$"},
                "mail": {"type": "string", "format": "email"},
                "kind": {"enum": ["a", "b"]},
                "not": {"const": 5},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1},
                "pair": {"type": "array", "prefixItems": [{"type": "number"}], "minItems": 1, "maxItems": 1},
            },
            "required": ["name", "not"],
            "additionalProperties": false,
            "$defs": {"tag": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null}},
        });
        assert_eq!(refused(&schema), None);
        assert_eq!(refused(&json!(true)), None);
    }

    #[test]
    fn what_the_answer_would_not_be_held_to_is_named_with_its_place() {
        for (schema, place) in [
            (json!({"type": "number", "minimum": 1}), ".minimum"),
            (json!({"type": "array", "items": {"not": {}}}), ".items.not"),
            (
                json!({"type": "array", "uniqueItems": true}),
                ".uniqueItems",
            ),
            (
                json!({"properties": {"a": {"type": "integer", "multipleOf": 5}}}),
                ".properties.a.multipleOf",
            ),
            (
                json!({"anyOf": [{"type": "null"}, {"pattern": "a"}]}),
                ".anyOf[1].pattern",
            ),
            (
                json!({"anyOf": [{"type": "object"}], "required": ["a"]}),
                ".required",
            ),
            (json!({"type": "object", "required": ["a"]}), ".required"),
            (
                json!({"type": "string", "pattern": "^a*$", "minLength": 3}),
                ".minLength",
            ),
        ] {
            assert_eq!(refused(&schema).as_deref(), Some(place), "{schema}");
        }
    }

    #[test]
    fn no_pattern_gets_through_that_could_end_its_own_string() {
        for tame in [
            "^$",
            "^abc$",
            "^[a-z0-9_-]+$",
            "^(a|b)*$",
            "^(?:[+]?[0-9]{1,3})$",
        ] {
            assert!(is_tame(&json!(tame)), "{tame}");
        }
        for wild in [
            "abc", "^.*$", "^[^a]$", "^\"$", "^[ -~]$", "^[!-a]$", "^\\d+$", "^[\\]]$", "^(a$",
            "^a)$", "^[a$", "^(?=a)$", "^a\nb$", "^a$b$", "(", "^", "^[]$",
        ] {
            assert!(!is_tame(&json!(wild)), "{wild}");
        }
    }

    #[test]
    fn a_wild_pattern_is_taken_out_wherever_it_is() {
        let mut schema = json!({
            "properties": {"pattern": {"type": "string", "pattern": ".*"}, "b": {"pattern": "^b$"}},
            "items": [{"anyOf": [{"pattern": "^.$"}]}],
            "additionalProperties": {"pattern": 5},
            "enum": [{"pattern": "."}],
        });
        tame(&mut schema);
        let left = json!({
            "properties": {"pattern": {"type": "string"}, "b": {"pattern": "^b$"}},
            "items": [{"anyOf": [{}]}],
            "additionalProperties": {},
            "enum": [{"pattern": "."}],
        });
        assert_eq!(schema, left);
    }
}
