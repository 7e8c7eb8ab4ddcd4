//! Prompts with known answers: how many are right, how long they take, how many tokens they cost. Judges text; never another model.

use std::fmt::Write as _;
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Answer, Ask, Client, ClientError};
use super::table::{ms, percentile};
use crate::models::progress::float;

const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const PROMPTS_MAX: usize = 100_000;
/// A pattern of a stranger's file may not eat the memory.
const REGEX_BYTES_MAX: usize = 4 * 1024 * 1024;
const TOKENS_DEFAULT: u32 = 256;
/// Wrong answers that are shown.
const SHOWN_MAX: usize = 5;
const SHOWN_CHARS: usize = 80;

/// One line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    messages: Option<Value>,
    #[serde(default)]
    expect: Option<String>,
    #[serde(default)]
    equals: Option<String>,
    #[serde(default)]
    contains: Vec<String>,
    #[serde(default)]
    json: Option<Value>,
    #[serde(default)]
    max_tokens: Option<u32>,
}

/// One prompt and how its answer is judged. All that is given must hold.
#[derive(Debug)]
struct Case {
    id: String,
    messages: Value,
    max_tokens: u32,
    expect: Option<Regex>,
    equals: Option<String>,
    contains: Vec<String>,
    /// `true`: any JSON; an object: its fields are in the answer with these values.
    json: Option<Value>,
}

/// A whole file.
#[derive(Debug)]
pub struct Set {
    cases: Vec<Case>,
}

/// What came of it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Report {
    /// The tier or model.
    pub name: String,
    /// Prompts.
    pub prompts: usize,
    /// Right answers.
    pub right: usize,
    /// Right answers of all.
    pub accuracy: f64,
    /// Milliseconds to the end of an answer, the middle.
    pub answer_p50_ms: f64,
    /// The same, of which one in twenty is longer.
    pub answer_p95_ms: f64,
    /// Milliseconds to the first token, the middle.
    pub ttft_p50_ms: f64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Tokens of answers for each right one; `None` if none is right.
    pub tokens_per_right_answer: Option<f64>,
    /// The first wrong ones.
    pub wrong: Vec<Wrong>,
}

/// A wrong answer.
#[derive(Debug, Eq, PartialEq, Serialize)]
pub struct Wrong {
    /// Which prompt.
    pub id: String,
    /// What was wrong with the answer.
    pub why: String,
    /// How it began.
    pub answer: String,
}

impl Set {
    /// Reads a file; the first wrong line is told with its number.
    pub fn read(path: &Path) -> Result<Self, String> {
        let told = |reason: String| format!("{}: {reason}", path.display());
        let meta = std::fs::metadata(path).map_err(|error| told(error.to_string()))?;
        if meta.len() > FILE_BYTES_MAX {
            return Err(told("larger than 64 MiB".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| told(error.to_string()))?;
        Self::parse(&text).map_err(told)
    }

    /// Reads lines.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut cases = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let number = index + 1;
            let case = case(line, number).map_err(|reason| format!("line {number}: {reason}"))?;
            cases.push(case);
        }
        match cases.len() {
            0 => Err("holds no prompt".to_owned()),
            1..=PROMPTS_MAX => Ok(Self { cases }),
            more => Err(format!("holds {more} prompts; at most {PROMPTS_MAX}")),
        }
    }
}

fn case(line: &str, number: usize) -> Result<Case, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let messages = match (line.prompt, line.messages) {
        (Some(prompt), None) => Ask::user(&prompt),
        (None, Some(messages)) if messages.is_array() => messages,
        (None | Some(_), _) => {
            return Err(
                "needs a prompt, or messages as the API takes them; one of the two".to_owned(),
            );
        }
    };
    let expect = line.expect.as_deref().map(|pattern| {
        RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES_MAX)
            .build()
            .map_err(|error| format!("expect is no regular expression: {error}"))
    });
    let expect = expect.transpose()?;
    let judged = expect.is_some()
        || line.equals.is_some()
        || !line.contains.is_empty()
        || line.json.is_some();
    if !judged {
        return Err("needs expect (a regular expression), equals, contains or json".to_owned());
    }
    Ok(Case {
        id: line.id.unwrap_or_else(|| format!("line {number}")),
        messages,
        max_tokens: line.max_tokens.unwrap_or(TOKENS_DEFAULT),
        expect,
        equals: line.equals,
        contains: line.contains,
        json: line.json,
    })
}

impl Case {
    /// What is wrong with an answer; `None` if it is right.
    fn wrong(&self, answer: &str) -> Option<String> {
        let text = answer.trim();
        if let Some(expect) = &self.expect
            && !expect.is_match(text)
        {
            return Some(format!("does not match {}", expect.as_str()));
        }
        if let Some(equals) = &self.equals
            && text != equals.trim()
        {
            return Some(format!("is not \"{}\"", shown(equals)));
        }
        if let Some(missing) = self
            .contains
            .iter()
            .find(|part| !text.contains(part.as_str()))
        {
            return Some(format!("does not contain \"{}\"", shown(missing)));
        }
        let wanted = self.json.as_ref()?;
        match serde_json::from_str::<Value>(text) {
            Err(_error) => Some("is no JSON".to_owned()),
            Ok(found) if holds(&found, wanted) => None,
            Ok(_) => Some(format!("does not hold {wanted}")),
        }
    }
}

/// Whether `found` has all that `wanted` has; `true` wants nothing in particular.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (_, Value::Bool(true)) => true,
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(key, value)| {
            found
                .get(key)
                .is_some_and(|there| there == value || holds_object(there, value))
        }),
        (found, wanted) => found == wanted,
    }
}

fn holds_object(found: &Value, wanted: &Value) -> bool {
    wanted.is_object() && holds(found, wanted)
}

fn shown(text: &str) -> String {
    let mut short: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_CHARS)
        .collect();
    if text.chars().count() > SHOWN_CHARS {
        short.push('…');
    }
    short
}

/// Asks all of them, one after the other, at temperature 0.
pub async fn ask(set: &Set, client: &Client, name: &str) -> Result<Report, ClientError> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut wrong = Vec::new();
    let mut right = 0;
    for case in &set.cases {
        let answer = client
            .ask(&Ask {
                messages: case.messages.clone(),
                max_tokens: case.max_tokens,
                to_the_end: false,
                temperature: Some(0.0),
                json: case.json.is_some(),
                seed: 1,
            })
            .await?;
        match case.wrong(&answer.text) {
            None => right += 1,
            Some(why) if wrong.len() < SHOWN_MAX => wrong.push(Wrong {
                id: case.id.clone(),
                why,
                answer: shown(&answer.text),
            }),
            Some(_) => {}
        }
        answers.push(answer);
    }
    Ok(Report::new(name, &answers, right, wrong))
}

impl Report {
    fn new(name: &str, answers: &[Answer], right: usize, wrong: Vec<Wrong>) -> Self {
        let wholes: Vec<f64> = answers.iter().map(|answer| ms(answer.whole)).collect();
        let firsts: Vec<f64> = answers.iter().map(|answer| ms(answer.first)).collect();
        let tokens: u64 = answers.iter().map(|answer| answer.completion_tokens).sum();
        let count = |count: usize| float(u64::try_from(count).unwrap_or(u64::MAX));
        Self {
            name: name.to_owned(),
            prompts: answers.len(),
            right,
            accuracy: count(right) / count(answers.len().max(1)),
            answer_p50_ms: percentile(&wholes, 50),
            answer_p95_ms: percentile(&wholes, 95),
            ttft_p50_ms: percentile(&firsts, 50),
            completion_tokens: tokens,
            tokens_per_right_answer: (right > 0).then(|| float(tokens) / count(right)),
            wrong,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: {} of {} right ({:.1} %), answer P50 {:.1} ms, P95 {:.1} ms, TTFT P50 {:.1} ms, {} tokens",
            self.name,
            self.right,
            self.prompts,
            self.accuracy * 100.0,
            self.answer_p50_ms,
            self.answer_p95_ms,
            self.ttft_p50_ms,
            self.completion_tokens,
        );
        if let Some(tokens) = self.tokens_per_right_answer {
            let _written = write!(text, ", {tokens:.1} for each right answer");
        }
        for wrong in &self.wrong {
            let _written = write!(text, "\n  {}: {}: {}", wrong.id, wrong.why, wrong.answer);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(line: &str, answer: &str) -> Option<String> {
        let set = Set::parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        set.cases.first().and_then(|case| case.wrong(answer))
    }

    #[test]
    fn an_answer_is_right_when_all_that_is_asked_for_holds() {
        let line = r#"{"prompt": "x", "expect": "(?i)^paris", "contains": ["Seine", "tower"]}"#;
        assert_eq!(wrong(line, " Paris on the Seine, with a tower"), None);
        assert!(wrong(line, "In Paris").is_some_and(|why| why.contains("does not match")));
        assert!(wrong(line, "Paris").is_some_and(|why| why.contains("\"Seine\"")));
        assert_eq!(wrong(r#"{"prompt": "x", "equals": "Hi."}"#, "Hi.\n"), None);
        let json = r#"{"prompt": "x", "json": {"a": {"b": 1}}}"#;
        assert_eq!(wrong(json, r#"{"a": {"b": 1, "c": 2}, "d": 3}"#), None);
        assert!(wrong(json, r#"{"a": {"b": 2}}"#).is_some());
        assert!(wrong(json, "no").is_some_and(|why| why == "is no JSON"));
        assert_eq!(wrong(r#"{"prompt": "x", "json": true}"#, "[1]"), None);
    }

    #[test]
    fn a_wrong_line_is_told_with_its_number() {
        for (line, want) in [
            (r#"{"prompt": "x"}"#, "needs expect"),
            (r#"{"expect": "x"}"#, "needs a prompt"),
            (r#"{"prompt": "x", "expect": "("}"#, "no regular expression"),
            (r#"{"prompt": "x", "expekt": "x"}"#, "unknown field"),
            ("nonsense", "expected"),
        ] {
            let error = Set::parse(&format!("\n{line}")).expect_err(line);
            assert!(
                error.starts_with("line 2: ") && error.contains(want),
                "{error}"
            );
        }
        assert!(Set::parse("\n").is_err());
    }
}
