//! Stories of text completions.

use serde_json::{Value, json};

use super::super::*;
use super::completion;

#[test]
fn text_completions_take_every_form_of_prompt() {
    let base = |prompt: Value| json!({"model": "fast", "prompt": prompt});
    let prompts = |body: &Value| completion(body).map(|valid| valid.prompts);
    assert_eq!(
        prompts(&base(json!("a"))),
        Ok(vec![Prompt::Text("a".to_owned())])
    );
    assert_eq!(
        prompts(&base(json!([1, 2]))),
        Ok(vec![Prompt::Tokens(vec![1, 2])])
    );
    assert_eq!(
        prompts(&base(json!(["a", [3]]))),
        Ok(vec![Prompt::Text("a".to_owned()), Prompt::Tokens(vec![3])])
    );
    for (prompt, param) in [
        (json!(null), "prompt"),
        (json!([]), "prompt"),
        (json!(5), "prompt"),
        (json!([1, "a"]), "prompt[1]"),
        (json!([1, -1]), "prompt[1]"),
        (json!([[]]), "prompt[0]"),
        (json!(["a", {}]), "prompt[1]"),
        (json!(vec!["a"; 9]), "prompt"),
    ] {
        let error = completion(&base(prompt.clone())).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some(param), "{prompt}");
    }
}

#[test]
fn text_completions_refuse_what_they_do_not_offer() {
    let base = json!({"model": "fast", "prompt": "a"});
    for (key, value, code) in [
        ("echo", json!(true), InvalidCode::UnsupportedParameter),
        ("best_of", json!(2), InvalidCode::UnsupportedParameter),
        ("logprobs", json!(6), InvalidCode::InvalidValue),
    ] {
        let mut body = base.clone();
        body[key] = value;
        let error = completion(&body).expect_err("refused");
        assert_eq!((error.param.as_deref(), error.code), (Some(key), code));
    }
    let many = json!({"model": "fast", "prompt": ["a", "b", "c"], "n": 3});
    assert_eq!(
        completion(&many).expect_err("refused").param.as_deref(),
        Some("n")
    );
    let body = json!({"model": "fast", "prompt": "a", "echo": false, "suffix": "", "best_of": 1, "logprobs": 2, "max_tokens": 4});
    let valid = completion(&body).expect("valid");
    assert_eq!(
        valid.to_node_body(),
        json!({"model": "fast", "prompt": "a", "stream": false, "max_tokens": 4, "logprobs": 2})
    );
    assert_eq!(completion(&valid.to_node_body()), Ok(valid));
}
