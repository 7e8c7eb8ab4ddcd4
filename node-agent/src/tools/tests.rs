use serde_json::json;

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
fn a_template_without_tools_gets_them_as_text() {
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
