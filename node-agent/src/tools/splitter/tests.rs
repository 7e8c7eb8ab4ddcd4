use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn tool(name: &str) -> config::wire::chat::Tool {
    config::wire::chat::Tool {
        kind: config::wire::chat::ToolKind::Function,
        function: config::wire::chat::Function {
            name: name.to_owned(),
            description: None,
            parameters: Some(json!({
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {}},
            })),
            strict: None,
        },
    }
}

fn rules(format: ToolFormat, thoughts: Option<ThinkTags>, hold: bool) -> SplitRules {
    let tools = [tool("weather"), tool("now")];
    let tools: Vec<&config::wire::chat::Tool> = tools.iter().collect();
    SplitRules {
        calls: Some(format),
        thoughts,
        start: Start::Turn,
        toolbox: Arc::new(Toolbox::new(&tools)),
        hold,
    }
}

/// The parts of one kind in one piece, as a client puts them together.
#[derive(Debug, Default, PartialEq)]
struct Whole {
    thoughts: String,
    text: String,
    calls: Vec<(String, String)>,
}

fn split(rules: &SplitRules, pieces: &[&str]) -> Whole {
    let mut splitter = Splitter::new(rules.clone());
    let mut parts = Vec::new();
    for piece in pieces {
        splitter.push(piece, &mut parts);
    }
    splitter.finish(&mut parts);
    let mut whole = Whole::default();
    for part in parts {
        match part {
            Part::Thought(text) => whole.thoughts.push_str(&text),
            Part::Text(text) => whole.text.push_str(&text),
            Part::Call { index, name } => {
                assert_eq!(usize::try_from(index), Ok(whole.calls.len()), "in order");
                whole.calls.push((name, String::new()));
            }
            Part::Arguments { index, text } => {
                let at = usize::try_from(index).expect("small");
                assert_eq!(at + 1, whole.calls.len(), "of the last call");
                whole.calls.last_mut().expect("a call").1.push_str(&text);
            }
        }
    }
    whole
}

/// Format, thoughts, answer; what comes of it: thoughts, text, calls.
type Case = (
    ToolFormat,
    Option<ThinkTags>,
    &'static str,
    &'static str,
    &'static str,
    Vec<(&'static str, Value)>,
);

fn rome() -> (&'static str, Value) {
    ("weather", json!({"city": "Rome"}))
}

fn corpus() -> Vec<Case> {
    [hermes(), llama(), mistral(), marked()].concat()
}

fn hermes() -> Vec<Case> {
    use ToolFormat::Hermes;
    let think = Some(ThinkTags::THINK);
    vec![
        (
            Hermes,
            think,
            "<think>\nhm <b\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
            "hm <b",
            "Let me see.",
            vec![rome(), ("now", json!({}))],
        ),
        (
            Hermes,
            think,
            "just <text> and </tool_call> \"é\" \u{1f600}",
            "",
            "just <text> and </tool_call> \"é\" \u{1f600}",
            vec![],
        ),
        (
            Hermes,
            None,
            "<tool_call>{\"arguments\": {\"city\": \"Rome\"}, \"name\": \"weather\"}</tool_call>",
            "",
            "",
            vec![rome()],
        ),
        (
            Hermes,
            None,
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            vec![],
        ),
    ]
}

fn llama() -> Vec<Case> {
    use ToolFormat::Llama3;
    vec![
        (
            Llama3,
            None,
            "{\"name\": \"weather\", \"parameters\": {\"city\": \"R}\\\"{\"}}",
            "",
            "",
            vec![("weather", json!({"city": "R}\"{"}))],
        ),
        (
            Llama3,
            None,
            "<|python_tag|>{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}; {\"name\": \"now\", \"parameters\": {}}",
            "",
            "",
            vec![rome(), ("now", json!({}))],
        ),
        (
            Llama3,
            None,
            "{\"name\": \"Bob\", \"age\": 3} is he",
            "",
            "{\"name\": \"Bob\", \"age\": 3} is he",
            vec![],
        ),
        (
            Llama3,
            None,
            "<|python_tag|>search.call(query=\"x\")",
            "",
            "<|python_tag|>search.call(query=\"x\")",
            vec![],
        ),
    ]
}

fn mistral() -> Vec<Case> {
    use ToolFormat::{Mistral, MistralArgs};
    vec![
        (
            Mistral,
            None,
            "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}, \"id\": \"abcdefghi\"}, {\"name\": \"now\", \"arguments\": {}}]",
            "",
            "",
            vec![rome(), ("now", json!({}))],
        ),
        (
            MistralArgs,
            Some(ThinkTags::MISTRAL),
            "[THINK]so[/THINK]Ok.[TOOL_CALLS]weather[ARGS]{\"city\": \"Rome\"}[TOOL_CALLS]now[CALL_ID]123[ARGS]{}",
            "so",
            "Ok.",
            vec![rome(), ("now", json!({}))],
        ),
        (
            MistralArgs,
            None,
            "[TOOL_CALLS]weather{\"city\": \"Rome\"}",
            "",
            "",
            vec![rome()],
        ),
    ]
}

fn marked() -> Vec<Case> {
    use ToolFormat::{Gemma4, QwenXml};
    let think = Some(ThinkTags::THINK);
    vec![
        (
            Gemma4,
            Some(ThinkTags::GEMMA4),
            "<|channel>thought\nwell<channel|>Sure.<|tool_call>call:weather{city:<|\"|>Ro\"m\\e\n<|\"|>,days:-3,more:{a:[1,true,null,<|\"|>x<|\"|>],b:{},c:[]}}<tool_call|><|tool_call>call:now{}<tool_call|>",
            "well",
            "Sure.",
            vec![
                (
                    "weather",
                    json!({"city": "Ro\"m\\e\n", "days": -3, "more": {"a": [1, true, null, "x"], "b": {}, "c": []}}),
                ),
                ("now", json!({})),
            ],
        ),
        (
            Gemma4,
            Some(ThinkTags::GEMMA4),
            "a < b, <|x",
            "",
            "a < b, <|x",
            vec![],
        ),
        (
            QwenXml,
            think,
            "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n12\n</parameter>\n<parameter=more>\n{\"a\": [1]}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "",
            "",
            vec![
                (
                    "weather",
                    json!({"city": "12", "days": 12, "more": {"a": [1]}}),
                ),
                ("now", json!({})),
            ],
        ),
        (
            QwenXml,
            None,
            "Yes. <function=now></function>",
            "",
            "Yes.",
            vec![("now", json!({}))],
        ),
    ]
}

#[test]
fn answers_of_every_format_are_read_whole_and_cut_anywhere() {
    for (format, thoughts, answer, thought, text, calls) in corpus() {
        for hold in [false, true] {
            let rules = rules(format, thoughts, hold);
            let whole = split(&rules, &[answer]);
            assert_eq!(
                (whole.thoughts.as_str(), whole.text.as_str()),
                (thought, text),
                "{answer}"
            );
            let read: Vec<(&str, Value)> = whole
                .calls
                .iter()
                .map(|(name, text)| (name.as_str(), serde_json::from_str(text).expect("JSON")))
                .collect();
            assert_eq!(read, calls, "{answer}");
            let cuts = answer.char_indices().map(|(at, _letter)| at);
            for cut in cuts {
                let (before, after) = answer.split_at(cut);
                assert_eq!(
                    split(&rules, &[before, after]),
                    whole,
                    "{answer} cut at {cut}"
                );
            }
            let letters: Vec<String> = answer.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(split(&rules, &letters), whole, "{answer} letter by letter");
        }
    }
}

#[test]
fn a_call_that_does_not_fit_its_function_stays_text_when_calls_are_checked() {
    let answer =
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"days\": \"three\"}}</tool_call>";
    let whole = split(&rules(ToolFormat::Hermes, None, true), &[answer]);
    assert_eq!((whole.text.as_str(), whole.calls.len()), (answer, 0));
    let cut = "<|tool_call>call:weather{city:<|\"|>Ro";
    let whole = split(&rules(ToolFormat::Gemma4, None, true), &[cut]);
    assert_eq!((whole.text.as_str(), whole.calls.len()), (cut, 0));
}

#[test]
fn arguments_grow_as_they_come() {
    let mut splitter = Splitter::new(rules(ToolFormat::Gemma4, None, false));
    let mut parts = Vec::new();
    splitter.push("<|tool_call>call:weather{city:<|\"|>Ro", &mut parts);
    assert_eq!(
        parts,
        vec![
            Part::Call {
                index: 0,
                name: "weather".to_owned()
            },
            Part::Arguments {
                index: 0,
                text: "{\"city\":\"Ro".to_owned()
            },
        ]
    );
}

fn fragments() -> impl Strategy<Value = Vec<&'static str>> {
    let fragment = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"now\"",
        ", \"arguments\": {",
        "}",
        "}}",
        "\"",
        "\\",
        "<|tool_call>",
        "call:now{",
        "city:<|\"|>",
        "<|\"|>",
        "<tool_call|>",
        "[TOOL_CALLS]",
        "[",
        "]",
        "now[ARGS]{",
        "<function=now>",
        "<parameter=city>",
        "</parameter>",
        "</function>",
        "<|channel>thought",
        "<channel|>",
        " ",
        "\n",
        "é",
        "a",
        ";",
        ",",
        "<|python_tag|>",
    ]);
    prop::collection::vec(fragment, 0..16)
}

proptest! {
    #[test]
    fn whatever_a_model_says_the_cuts_do_not_matter(
        fragments in fragments(),
        format in prop::sample::select(vec![ToolFormat::Hermes, ToolFormat::Gemma4, ToolFormat::Llama3, ToolFormat::Mistral, ToolFormat::MistralArgs, ToolFormat::QwenXml]),
        thoughts in prop::sample::select(vec![None, Some(ThinkTags::THINK), Some(ThinkTags::GEMMA4)]),
        hold in any::<bool>(),
    ) {
        let answer = fragments.concat();
        let rules = rules(format, thoughts, hold);
        let whole = split(&rules, &[&answer]);
        prop_assert_eq!(&split(&rules, &fragments), &whole);
        let letters: Vec<String> = answer.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        prop_assert_eq!(&split(&rules, &letters), &whole);
    }
}
