//! The part of JSON Schema (2020-12) that the description of `/admin/v1` is written in, as a check: what the description forbids
//! is refused by the same words that forbid it. Knows no route; a keyword that nothing here checks does not compile.

use std::collections::BTreeMap;

use jiff::civil::Date;
use regex::Regex;
use serde_json::{Map, Value};

/// Where the names of schemas begin.
const REFERENCE: &str = "#/components/schemas/";
/// Schemas inside schemas, so that none names itself.
const DEPTH_MAX: usize = 16;
/// Characters of a value that a message repeats.
const SHOWN_CHARS_MAX: usize = 64;
/// Values of a closed set that a message lists; beyond them one of them is an example.
const LISTED_MAX: usize = 16;
/// Keywords that say something and forbid nothing.
const ANNOTATIONS: [&str; 3] = ["default", "description", "examples"];

/// A schema that is ready to check values.
#[derive(Clone, Debug)]
pub(super) struct Schema {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
enum Rule {
    Kinds(Vec<Kind>),
    OneOf(Vec<Value>),
    Any(Vec<Schema>),
    Pattern(Regex, Option<String>),
    Day,
    Chars(usize, usize),
    Range(i128, i128),
    Items(Box<Schema>),
    ItemsMax(usize),
    Members {
        known: BTreeMap<String, Schema>,
        required: Vec<String>,
        is_closed: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    Text,
    List,
    Object,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::Text,
            "array" => Self::List,
            "object" => Self::Object,
            _ => return None,
        })
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "true or false",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::Text => "text",
            Self::List => "a list",
            Self::Object => "an object with members",
        }
    }

    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Text => value.is_string(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
        }
    }
}

impl Schema {
    /// The schema that is written so; `named` are those that it may name. The error says what it cannot check.
    pub(super) fn compile(written: &Value, named: &Map<String, Value>) -> Result<Self, String> {
        Self::nested(written, named, DEPTH_MAX)
    }

    fn nested(written: &Value, named: &Map<String, Value>, depth: usize) -> Result<Self, String> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| format!("schemas are nested more than {DEPTH_MAX} deep"))?;
        if *written == Value::Bool(true) {
            return Ok(Self { rules: Vec::new() });
        }
        let Some(words) = written.as_object() else {
            return Err(format!("{written} is no schema"));
        };
        let mut rules = Vec::new();
        for (word, says) in words {
            let wrong = || format!("{word} says {says}");
            let inner = |written: &Value| Self::nested(written, named, depth);
            match word.as_str() {
                "$ref" => {
                    let name = says.as_str().and_then(|text| text.strip_prefix(REFERENCE));
                    let written = name.and_then(|name| named.get(name)).ok_or_else(wrong)?;
                    rules.extend(inner(written)?.rules);
                }
                "type" => rules.push(Rule::Kinds(kinds(says).ok_or_else(wrong)?)),
                "enum" => rules.push(Rule::OneOf(says.as_array().ok_or_else(wrong)?.clone())),
                "anyOf" => {
                    let ways = says.as_array().ok_or_else(wrong)?.iter().map(inner);
                    rules.push(Rule::Any(ways.collect::<Result<_, _>>()?));
                }
                "pattern" => {
                    let text = says.as_str().ok_or_else(wrong)?;
                    let regex = Regex::new(text).map_err(|error| error.to_string())?;
                    let about = words.get("description").and_then(Value::as_str);
                    rules.push(Rule::Pattern(regex, about.map(str::to_owned)));
                }
                "format" if says == "date" => rules.push(Rule::Day),
                "items" => rules.push(Rule::Items(Box::new(inner(says)?))),
                "maxItems" => rules.push(Rule::ItemsMax(count(says).ok_or_else(wrong)?)),
                // What belongs together is read together, below.
                "minLength"
                | "maxLength"
                | "minimum"
                | "maximum"
                | "properties"
                | "required"
                | "additionalProperties" => {}
                other if ANNOTATIONS.contains(&other) => {}
                other => return Err(format!("nothing here checks {other}")),
            }
        }
        rules.extend(Self::pairs(words)?);
        rules.extend(Self::members(words, named, depth)?);
        // What kind of value it is and how long is told before how it looks.
        rules.sort_by_key(Rule::rank);
        Ok(Self { rules })
    }

    fn pairs(words: &Map<String, Value>) -> Result<Vec<Rule>, String> {
        let mut rules = Vec::new();
        if words.contains_key("minLength") || words.contains_key("maxLength") {
            let at = |word: &str, or: usize| words.get(word).map_or(Some(or), count);
            let (Some(min), Some(max)) = (at("minLength", 0), at("maxLength", usize::MAX)) else {
                return Err("minLength and maxLength are counts".into());
            };
            rules.push(Rule::Chars(min, max));
        }
        if words.contains_key("minimum") || words.contains_key("maximum") {
            let at = |word: &str, or: i128| words.get(word).map_or(Some(or), integer);
            let (Some(min), Some(max)) = (at("minimum", i128::MIN), at("maximum", i128::MAX))
            else {
                return Err("minimum and maximum are whole numbers".into());
            };
            rules.push(Rule::Range(min, max));
        }
        Ok(rules)
    }

    fn members(
        words: &Map<String, Value>,
        named: &Map<String, Value>,
        depth: usize,
    ) -> Result<Option<Rule>, String> {
        let properties = words.get("properties");
        let required = words.get("required");
        let is_closed = words.get("additionalProperties") == Some(&Value::Bool(false));
        if properties.is_none() && required.is_none() && !is_closed {
            return Ok(None);
        }
        let mut known = BTreeMap::new();
        for (name, written) in properties.and_then(Value::as_object).into_iter().flatten() {
            known.insert(name.clone(), Self::nested(written, named, depth)?);
        }
        let required = required.and_then(Value::as_array).into_iter().flatten();
        Ok(Some(Rule::Members {
            known,
            required: required
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            is_closed,
        }))
    }

    /// Whether the value is what the schema says; the error says where it is not, what stands there, and what would be right.
    pub(super) fn check(&self, place: &str, value: &Value) -> Result<(), String> {
        self.rules
            .iter()
            .try_for_each(|rule| rule.check(place, value))
    }

    /// The same for a parameter of a query, which is text until somebody says what it should be.
    pub(super) fn check_text(&self, place: &str, text: &str) -> Result<(), String> {
        let is_number =
            |rule: &Rule| matches!(rule, Rule::Kinds(kinds) if kinds.contains(&Kind::Integer));
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|_| plain);
        match number.filter(|_| self.rules.iter().any(is_number)) {
            Some(number) => self.check(place, &Value::from(number)),
            None => self.check(place, &Value::from(text)),
        }
    }
}

impl Rule {
    const fn rank(&self) -> u8 {
        match self {
            Self::Kinds(_) => 0,
            Self::Chars(..) | Self::Range(..) | Self::ItemsMax(_) => 1,
            Self::OneOf(_)
            | Self::Any(_)
            | Self::Pattern(..)
            | Self::Day
            | Self::Items(_)
            | Self::Members { .. } => 2,
        }
    }

    fn check(&self, place: &str, value: &Value) -> Result<(), String> {
        let wrong = |right: String| Err(format!("{place} is {}: {right}", shown(value)));
        match (self, value) {
            (Self::Kinds(kinds), _) if !kinds.iter().any(|kind| kind.holds(value)) => {
                let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
                wrong(format!("{} is expected", kinds.join(" or ")))
            }
            (Self::OneOf(known), _) if !known.contains(value) => wrong(one_of(known)),
            (Self::Any(ways), _) => any(ways, place, value),
            (Self::Pattern(regex, about), Value::String(text)) if !regex.is_match(text) => wrong(
                about
                    .clone()
                    .unwrap_or_else(|| format!("it must match {regex}")),
            ),
            (Self::Day, Value::String(text)) if !is_day(text) => {
                wrong("a day is written as 2026-11-21".into())
            }
            (Self::Chars(min, max), Value::String(text)) => {
                let chars = text.chars().count();
                if (*min..=*max).contains(&chars) {
                    return Ok(());
                }
                Err(format!(
                    "{place} has {chars} characters: from {min} to {max}"
                ))
            }
            (Self::Range(min, max), Value::Number(number)) => {
                let inside = integer(value).is_some_and(|number| (*min..=*max).contains(&number));
                if inside {
                    return Ok(());
                }
                Err(format!("{place} is {number}: from {min} to {max}"))
            }
            (Self::ItemsMax(max), Value::Array(items)) if items.len() > *max => Err(format!(
                "{place} has {} entries: {max} at most",
                items.len()
            )),
            (Self::Items(schema), Value::Array(items)) => items
                .iter()
                .enumerate()
                .try_for_each(|(at, item)| schema.check(&format!("{place}[{at}]"), item)),
            (
                Self::Members {
                    known,
                    required,
                    is_closed,
                },
                Value::Object(members),
            ) => check_members((known, required, *is_closed), place, members),
            // What is of another kind is for `Kinds` to refuse.
            _ => Ok(()),
        }
    }
}

fn check_members(
    (known, required, is_closed): (&BTreeMap<String, Schema>, &[String], bool),
    place: &str,
    members: &Map<String, Value>,
) -> Result<(), String> {
    for name in required {
        if !members.contains_key(name) {
            return Err(format!("{place} has no {name:?}: it must be there"));
        }
    }
    for (name, value) in members {
        match known.get(name) {
            Some(schema) => schema.check(&format!("{place}.{name}"), value)?,
            None if is_closed => {
                let known: Vec<&str> = known.keys().map(String::as_str).collect();
                let name: String = name.chars().take(SHOWN_CHARS_MAX).collect();
                return Err(format!(
                    "{place} has an unknown member {name:?}: {}",
                    known.join(", ")
                ));
            }
            None => {}
        }
    }
    Ok(())
}

/// One way that fits is enough; of those that do not, the first says why, as it is the one that is not `null`.
fn any(ways: &[Schema], place: &str, value: &Value) -> Result<(), String> {
    let mut first = None;
    for way in ways {
        match way.check(place, value) {
            Ok(()) => return Ok(()),
            Err(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn kinds(says: &Value) -> Option<Vec<Kind>> {
    match says {
        Value::String(name) => Some(vec![Kind::of(name)?]),
        Value::Array(names) => names
            .iter()
            .map(|name| name.as_str().and_then(Kind::of))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn count(says: &Value) -> Option<usize> {
    says.as_u64().and_then(|count| usize::try_from(count).ok())
}

fn integer(says: &Value) -> Option<i128> {
    says.as_i64()
        .map(i128::from)
        .or_else(|| says.as_u64().map(i128::from))
}

/// A `full-date` of RFC 3339: jiff reads more forms than that.
fn is_day(text: &str) -> bool {
    let plain = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    plain && text.parse::<Date>().is_ok()
}

fn one_of(known: &[Value]) -> String {
    let listed: Vec<String> = known.iter().take(LISTED_MAX).map(shown).collect();
    if known.len() > LISTED_MAX {
        return format!(
            "one of {} values is expected, as {}",
            known.len(),
            listed.first().map_or("", String::as_str)
        );
    }
    format!("one of {} is expected", listed.join(", "))
}

/// A value for a message: short, and nothing of a list or an object.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            format!("{short:?}")
        }
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: &Value, value: &Value) -> Result<(), String> {
        let named = Map::from_iter([(
            "Tier".to_owned(),
            json!({"type": "string", "enum": ["fast", "heavy"]}),
        )]);
        let compiled = Schema::compile(schema, &named)?;
        compiled.check("the order", value)
    }

    #[test]
    fn each_word_of_a_schema_refuses_what_it_forbids_and_nothing_else() {
        let order = json!({
            "type": "object", "required": ["whom"], "additionalProperties": false,
            "properties": {
                "whom": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
                "uses": {"type": ["integer", "null"], "minimum": 1, "maximum": 7},
                "tiers": {"anyOf": [{"type": "array", "maxItems": 1, "items": {"$ref": "#/components/schemas/Tier"}}, {"type": "null"}]},
                "day": {"type": "string", "format": "date"},
            },
        });
        for good in [
            json!({"whom": "ada"}),
            json!({"whom": "ada", "uses": 7, "tiers": ["fast"], "day": "2024-02-29"}),
            json!({"whom": "ada", "uses": null, "tiers": null}),
        ] {
            assert_eq!(said(&order, &good), Ok(()), "{good}");
        }
        for (bad, why) in [
            (
                json!([]),
                "the order is a list of 0: an object with members is expected",
            ),
            (json!({}), "the order has no \"whom\": it must be there"),
            (
                json!({"whom": "a"}),
                "the order.whom has 1 characters: from 2 to 4",
            ),
            (
                json!({"whom": "adaad"}),
                "the order.whom has 5 characters: from 2 to 4",
            ),
            (
                json!({"whom": "ADA"}),
                "the order.whom is \"ADA\": it must match ^[a-z]+$",
            ),
            (json!({"whom": 7}), "the order.whom is 7: text is expected"),
            (
                json!({"whom": "ada", "uses": 0}),
                "the order.uses is 0: from 1 to 7",
            ),
            (
                json!({"whom": "ada", "uses": 1.5}),
                "the order.uses is 1.5: a whole number or null is expected",
            ),
            (
                json!({"whom": "ada", "tiers": ["slow"]}),
                "the order.tiers[0] is \"slow\": one of \"fast\", \"heavy\" is expected",
            ),
            (
                json!({"whom": "ada", "tiers": ["fast", "fast"]}),
                "the order.tiers has 2 entries: 1 at most",
            ),
            (
                json!({"whom": "ada", "day": "2023-02-29"}),
                "the order.day is \"2023-02-29\": a day is written as 2026-11-21",
            ),
            (
                json!({"whom": "ada", "who": 1}),
                "the order has an unknown member \"who\": day, tiers, uses, whom",
            ),
        ] {
            assert_eq!(said(&order, &bad), Err(why.to_owned()), "{bad}");
        }
    }

    #[test]
    fn a_parameter_is_a_number_only_where_a_number_is_wanted() {
        let limit = json!({"type": "integer", "minimum": 1, "maximum": 9});
        let limit = Schema::compile(&limit, &Map::new()).unwrap();
        assert_eq!(limit.check_text("limit", "9"), Ok(()));
        for bad in ["10", "0", "+9", "-1", "1e0", "1.0", "nine", ""] {
            assert!(limit.check_text("limit", bad).is_err(), "{bad:?}");
        }
        let name = Schema::compile(&json!({"type": "string"}), &Map::new()).unwrap();
        assert_eq!(name.check_text("user", "1234"), Ok(()));
    }

    #[test]
    fn a_word_that_nobody_checks_is_no_schema() {
        for unknown in [
            json!({"type": "string", "multipleOf": 2}),
            json!({"format": "e-mail"}),
            json!({"$ref": "#/components/schemas/Nobody"}),
            json!({"type": "text"}),
            json!(7),
        ] {
            assert!(Schema::compile(&unknown, &Map::new()).is_err(), "{unknown}");
        }
    }
}
