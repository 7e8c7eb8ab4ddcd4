use proptest::prelude::*;

use super::*;

const TOOLS: SplitRules = SplitRules {
    tools: true,
    thoughts: true,
    start: Start::Turn,
};

/// Splits pieces and joins neighbours, because where text is cut does not matter.
fn split<'a>(rules: SplitRules, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
    let mut splitter = Splitter::new(rules);
    let mut parts = Vec::new();
    for piece in pieces {
        splitter.push(piece, &mut parts);
    }
    splitter.finish(&mut parts);
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(all)), Part::Text(more)) => all.push_str(&more),
            (Some(Part::Thought(all)), Part::Thought(more)) => all.push_str(&more),
            (Some(Part::Arguments { text: all, .. }), Part::Arguments { text: more, .. }) => {
                all.push_str(&more);
            }
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

fn thought(text: &str) -> Part {
    Part::Thought(text.to_owned())
}

fn call(index: u32, name: &str) -> Part {
    Part::Call {
        index,
        name: name.to_owned(),
    }
}

fn arguments(index: u32, text: &str) -> Part {
    Part::Arguments {
        index,
        text: text.to_owned(),
    }
}

#[test]
fn text_and_calls_are_told_apart() {
    for (answer, want) in [
        ("Hello\n", vec![text("Hello\n")]),
        (
            "\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}</tool_call>\"}}\n</tool_call>\n",
            vec![call(0, "a"), arguments(0, "{\"x\": \"}</tool_call>\"}")],
        ),
        (
            "Sure. <tool_call>{\"name\":\"a\",\"parameters\":{}}</tool_call> <tool_call>{\"name\":\"b\",\"arguments\":[1]}</tool_call> Done",
            vec![
                text("Sure."),
                call(0, "a"),
                arguments(0, "{}"),
                call(1, "b"),
                arguments(1, "[1]"),
                text(" Done"),
            ],
        ),
        (
            "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"late\"}</tool_call>",
            vec![call(0, "late"), arguments(0, "{\"x\":1}")],
        ),
        (
            "<tool_call>{\"name\": \"quoted\", \"arguments\": \"{\\\"x\\\": 1}\"}</tool_call>",
            vec![call(0, "quoted"), arguments(0, "{\"x\": 1}")],
        ),
        (
            "<tool_call>{\"name\": \"none\"}</tool_call>",
            vec![call(0, "none"), arguments(0, "{}")],
        ),
        (
            "<tool_call>no json</tool_call>",
            vec![text("<tool_call>no json</tool_call>")],
        ),
        ("a < b <tool", vec![text("a < b <tool")]),
    ] {
        assert_eq!(split(TOOLS, [answer]), want, "{answer}");
    }
}

#[test]
fn an_answer_that_was_cut_keeps_what_came() {
    for (answer, want) in [
        (
            "<tool_call>{\"name\": \"a\"",
            vec![text("<tool_call>{\"name\": \"a\"")],
        ),
        (
            "<tool_call>{\"name\": \"a\", \"arguments\": {\"x",
            vec![call(0, "a"), arguments(0, "{\"x")],
        ),
        // A stop string took the closing tag.
        (
            "<tool_call>{\"name\": \"a\", \"arguments\": {}}\n",
            vec![call(0, "a"), arguments(0, "{}")],
        ),
        ("<think>half", vec![thought("half")]),
    ] {
        assert_eq!(split(TOOLS, [answer]), want, "{answer}");
    }
}

#[test]
fn thoughts_come_first_and_only_where_they_are_expected() {
    let answer = "<think>\nWell, so.\n</think>\n\nYes.";
    assert_eq!(
        split(TOOLS, [answer]),
        vec![thought("Well, so."), text("Yes.")]
    );
    let plain = SplitRules::default();
    assert_eq!(split(plain, [answer]), vec![text(answer)]);
    let opened = SplitRules {
        start: Start::Thought,
        ..TOOLS
    };
    assert_eq!(
        split(opened, ["\nWell</think>Yes"]),
        vec![thought("Well"), text("Yes")]
    );
    assert_eq!(split(TOOLS, ["<think></think>Yes"]), vec![text("Yes")]);
}

#[test]
fn a_forced_call_starts_within_the_tag() {
    let forced = SplitRules {
        start: Start::Call,
        ..TOOLS
    };
    assert_eq!(
        split(forced, ["{\"name\":\"a\",\"arguments\":{\"x\":[1,2]}}"]),
        vec![call(0, "a"), arguments(0, "{\"x\":[1,2]}")]
    );
}

#[test]
fn arguments_stream_before_the_call_is_complete() {
    let mut splitter = Splitter::new(TOOLS);
    let mut parts = Vec::new();
    splitter.push(
        "<tool_call>{\"name\": \"a\", \"arguments\": {\"text\": \"long",
        &mut parts,
    );
    assert_eq!(parts, vec![call(0, "a"), arguments(0, "{\"text\": \"long")]);
}

/// Pieces that are likely to hit every stage.
fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("<tool_call>".to_owned()),
        Just("</tool_call>".to_owned()),
        Just("{\"name\": \"f\", \"arguments\": {\"k\": \"v\"}}".to_owned()),
        Just("{\"arguments\": {}, \"name\": \"g\"}".to_owned()),
        Just("{\"name\": \"é\\\"\", \"parameters\": [1, {\"a\": []}]}".to_owned()),
        Just("<think>".to_owned()),
        Just("</think>".to_owned()),
        Just("<tool".to_owned()),
        Just("\n \n".to_owned()),
        "[ -~éß日]{0,12}",
        "[x]{500,520}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_cut_gives_the_same_parts(
        fragments in proptest::collection::vec(fragment(), 0..12),
        cuts in proptest::collection::vec(0_usize..600, 0..24),
        tools: bool,
        thoughts: bool,
        start in prop_oneof![Just(Start::Turn), Just(Start::Thought), Just(Start::Call)],
    ) {
        let rules = SplitRules { tools, thoughts, start };
        let answer = fragments.concat();
        let whole = split(rules, [answer.as_str()]);
        let letters: Vec<String> = answer.chars().map(String::from).collect();
        prop_assert_eq!(&split(rules, letters.iter().map(String::as_str)), &whole);
        let mut pieces = Vec::new();
        let mut rest = answer.as_str();
        for cut in cuts {
            let (piece, tail) = rest.split_at(rest.floor_char_boundary(cut));
            pieces.push(piece);
            rest = tail;
        }
        pieces.push(rest);
        prop_assert_eq!(&split(rules, pieces), &whole);
    }

    #[test]
    fn without_rules_the_text_is_untouched(answer in ".{0,200}") {
        let parts = split(SplitRules::default(), [answer.as_str()]);
        let said: String = parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Thought(_) | Part::Call { .. } | Part::Arguments { .. } => "?",
        }).collect();
        prop_assert_eq!(said, answer);
    }
}
