use std::sync::LazyLock;
use std::time::UNIX_EPOCH;

use config::wire::valid::{ChatRequest, CompletionRequest};

use super::*;

fn planned(template: &str, body: &Value) -> Result<Plan, Refused> {
    let template = Template::new(Some(template), "", "", false)?;
    let chat = ChatRequest::parse(body.to_string().as_bytes()).map_err(Refused::Body)?;
    plan(&chat, &setting(&template))
}

static DEFAULTS: LazyLock<SamplingDefaults> = LazyLock::new(|| SamplingDefaults {
    temperature: Some(0.5),
    top_k: Some(40),
    ..SamplingDefaults::default()
});

fn setting(template: &Template) -> Setting<'_> {
    Setting {
        template,
        defaults: &DEFAULTS,
        modalities: Modalities::default(),
        deadline: Duration::from_secs(9),
        priority: Priority::default(),
        links: &[],
        said: None,
        principal: 7,
        max_tokens: None,
        now: UNIX_EPOCH,
    }
}

fn body(fields: Value) -> Value {
    let mut body = json!({"model": "auto", "messages": [{"role": "user", "content": "x"}]});
    if let (Some(all), Value::Object(fields)) = (body.as_object_mut(), fields) {
        all.extend(fields);
    }
    body
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "b"}}])
}

const HERMES: &str = "{{ tools }}<tool_call>";

#[test]
fn a_request_wins_over_the_tier_and_the_tier_over_the_engine() {
    let plan = planned("x", &body(json!({"temperature": 0, "seed": 5, "n": 2, "max_tokens": 3, "stop": "s", "logit_bias": {"4": -100}})))
        .expect("a plan");
    let [first, second] = plan.specs.as_slice() else {
        panic!("two choices");
    };
    assert_eq!(
        (first.sampling.temperature, first.sampling.top_k),
        (0.0, 40)
    );
    assert_eq!(
        (first.sampling.seed, second.sampling.seed),
        (Some(5), Some(6))
    );
    assert_eq!(first.sampling.logit_bias, vec![(4, -100.0)]);
    assert_eq!((first.max_tokens, first.principal), (Some(3), 7));
    assert_eq!(first.stop, vec!["s"]);
}

#[test]
fn a_forced_call_is_all_that_the_grammar_lets_through() {
    let asked = json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "b"}}, "parallel_tool_calls": false});
    let forced = planned(HERMES, &body(asked)).expect("a plan");
    let spec = forced.specs.first().expect("a choice");
    let Some(Grammar::Gbnf(grammar)) = &spec.grammar else {
        panic!("a grammar");
    };
    assert!(grammar.contains("root ::= \"<tool_call>\" "), "{grammar}");
    assert!(
        grammar.contains("\\\"b\\\"") && !grammar.contains("\\\"a\\\""),
        "{grammar}"
    );
    assert_eq!((forced.form_param, forced.rules.hold), ("tools", false));

    let thinking = planned(
        "{{ tools }}<tool_call></think><think>\n",
        &body(json!({"tools": tools(), "tool_choice": "required"})),
    );
    let thinking = thinking.expect("a plan");
    assert_eq!(thinking.rules.start, Start::Thought);
    let spec = thinking.specs.first().expect("a choice");
    assert!(
        matches!(&spec.grammar, Some(Grammar::Gbnf(text)) if text.contains("root ::= thought-"))
    );
}

#[test]
fn a_form_waits_for_the_thoughts_unless_only_the_engine_can_say_it() {
    let thinks = "</think><think>\n";
    let easy = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}});
    let easy = planned(thinks, &body(easy)).expect("a plan");
    assert_eq!(easy.rules.start, Start::Thought);
    let spec = easy.specs.first().expect("a choice");
    assert!(matches!(&spec.grammar, Some(Grammar::Gbnf(_))));

    let hard = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "string", "pattern": "^[a-z]+$"}}}});
    let hard = planned(thinks, &body(hard)).expect("a plan");
    assert_eq!(hard.rules.start, Start::Turn);
    let spec = hard.specs.first().expect("a choice");
    assert!(matches!(&spec.grammar, Some(Grammar::JsonSchema(_))));
    assert!(matches!(&spec.prompt, Prompt::Text { text, .. } if text.ends_with("</think>\n\n")));
}

#[test]
fn a_form_and_tools_go_together() {
    let both = json!({"tools": tools(), "response_format": {"type": "json_object"}});
    let both = planned(HERMES, &body(both)).expect("a plan");
    let spec = both.specs.first().expect("a choice");
    assert!(
        matches!(&spec.grammar, Some(Grammar::Gbnf(text)) if text.contains("root ::= (\"<tool_call>\""))
    );
}

#[test]
fn a_malformed_schema_is_refused_with_its_place() {
    let bad = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"a": {"type": "text"}}}}}});
    match planned("x", &body(bad)) {
        Err(Refused::Malformed { param, .. }) => {
            assert_eq!(
                param,
                "response_format.json_schema.schema.properties.a.type"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_field() {
    for (template, fields, want) in [
        (
            HERMES,
            json!({"tools": tools(), "grammar": "root ::= \"a\""}),
            "grammar",
        ),
        (
            HERMES,
            json!({"grammar": "root ::= \"a\"", "response_format": {"type": "json_object"}}),
            "grammar",
        ),
    ] {
        match planned(template, &body(fields.clone())) {
            Err(Refused::Unsupported { param, .. }) => assert_eq!(param, want),
            other => panic!("{fields} gave {other:?}"),
        }
    }
    let off = json!({"tools": tools(), "tool_choice": "none", "response_format": {"type": "json_object"}});
    let plan = planned(HERMES, &body(off)).expect("tools are off");
    assert!(plan.rules.calls.is_none());
}

#[test]
fn thinking_is_turned_off_where_it_has_no_room() {
    let shows = "{{ enable_thinking }}{{ reasoning_effort }}</think>";
    for (fields, want) in [
        (json!({}), "</think>"),
        (json!({"reasoning_effort": "high"}), "high</think>"),
        (json!({"reasoning_effort": "none"}), "Falsenone</think>"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"pattern": "^a$"}}}}),
            "False</think>",
        ),
    ] {
        let plan = planned(shows, &body(fields)).expect("a plan");
        let spec = plan.specs.first().expect("a choice");
        assert!(
            matches!(&spec.prompt, Prompt::Text { text, .. } if text == want),
            "{want}: {:?}",
            spec.prompt
        );
    }
}

#[test]
fn completions_are_planned_prompt_by_prompt() {
    let template = Template::new(None, "", "", false).expect("parses");
    let body = json!({"model": "auto", "prompt": ["a", [1, 2]], "n": 2, "logprobs": 3});
    let asked = CompletionRequest::parse(body.to_string().as_bytes()).expect("valid");
    let plan = plan_completion(&asked, &setting(&template), None).expect("planned");
    let tokens: Vec<bool> = plan
        .specs
        .iter()
        .map(|spec| matches!(spec.prompt, Prompt::Tokens(_)))
        .collect();
    assert_eq!(tokens, [false, false, true, true]);
    assert_eq!(plan.specs.first().and_then(|spec| spec.logprobs), Some(3));
}

#[test]
fn a_strict_schema_is_enforced_whole_or_refused_and_another_as_far_as_possible() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "."}}});
    let format = |strict: bool| {
        let inner = json!({"name": "n", "schema": schema, "strict": strict});
        body(json!({"response_format": {"type": "json_schema", "json_schema": inner}}))
    };
    let refused = planned(HERMES, &format(true));
    assert!(
        matches!(&refused, Err(Refused::Unsupported { param, .. })
            if param == "response_format.json_schema.schema.properties.a.pattern"),
        "{refused:?}"
    );
    let plan = planned(HERMES, &format(false)).expect("a loose schema is tamed");
    let tamed = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    assert_eq!(plan.specs[0].grammar, Some(Grammar::JsonSchema(tamed)));

    let tool = json!({"name": "t", "parameters": schema, "strict": true});
    let tools = json!([{"type": "function", "function": tool}]);
    let forced = body(json!({"tools": tools, "tool_choice": "required"}));
    let refused = planned(HERMES, &forced);
    assert!(
        matches!(&refused, Err(Refused::Unsupported { param, .. })
            if param == "tools[0].function.parameters.properties.a.pattern"),
        "{refused:?}"
    );
}

#[test]
fn every_rule_of_sampling_comes_from_the_request_or_the_tier() {
    let template = Template::new(Some("x"), "", "", false).expect("a template");
    let tier = SamplingDefaults {
        top_n_sigma: Some(1.5),
        repeat_last_n: Some(256),
        dry_multiplier: Some(0.8),
        dry_base: Some(2.0),
        xtc_probability: Some(0.2),
        mirostat: Some(2),
        mirostat_tau: Some(4.0),
        ..SamplingDefaults::default()
    };
    let setting = Setting {
        defaults: &tier,
        ..setting(&template)
    };
    let asked = body(json!({
        "dynatemp_range": 0.5, "typical_p": 0.9, "xtc_probability": 0.5, "repetition_penalty": 1.2, "dry_base": 3,
        "dry_sequence_breakers": ["|"], "mirostat": 0, "min_tokens": 4, "ignore_eos": true, "repeat_last_n": -1, "top_k": -1,
    }));
    let chat = ChatRequest::parse(asked.to_string().as_bytes()).expect("a request");
    let spec = plan(&chat, &setting).expect("a plan").specs.remove(0);
    let rules = spec.sampling;
    let dry = rules.dry.expect("the tier switches it on");
    assert_eq!((dry.multiplier, dry.base), (0.8, 3.0));
    assert_eq!(dry.breakers, ["|"]);
    assert_eq!((rules.top_n_sigma, rules.dynatemp_range), (1.5, 0.5));
    assert_eq!((rules.typical_p, rules.xtc_probability), (0.9, 0.5));
    assert_eq!(
        (rules.repeat_penalty, rules.repeat_last_n),
        (1.2, Some(u32::MAX))
    );
    assert_eq!((rules.mirostat, rules.top_k), (None, 0));
    assert_eq!((spec.min_tokens, spec.ignore_eos), (4, true));
}
