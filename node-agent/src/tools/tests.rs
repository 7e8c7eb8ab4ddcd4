use super::*;

fn tool(name: &str, parameters: Value) -> Tool {
    Tool {
        kind: config::wire::chat::ToolKind::Function,
        function: config::wire::chat::Function {
            name: name.to_owned(),
            description: None,
            parameters: Some(parameters),
            strict: None,
        },
    }
}

#[test]
fn one_tool_needs_no_choice_and_definitions_move_to_the_root() {
    let first = tool(
        "a",
        json!({"type": "object", "$defs": {"city": {"type": "string"}}, "properties": {"c": {"$ref": "#/$defs/city"}}}),
    );
    let schema = call_schema(&[&first]).expect("a schema");
    assert_eq!(schema["properties"]["name"], json!({"const": "a"}));
    assert_eq!(schema["$defs"]["city"], json!({"type": "string"}));
    assert!(schema["properties"]["arguments"].get("$defs").is_none());

    let second = tool(
        "b",
        json!({"type": "object", "$defs": {"city": {"type": "integer"}}}),
    );
    assert!(call_schema(&[&first, &first]).expect("the same twice is fine")["anyOf"].is_array());
    assert_eq!(
        call_schema(&[&first, &second]),
        Err(DefinitionClash("city".to_owned()))
    );
}

#[test]
fn a_template_without_tools_gets_them_as_text() {
    assert_eq!(
        ToolSyntax::of_template("{{ messages }}"),
        ToolSyntax::Hermes
    );
    assert_eq!(
        ToolSyntax::of_template("{{ tools }} <tool_call>"),
        ToolSyntax::Hermes
    );
    assert_eq!(
        ToolSyntax::of_template("{{ tools }} <|python_tag|>"),
        ToolSyntax::Foreign
    );

    let mut asked = text_message(Role::Assistant, String::new());
    asked.tool_calls.push(config::wire::chat::ToolCall {
        id: "call_1".to_owned(),
        kind: config::wire::chat::ToolKind::Function,
        function: config::wire::chat::FunctionCall {
            name: "a".to_owned(),
            arguments: "{\"x\":1}".to_owned(),
        },
    });
    let answered = text_message(Role::Tool, "42".to_owned());
    let messages = [text_message(Role::User, "?".to_owned()), asked, answered];
    let rewritten = described(&messages, &[tool("a", json!({}))]);
    let texts: Vec<(Role, String)> = rewritten
        .iter()
        .map(|message| (message.role, message.text()))
        .collect();
    assert_eq!(texts[0].0, Role::System);
    assert!(texts[0].1.contains("\"name\":\"a\""));
    assert_eq!(
        texts[2].1,
        "<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\":1}}\n</tool_call>"
    );
    assert_eq!(
        texts[3],
        (
            Role::User,
            "<tool_response>\n42\n</tool_response>".to_owned()
        )
    );
    assert_eq!(described(&messages, &[]).len(), 3);
}
