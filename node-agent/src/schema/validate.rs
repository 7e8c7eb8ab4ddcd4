//! Whether a value fits a JSON schema, as far as functions and answers use schemas. Keywords that are not known say nothing. Pure; the
//! work is bounded by the size of the value, however a schema refers to itself.

use std::cell::Cell;

use serde_json::{Map, Value};

/// Comparisons of one check, at most: alternatives within alternatives multiply.
const STEPS_MAX: u32 = 200_000;
/// References and combinations within each other, at most.
const DEPTH_MAX: usize = 96;

/// What does not fit.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Misfit {
    /// Where in the value: `$.items[2].name`.
    pub path: String,
    /// What was expected.
    pub reason: String,
}

/// Says the first thing about `value` that its schema does not allow.
pub fn check(value: &Value, schema: &Value) -> Result<(), Misfit> {
    let check = Check {
        root: schema,
        steps: Cell::new(0),
    };
    check.value(value, schema, "$", 0)
}

/// Whether a schema takes strings only.
pub fn is_text(schema: &Value, root: &Value) -> bool {
    let target = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| resolve(reference, root));
    let schema = target.unwrap_or(schema);
    if let Some(Value::Array(values)) = schema.get("enum") {
        return values.iter().all(Value::is_string);
    }
    schema.get("type").and_then(Value::as_str) == Some("string")
}

fn resolve<'s>(reference: &str, root: &'s Value) -> Option<&'s Value> {
    root.pointer(reference.strip_prefix('#')?)
}

struct Check<'s> {
    root: &'s Value,
    steps: Cell<u32>,
}

impl Check<'_> {
    fn value(&self, value: &Value, schema: &Value, path: &str, depth: usize) -> Result<(), Misfit> {
        self.steps.set(self.steps.get() + 1);
        if depth > DEPTH_MAX || self.steps.get() > STEPS_MAX {
            return misfit(path, "the schema takes too long to follow");
        }
        let fields = match schema {
            Value::Bool(false) => return misfit(path, "nothing may stand here"),
            Value::Object(fields) => fields,
            Value::Null
            | Value::Bool(true)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => return Ok(()),
        };
        if let Some(target) = fields
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| resolve(reference, self.root))
        {
            self.value(value, target, path, depth + 1)?;
        }
        kind(value, fields, path)?;
        constant(value, fields, path)?;
        self.combined(value, fields, path, depth)?;
        match value {
            Value::Object(object) => self.object(object, fields, path, depth),
            Value::Array(items) => self.array(items, fields, path, depth),
            Value::String(text) => string(text, fields, path),
            Value::Number(number) => bounds(number.as_f64().unwrap_or_default(), fields, path),
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }

    fn combined(
        &self,
        value: &Value,
        fields: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<(), Misfit> {
        let fits = |schema: &Value| self.value(value, schema, path, depth + 1).is_ok();
        for schema in list(fields, "allOf") {
            self.value(value, schema, path, depth + 1)?;
        }
        let any = list(fields, "anyOf");
        if !any.is_empty() && !any.iter().any(fits) {
            return misfit(path, "it fits none of anyOf");
        }
        let one = list(fields, "oneOf");
        if !one.is_empty() && one.iter().filter(|schema| fits(schema)).count() != 1 {
            return misfit(path, "it does not fit exactly one of oneOf");
        }
        if fields.get("not").is_some_and(fits) {
            return misfit(path, "it fits what it must not");
        }
        Ok(())
    }

    fn object(
        &self,
        object: &Map<String, Value>,
        fields: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<(), Misfit> {
        for name in list(fields, "required").iter().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                return misfit(path, &format!("{name} is missing"));
            }
        }
        let properties = fields.get("properties").and_then(Value::as_object);
        let patterned = fields.contains_key("patternProperties");
        for (name, field) in object {
            let place = format!("{path}.{name}");
            match (
                properties.and_then(|known| known.get(name)),
                fields.get("additionalProperties"),
            ) {
                (Some(schema), _) => self.value(field, schema, &place, depth + 1)?,
                (None, Some(Value::Bool(false))) if !patterned => {
                    return misfit(&place, "there is no such property");
                }
                (None, Some(schema)) if !patterned => {
                    self.value(field, schema, &place, depth + 1)?;
                }
                (None, _) => {}
            }
        }
        count(
            object.len(),
            fields,
            ["minProperties", "maxProperties"],
            path,
        )
    }

    fn array(
        &self,
        items: &[Value],
        fields: &Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<(), Misfit> {
        let first = list(fields, "prefixItems");
        for (at, item) in items.iter().enumerate() {
            let schema = first.get(at).or_else(|| fields.get("items"));
            if let Some(schema) = schema {
                self.value(item, schema, &format!("{path}[{at}]"), depth + 1)?;
            }
        }
        if fields.get("uniqueItems") == Some(&Value::Bool(true)) {
            let twice = items
                .iter()
                .enumerate()
                .any(|(at, item)| items.iter().take(at).any(|before| before == item));
            if twice {
                return misfit(path, "an item is there twice");
            }
        }
        count(items.len(), fields, ["minItems", "maxItems"], path)
    }
}

fn kind(value: &Value, fields: &Map<String, Value>, path: &str) -> Result<(), Misfit> {
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64()
                || value.is_u64()
                || value.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => true,
    };
    let fits = match fields.get("type") {
        Some(Value::String(one)) => is(one),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    };
    if fits {
        return Ok(());
    }
    let kinds = fields.get("type").map(Value::to_string).unwrap_or_default();
    misfit(path, &format!("expected {kinds}"))
}

fn constant(value: &Value, fields: &Map<String, Value>, path: &str) -> Result<(), Misfit> {
    if fields.get("const").is_some_and(|only| only != value) {
        return misfit(path, "it is not the constant");
    }
    let values = list(fields, "enum");
    if !values.is_empty() && !values.contains(value) {
        return misfit(path, "it is none of enum");
    }
    Ok(())
}

fn string(text: &str, fields: &Map<String, Value>, path: &str) -> Result<(), Misfit> {
    count(
        text.chars().count(),
        fields,
        ["minLength", "maxLength"],
        path,
    )
}

fn count(
    count: usize,
    fields: &Map<String, Value>,
    [least, most]: [&str; 2],
    path: &str,
) -> Result<(), Misfit> {
    let bound = |name: &str| fields.get(name).and_then(Value::as_u64);
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    if let Some(bound) = bound(least).filter(|bound| count < *bound) {
        return misfit(path, &format!("{least} is {bound}, but there are {count}"));
    }
    if let Some(bound) = bound(most).filter(|bound| count > *bound) {
        return misfit(path, &format!("{most} is {bound}, but there are {count}"));
    }
    Ok(())
}

fn bounds(number: f64, fields: &Map<String, Value>, path: &str) -> Result<(), Misfit> {
    let bound = |name: &str| fields.get(name).and_then(Value::as_f64);
    let broken = [
        (
            "minimum",
            bound("minimum").is_some_and(|least| number < least),
        ),
        (
            "maximum",
            bound("maximum").is_some_and(|most| number > most),
        ),
        (
            "exclusiveMinimum",
            bound("exclusiveMinimum").is_some_and(|least| number <= least),
        ),
        (
            "exclusiveMaximum",
            bound("exclusiveMaximum").is_some_and(|most| number >= most),
        ),
    ];
    match broken.iter().find(|(_name, is_broken)| *is_broken) {
        Some((name, _)) => misfit(path, &format!("{number} is beyond {name}")),
        None => Ok(()),
    }
}

fn list<'f>(fields: &'f Map<String, Value>, name: &str) -> &'f [Value] {
    let list = fields.get(name).and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

fn misfit(path: &str, reason: &str) -> Result<(), Misfit> {
    Err(Misfit {
        path: path.to_owned(),
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_misfit_is_named_with_its_place() {
        let schema = json!({
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 2},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "uniqueItems": true},
                "unit": {"anyOf": [{"const": "C"}, {"const": "F"}]},
            },
            "required": ["city"],
            "additionalProperties": false,
            "$defs": {"tag": {"enum": ["a", "b"]}},
        });
        assert_eq!(
            check(
                &json!({"city": "Rome", "days": 3.0, "tags": ["a", "b"], "unit": "C"}),
                &schema
            ),
            Ok(())
        );
        for (value, place) in [
            (json!([]), "$"),
            (json!({}), "$"),
            (json!({"city": "R"}), "$.city"),
            (json!({"city": "Rome", "days": 8}), "$.days"),
            (json!({"city": "Rome", "days": 1.5}), "$.days"),
            (json!({"city": "Rome", "tags": ["a", "c"]}), "$.tags[1]"),
            (json!({"city": "Rome", "tags": ["a", "a"]}), "$.tags"),
            (json!({"city": "Rome", "unit": "K"}), "$.unit"),
            (json!({"city": "Rome", "x": 1}), "$.x"),
        ] {
            assert_eq!(
                check(&value, &schema).map_err(|misfit| misfit.path),
                Err(place.to_owned()),
                "{value}"
            );
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let endless = json!({"$ref": "#"});
        assert!(check(&json!(1), &endless).is_err());
        let tree = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert_eq!(check(&json!({"next": {"next": {}}}), &tree), Ok(()));
    }
}
