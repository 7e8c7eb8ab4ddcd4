//! Bounds on grammars and schemas, checked before llama.cpp sees them.
//!
//! Its parser recurses: twenty thousand nested brackets overflow the stack, which no error handling survives. And some
//! grammars can be followed in so many ways that one token takes forever.

mod ambiguity;
mod syntax;

use serde_json::Value;

use crate::spec::Grammar;

/// Longest grammar or schema.
const BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of brackets in a grammar.
const BRACKETS_MAX: usize = 64;
/// Deepest nesting of a schema, well below the limit of our JSON parser.
const SCHEMA_DEPTH_MAX: usize = 48;
/// Most rules; the search for left recursion goes one call deeper per rule.
const RULES_MAX: usize = 2_048;

/// Says what is wrong with a grammar, if its size or nesting is.
pub(crate) fn check(grammar: &Grammar) -> Result<(), String> {
    match grammar {
        Grammar::Gbnf(text) => check_gbnf(text),
        Grammar::JsonSchema(schema) => check_schema(schema),
    }
}

/// As [`check`], for grammar notation, also for that made from a schema.
pub(crate) fn check_gbnf(text: &str) -> Result<(), String> {
    if text.len() > BYTES_MAX {
        return Err(format!("{} bytes, at most {BYTES_MAX}", text.len()));
    }
    if text.contains('\0') {
        return Err("it contains a NUL character".to_owned());
    }
    let rules = text.matches("::=").count();
    if rules > RULES_MAX {
        return Err(format!("{rules} rules, at most {RULES_MAX}"));
    }
    let depth = bracket_depth(text);
    if depth > BRACKETS_MAX {
        return Err(format!(
            "brackets nested {depth} deep, at most {BRACKETS_MAX}"
        ));
    }
    ambiguity::check(text, &syntax::read(text)?)
}

fn check_schema(schema: &Value) -> Result<(), String> {
    // Depth first and without recursion, so that the size is only measured on what cannot overflow.
    let mut depth = 0;
    let mut level = vec![schema];
    while !level.is_empty() {
        depth += 1;
        if depth > SCHEMA_DEPTH_MAX {
            return Err(format!("nested more than {SCHEMA_DEPTH_MAX} deep"));
        }
        level = level.into_iter().flat_map(children).collect();
    }
    let bytes = schema.to_string().len();
    if bytes > BYTES_MAX {
        return Err(format!("{bytes} bytes, at most {BYTES_MAX}"));
    }
    if !schema.is_object() && !schema.is_boolean() {
        return Err("a JSON schema is an object".to_owned());
    }
    Ok(())
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// The deepest nesting of round brackets outside strings, character classes and comments.
fn bracket_depth(text: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    let (mut depth, mut deepest) = (0_usize, 0);
    for character in text.chars() {
        match quote {
            Some('\n') => {
                if character == '\n' {
                    quote = None;
                }
            }
            Some(end) => {
                if escaped {
                    escaped = false;
                } else if character == '\\' {
                    escaped = true;
                } else if character == end {
                    quote = None;
                }
            }
            None => match character {
                '"' => quote = Some('"'),
                '[' => quote = Some(']'),
                '#' => quote = Some('\n'),
                '(' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                ')' => depth = depth.saturating_sub(1),
                _other => {}
            },
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn deep_brackets_are_refused_and_quoted_ones_are_not_counted() {
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(65), ")".repeat(65));
        assert!(check_gbnf(&deep).is_err());
        let quoted = format!(
            "root ::= \"{}\\\"(\" [(\\](]* # {}\n",
            "(".repeat(99),
            "(".repeat(99)
        );
        assert_eq!(check_gbnf(&quoted), Ok(()));
    }

    #[test]
    fn a_deep_schema_is_refused() {
        let mut schema = json!({"type": "string"});
        for _level in 0..60 {
            schema = json!({"type": "array", "items": schema});
        }
        assert!(check(&Grammar::JsonSchema(schema)).is_err());
        assert!(check(&Grammar::JsonSchema(json!("text"))).is_err());
        assert_eq!(
            check(&Grammar::JsonSchema(json!({"type": "object"}))),
            Ok(())
        );
    }

    #[test]
    fn a_long_grammar_is_refused() {
        assert!(check_gbnf(&"x".repeat(BYTES_MAX + 1)).is_err());
        assert!(check_gbnf(&"a::=b\n".repeat(RULES_MAX + 1)).is_err());
    }
}
