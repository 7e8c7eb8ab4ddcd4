//! Vectors, ranks and words: what is accepted, and where a mistake is found.

use serde_json::json;

use super::super::{AskKind, Prompt, ValidAsk, ValidEmbeddings, ValidRerank};

fn bytes(value: &serde_json::Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

#[test]
fn texts_come_alone_in_lists_and_as_tokens() {
    let text = |text: &str| Prompt::Text(text.to_owned());
    for (input, want) in [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (
            json!([[1], [2, 3]]),
            vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
        ),
    ] {
        let body = json!({"model": "m", "input": input});
        let asked = ValidEmbeddings::parse(&bytes(&body)).expect("valid");
        assert_eq!(asked.inputs, want);
        assert!(!asked.base64);
    }
}

#[test]
fn mistakes_are_named_with_their_place() {
    let long: Vec<&str> = vec!["a"; 2_049];
    for (kind, body, param) in [
        (AskKind::Embeddings, json!({"model": "m"}), "input"),
        (AskKind::Embeddings, json!({"input": []}), "input"),
        (AskKind::Embeddings, json!({"input": long}), "input"),
        (AskKind::Embeddings, json!({"input": ["a", 1]}), "input[1]"),
        (AskKind::Embeddings, json!({"input": ["a", ""]}), "input[1]"),
        (
            AskKind::Embeddings,
            json!({"input": "a", "dimensions": 0}),
            "dimensions",
        ),
        (
            AskKind::Embeddings,
            json!({"input": "a", "encoding_format": "int8"}),
            "encoding_format",
        ),
        (AskKind::Rerank, json!({"query": "q"}), "documents"),
        (
            AskKind::Rerank,
            json!({"query": "q", "documents": ["a", {"image": "x"}]}),
            "documents[1]",
        ),
        (AskKind::Tokenize, json!({}), "content"),
        (
            AskKind::Detokenize,
            json!({"tokens": [1, "a"]}),
            "tokens[1]",
        ),
        (AskKind::Infill, json!({"stream": true}), "stream"),
    ] {
        let invalid = ValidAsk::parse(kind, &bytes(&body)).expect_err("a mistake");
        assert_eq!(invalid.param.as_deref(), Some(param), "{body}");
    }
}

#[test]
fn what_a_node_gets_reads_as_what_was_asked() {
    for (kind, body) in [
        (
            AskKind::Embeddings,
            json!({"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 3}),
        ),
        (
            AskKind::Rerank,
            json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": true}),
        ),
        (
            AskKind::Infill,
            json!({"model": "m", "input_prefix": "a", "input_suffix": "b", "n_predict": 4, "temperature": 0.0}),
        ),
        (
            AskKind::Tokenize,
            json!({"content": "a", "with_pieces": true}),
        ),
    ] {
        let asked = ValidAsk::parse(kind, &bytes(&body)).expect("valid");
        let again = ValidAsk::parse(kind, &bytes(&asked.to_node_body())).expect("valid");
        assert_eq!(again.to_node_body(), asked.to_node_body());
        assert_eq!(again.text_bytes, asked.text_bytes);
        assert_eq!(asked.unknown.count, 0);
    }
}

#[test]
fn documents_may_be_objects_with_text() {
    let body = json!({"query": "q", "documents": [{"text": "a"}, "b"]});
    let asked = ValidRerank::parse(&bytes(&body)).expect("valid");
    assert_eq!(asked.documents, ["a", "b"]);
    assert_eq!(asked.model, "auto");
}
