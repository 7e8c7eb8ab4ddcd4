//! A JSON schema as rules of llama.cpp's grammar notation, in JSON or in Gemma 4's way of writing values. What the rules cannot hold an
//! answer to is not passed over in silence: the rules then count as inexact. Pure.

use std::fmt::Write as _;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::schema;

/// How values are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Notation {
    /// JSON.
    Json,
    /// Gemma 4: keys are bare, strings stand between `<|"|>`.
    Gemma,
}

/// Lengths of strings and lists above this are not counted by rules.
const REPEAT_MAX: u64 = 512;
/// Keywords that no rule is made from.
const UNRULED: [&str; 20] = [
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "not",
    "if",
    "uniqueItems",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "prefixItems",
    "contains",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
];

/// Gathers rules.
#[derive(Debug)]
pub(super) struct Rules {
    /// By their names.
    made: IndexMap<String, String>,
    /// The values that rules were already made for: in which notation, where from.
    known: IndexMap<(bool, String), String>,
    exact: bool,
}

impl Rules {
    pub(super) fn new() -> Self {
        Self {
            made: IndexMap::new(),
            known: IndexMap::new(),
            exact: true,
        }
    }

    /// Whether every value that follows the rules follows the schemas.
    pub(super) const fn is_exact(&self) -> bool {
        self.exact
    }

    /// References are looked up anew: another schema begins.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Something is not held to by the rules.
    pub(super) const fn loosen(&mut self) {
        self.exact = false;
    }

    /// Adds a rule under a name of its own and returns the name.
    pub(super) fn add(&mut self, hint: &str, body: String) -> String {
        let name = self.free(hint);
        self.made.insert(name.clone(), body);
        name
    }

    /// Adds or replaces the rule of this very name.
    pub(super) fn set(&mut self, name: &str, body: impl Into<String>) {
        self.made.insert(name.to_owned(), body.into());
    }

    /// The grammar.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (name, body) in &self.made {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{name} ::= {body}");
        }
        text
    }

    /// White space as models put it between the parts of JSON.
    pub(super) fn space(&mut self) -> &'static str {
        self.set("ws", "| \" \" | \"\\n\" [ \\t]{0,20}");
        "ws"
    }

    /// Text up to and including `end`, whose first letter must not come twice in it.
    pub(super) fn until(&mut self, hint: &str, end: &str, then: &str) -> String {
        self.automaton(hint, end, then, false)
    }

    /// Any text; wherever `mark` comes, `then` follows.
    pub(super) fn text_or(&mut self, hint: &str, mark: &str, then: &str) -> String {
        self.automaton(hint, mark, then, true)
    }

    /// One rule for each letter of the mark: how much of it has been read. `ends`: the text may end anywhere.
    fn automaton(&mut self, hint: &str, mark: &str, then: &str, ends: bool) -> String {
        let letters: Vec<char> = mark.chars().collect();
        let base = self.free(hint);
        let name = |at: usize| {
            if at == 0 {
                base.clone()
            } else {
                format!("{base}-{at}")
            }
        };
        let first = letters.first().copied().unwrap_or('<');
        for (at, letter) in letters.iter().enumerate() {
            let next = if at + 1 == letters.len() {
                then.to_owned()
            } else {
                name(at + 1)
            };
            let mut body = format!("{} {next}", literal(&letter.to_string()));
            if at == 0 {
                let _written = write!(body, " | [^{}] {base}", in_class(first));
            } else {
                let (again, one) = (in_class(first), name(1));
                let _written = write!(
                    body,
                    " | {} {one} | [^{again}{}] {base}",
                    literal(&first.to_string()),
                    in_class(*letter)
                );
            }
            if ends {
                body.push_str(" | \"\"");
            }
            self.set(&name(at), body);
        }
        base
    }

    /// The name of a rule for the values of a schema; references start at `root`.
    pub(super) fn value(&mut self, schema: &Value, root: &Value, notation: Notation) -> String {
        let Some(fields) = schema.as_object() else {
            return self.any(notation);
        };
        if fields.keys().any(|key| UNRULED.contains(&key.as_str())) {
            self.exact = false;
        }
        if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
            return self.reference(reference, root, notation);
        }
        if let Some(only) = fields.get("const") {
            let body = written(only, notation);
            return self.add("const", literal(&body));
        }
        if let Some(Value::Array(values)) = fields.get("enum") {
            let values: Vec<String> = values
                .iter()
                .map(|value| literal(&written(value, notation)))
                .collect();
            return self.add("enum", values.join(" | "));
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(Value::Array(choices)) = fields.get(keyword) {
                if fields.contains_key("properties") || keyword == "oneOf" {
                    self.exact = false;
                }
                let choices: Vec<String> = choices
                    .iter()
                    .map(|choice| self.value(choice, root, notation))
                    .collect();
                return self.add("choice", choices.join(" | "));
            }
        }
        if let Some(Value::Array(all)) = fields.get("allOf") {
            if let [only] = all.as_slice() {
                return self.value(only, root, notation);
            }
            self.exact = false;
        }
        self.typed(fields, root, notation)
    }

    fn typed(&mut self, fields: &Map<String, Value>, root: &Value, notation: Notation) -> String {
        let kinds: Vec<&str> = match fields.get("type") {
            Some(Value::String(kind)) => vec![kind.as_str()],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ if fields.contains_key("properties") => vec!["object"],
            _ if fields.contains_key("items") => vec!["array"],
            _ => return self.any(notation),
        };
        let rules: Vec<String> = kinds
            .iter()
            .map(|kind| match *kind {
                "object" => self.object(fields, root, notation),
                "array" => self.array(fields, root, notation),
                "string" => self.string(fields, notation),
                "integer" => self.primitive("integer", "\"-\"? (\"0\" | [1-9] [0-9]{0,15})"),
                "number" => self.number(),
                "boolean" => self.primitive("boolean", "\"true\" | \"false\""),
                "null" => self.primitive("null", "\"null\""),
                _ => self.any(notation),
            })
            .collect();
        match rules.as_slice() {
            [only] => only.clone(),
            _ => self.add("kinds", rules.join(" | ")),
        }
    }

    fn reference(&mut self, reference: &str, root: &Value, notation: Notation) -> String {
        let place = (notation == Notation::Gemma, reference.to_owned());
        if let Some(known) = self.known.get(&place) {
            return known.clone();
        }
        let target = if reference == "#" {
            Some(root)
        } else {
            reference
                .strip_prefix('#')
                .and_then(|path| root.pointer(path))
        };
        let Some(target) = target else {
            self.exact = false;
            return self.any(notation);
        };
        let name = self.add("ref", "\"\"".to_owned());
        self.known.insert(place, name.clone());
        let inner = self.value(target, root, notation);
        self.set(&name, inner);
        name
    }

    fn object(&mut self, fields: &Map<String, Value>, root: &Value, notation: Notation) -> String {
        let properties = fields.get("properties").and_then(Value::as_object);
        let Some(properties) = properties.filter(|properties| !properties.is_empty()) else {
            return self.open_object(fields, root, notation);
        };
        let required: Vec<&str> = fields
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if required.iter().any(|name| !properties.contains_key(*name)) {
            self.exact = false;
        }
        let mut members: Vec<(&String, &Value)> = properties.iter().collect();
        if notation == Notation::Gemma {
            // As its template writes them.
            members.sort_by_key(|(name, _schema)| name.to_lowercase());
        }
        members.sort_by_key(|(name, _schema)| !required.contains(&name.as_str()));
        let ws = self.space();
        let pairs: Vec<String> = members
            .iter()
            .map(|(name, schema)| self.pair(name, schema, root, notation))
            .collect();
        let comma = format!("{ws} \",\" {ws}");
        let must = members
            .iter()
            .take_while(|(name, _schema)| required.contains(&name.as_str()))
            .count();
        let (must, may) = pairs.split_at_checked(must).unwrap_or((&pairs, &[]));
        let optional = |names: &[String]| -> String {
            let each = names.iter().map(|name| format!(" ({comma} {name})?"));
            each.collect()
        };
        let inside = if must.is_empty() {
            let tails: Vec<String> = may
                .iter()
                .enumerate()
                .map(|(at, name)| {
                    format!("{name}{}", optional(may.get(at + 1..).unwrap_or_default()))
                })
                .collect();
            format!("({})?", tails.join(" | "))
        } else {
            format!("{}{}", must.join(&format!(" {comma} ")), optional(may))
        };
        self.add("object", format!("\"{{\" {ws} {inside} {ws} \"}}\""))
    }

    fn pair(&mut self, name: &str, schema: &Value, root: &Value, notation: Notation) -> String {
        let value = self.value(schema, root, notation);
        let ws = self.space();
        let body = match notation {
            Notation::Json => {
                let key = literal(&Value::from(name).to_string());
                format!("{key} {ws} \":\" {ws} {value}")
            }
            Notation::Gemma => format!("{} {value}", literal(&format!("{name}:"))),
        };
        self.add("pair", body)
    }

    /// An object whose keys are not known.
    fn open_object(
        &mut self,
        fields: &Map<String, Value>,
        root: &Value,
        notation: Notation,
    ) -> String {
        let ws = self.space();
        let value = match fields.get("additionalProperties") {
            Some(Value::Bool(false)) => return self.add("empty", format!("\"{{\" {ws} \"}}\"")),
            Some(schema @ Value::Object(_)) => self.value(schema, root, notation),
            _ => self.any(notation),
        };
        if fields
            .get("required")
            .and_then(Value::as_array)
            .is_some_and(|names| !names.is_empty())
        {
            self.exact = false;
        }
        let key = match notation {
            Notation::Json => {
                let string = self.plain_string(notation);
                format!("{string} {ws} \":\" {ws}")
            }
            Notation::Gemma => format!(
                "{} \":\"",
                self.primitive("key", "[a-zA-Z_] [a-zA-Z0-9_-]{0,63}")
            ),
        };
        let pair = self.add("entry", format!("{key} {value}"));
        self.add(
            "map",
            format!("\"{{\" {ws} ({pair} ({ws} \",\" {ws} {pair})*)? {ws} \"}}\""),
        )
    }

    fn array(&mut self, fields: &Map<String, Value>, root: &Value, notation: Notation) -> String {
        let item = match fields.get("items") {
            Some(Value::Array(_)) => {
                self.exact = false;
                self.any(notation)
            }
            Some(items) => self.value(items, root, notation),
            None => self.any(notation),
        };
        let ws = self.space();
        let least = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let most = fields.get("maxItems").and_then(Value::as_u64);
        if least > REPEAT_MAX || most.is_some_and(|most| most > REPEAT_MAX) {
            self.exact = false;
        }
        if most == Some(0) {
            return self.add("list", format!("\"[\" {ws} \"]\""));
        }
        let bounds = bounds(least.saturating_sub(1), most.map(|most| most - 1));
        let items = format!("{item} ({ws} \",\" {ws} {item}){bounds}");
        let items = if least == 0 {
            format!("({items})?")
        } else {
            items
        };
        self.add("list", format!("\"[\" {ws} {items} {ws} \"]\""))
    }

    fn string(&mut self, fields: &Map<String, Value>, notation: Notation) -> String {
        let least = fields.get("minLength").and_then(Value::as_u64);
        let most = fields.get("maxLength").and_then(Value::as_u64);
        let plain = self.plain_string(notation);
        if least.is_none() && most.is_none() {
            return plain;
        }
        let countable = least.unwrap_or(0).max(most.unwrap_or(0)) <= REPEAT_MAX;
        if notation == Notation::Gemma || !countable {
            self.exact = false;
            return plain;
        }
        let bounds = bounds(least.unwrap_or(0), most);
        self.add("string", format!("\"\\\"\" char{bounds} \"\\\"\""))
    }

    fn plain_string(&mut self, notation: Notation) -> String {
        match notation {
            Notation::Json => {
                self.set(
                    "char",
                    "[^\"\\\\\\x00-\\x1f\\x7f] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" [0-9a-fA-F]{4})",
                );
                self.primitive("string", "\"\\\"\" char* \"\\\"\"")
            }
            Notation::Gemma => {
                if !self.made.contains_key("gemma-string") {
                    let inside = self.until("gemma-text", "<|\"|>", "\"\"");
                    self.set("gemma-string", format!("{} {inside}", literal("<|\"|>")));
                }
                "gemma-string".to_owned()
            }
        }
    }

    fn number(&mut self) -> String {
        self.primitive(
            "number",
            "\"-\"? (\"0\" | [1-9] [0-9]{0,15}) (\".\" [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?",
        )
    }

    fn primitive(&mut self, name: &str, body: &str) -> String {
        // Names of our own end in a number, so these are free.
        self.set(name, body);
        name.to_owned()
    }

    /// Any value at all.
    pub(super) fn any(&mut self, notation: Notation) -> String {
        let name = match notation {
            Notation::Json => "value",
            Notation::Gemma => "gemma-value",
        };
        if self.made.contains_key(name) {
            return name.to_owned();
        }
        self.set(name, "\"null\"");
        let empty = Map::new();
        let kinds = [
            self.open_object(&empty, &Value::Null, notation),
            self.array(&empty, &Value::Null, notation),
            self.plain_string(notation),
            self.number(),
            self.primitive("boolean", "\"true\" | \"false\""),
            self.primitive("null", "\"null\""),
        ];
        self.set(name, kinds.join(" | "));
        name.to_owned()
    }

    /// Any object.
    pub(super) fn any_object(&mut self, notation: Notation) -> String {
        self.open_object(&Map::new(), &Value::Null, notation)
    }

    fn free(&self, hint: &str) -> String {
        let number = self.made.len();
        format!("{hint}-{number}")
    }
}

/// A schema for what a function takes: an object, even if it says nothing.
pub(super) fn parameters_of(parameters: Option<&Value>) -> Value {
    let mut schema = parameters
        .cloned()
        .unwrap_or_else(|| serde_json::json!({"type": "object"}));
    schema::tame(&mut schema);
    if let Some(fields) = schema.as_object_mut()
        && !fields.contains_key("$ref")
        && !fields.contains_key("anyOf")
    {
        fields.insert("type".to_owned(), "object".into());
    }
    schema
}

fn bounds(least: u64, most: Option<u64>) -> String {
    let least = least.min(REPEAT_MAX);
    match most.filter(|most| *most <= REPEAT_MAX) {
        Some(most) => format!("{{{least},{}}}", most.max(least)),
        None if least == 0 => "*".to_owned(),
        None => format!("{{{least},}}"),
    }
}

fn written(value: &Value, notation: Notation) -> String {
    match (notation, value) {
        (Notation::Json, value) => value.to_string(),
        (Notation::Gemma, Value::String(text)) => format!("<|\"|>{text}<|\"|>"),
        (Notation::Gemma, Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| written(item, notation)).collect();
            format!("[{}]", items.join(","))
        }
        (Notation::Gemma, Value::Object(fields)) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, field)| format!("{name}:{}", written(field, notation)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        (Notation::Gemma, value) => value.to_string(),
    }
}

/// Text between quotation marks as the notation wants it.
pub(super) fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _written = write!(out, "\\x{:02x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// A letter within a character class.
fn in_class(letter: char) -> String {
    match letter {
        ']' | '[' | '\\' | '-' | '^' => format!("\\{letter}"),
        other => other.to_string(),
    }
}
