//! Whatever the schema and however wild the draw: a complete answer is JSON and fits.

use engine::Finish;
use engine::GenerateSpec;
use engine::Grammar;
use engine::Sampling;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::support::answer;
use crate::support::ask;
use crate::support::start;
use crate::support::tiny;

const SCHEMAS: u64 = 40;

/// Schemas of a few levels whose answers are short enough to end.
fn schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0_u32..4, 4_u32..9).prop_map(
            |(least, most)| json!({"type": "string", "minLength": least, "maxLength": most})
        ),
        (-9_i32..9, 10_i32..99).prop_map(
            |(least, most)| json!({"type": "integer", "minimum": least, "maximum": most})
        ),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"type": "number"})),
        Just(json!({"type": ["boolean", "null"]})),
        // Used wherever it stands, defined by the test at the top.
        Just(json!({"$ref": "#/$defs/answer"})),
        prop::collection::vec("[a-z\" \\\\é]{1,5}", 1..4).prop_map(|words| json!({"enum": words})),
        "[a-z]{1,6}".prop_map(|word| json!({"const": word})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (
                prop::collection::btree_map("[a-z]{1,4}", inner.clone(), 0..4),
                any::<bool>()
            )
                .prop_map(|(properties, all)| {
                    let required: Vec<&String> = properties
                        .keys()
                        .enumerate()
                        .filter(|(place, _key)| all || place % 2 == 0)
                        .map(|(_place, key)| key)
                        .collect();
                    json!({
                        "type": "object",
                        "properties": properties,
                        "required": required,
                        "additionalProperties": false,
                    })
                }),
            (inner.clone(), 0_u32..2, 2_u32..4).prop_map(|(items, least, most)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": most})
            }),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|any| json!({"anyOf": any})),
            prop::collection::vec(inner, 1..3).prop_map(|any| json!({"oneOf": any})),
        ]
    })
}

/// Whether a value fits a schema of the kind made above.
fn fits(value: &Value, schema: &Value) -> bool {
    if schema.get("$ref").is_some() {
        return value == "yes" || value == "no";
    }
    if let Some(kinds) = schema["type"].as_array() {
        let mut kinds = kinds.iter();
        return kinds.any(|kind| fits(value, &json!({"type": kind})));
    }
    let any = schema["anyOf"].as_array();
    if let Some(any) = any.or(schema["oneOf"].as_array()) {
        return any.iter().any(|schema| fits(value, schema));
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.contains(value);
    }
    if let Some(word) = schema.get("const") {
        return value == word;
    }
    let within = |count: usize, least: &str, most: &str| {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        schema[least].as_u64().is_none_or(|least| count >= least)
            && schema[most].as_u64().is_none_or(|most| count <= most)
    };
    match (schema["type"].as_str(), value) {
        (Some("string"), Value::String(text)) => {
            within(text.chars().count(), "minLength", "maxLength")
        }
        (Some("integer"), Value::Number(number)) => number.as_i64().is_some_and(|number| {
            schema["minimum"].as_i64() <= Some(number) && Some(number) <= schema["maximum"].as_i64()
        }),
        (Some("number"), Value::Number(_))
        | (Some("boolean"), Value::Bool(_))
        | (Some("null"), Value::Null) => true,
        (Some("array"), Value::Array(items)) => {
            within(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| fits(item, &schema["items"]))
        }
        (Some("object"), Value::Object(fields)) => object_fits(fields, schema),
        _other => false,
    }
}

fn object_fits(fields: &Map<String, Value>, schema: &Value) -> bool {
    let required = schema["required"].as_array().into_iter().flatten();
    let mut required = required.filter_map(Value::as_str);
    let known = |(key, value): (&String, &Value)| {
        let schema = schema["properties"].get(key);
        schema.is_some_and(|schema| fits(value, schema))
    };
    required.all(|key| fields.contains_key(key)) && fields.iter().all(known)
}

#[tokio::test]
async fn a_complete_answer_is_json_that_fits_its_schema() {
    let worker = start(tiny("fast")).await;
    let mut runner = TestRunner::deterministic();
    let mut complete = 0;
    for seed in 0..SCHEMAS {
        let mut schema = schema().new_tree(&mut runner).expect("a schema").current();
        schema["$defs"] = json!({"answer": {"enum": ["yes", "no"]}});
        let spec = GenerateSpec {
            grammar: Some(Grammar::JsonSchema(schema.clone())),
            sampling: Sampling {
                seed: Some(seed),
                // From sensible to mad.
                temperature: [0.0, 1.0, 3.0][usize::try_from(seed % 3).expect("small")],
                ..Sampling::default()
            },
            max_tokens: Some(600),
            ..ask("What is the weather in Paris?")
        };
        let said = answer(&worker, spec).await;
        if said.finish() == Finish::Length {
            continue;
        }
        complete += 1;
        let value: Value = serde_json::from_str(&said.text)
            .unwrap_or_else(|error| panic!("{error}: {:?} for {schema}", said.text));
        assert!(fits(&value, &schema), "{value} for {schema}");
    }
    assert!(
        complete >= SCHEMAS * 9 / 10,
        "{complete} of {SCHEMAS} came to an end"
    );
}

#[tokio::test]
async fn a_json_object_is_one_whatever_is_in_it() {
    let worker = start(tiny("fast")).await;
    let mut complete = 0;
    for seed in 0..12 {
        let spec = GenerateSpec {
            grammar: Some(Grammar::JsonSchema(json!({"type": "object"}))),
            sampling: Sampling {
                seed: Some(seed),
                temperature: 0.7,
                ..Sampling::default()
            },
            max_tokens: Some(300),
            ..ask("Give me a JSON object with a name and a number.")
        };
        let said = answer(&worker, spec).await;
        if said.finish() == Finish::Stop {
            complete += 1;
            let value: Value = serde_json::from_str(&said.text).expect("JSON");
            assert!(value.is_object(), "{value}");
        }
    }
    assert!(complete > 0, "none came to an end");
}
