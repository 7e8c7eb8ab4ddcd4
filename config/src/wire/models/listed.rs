//! The list of models of a server that is not ours: Ollama, vLLM, LM Studio, llama-server, a cloud. Reads what they agree on and where each
//! says how long a request may be; never fails on a member that nobody has seen yet.

use serde::Deserialize;
use serde_json::Value;

/// A list of models that is longer, in bytes, is not one.
pub const LIST_BYTES_MAX: usize = 1024 * 1024;
/// Models beyond these are not looked at.
const MODELS_MAX: usize = 1_000;
/// Bytes of a name that somebody could write into a request.
const NAME_BYTES_MAX: usize = 256;

/// What `GET /v1/models` of another server answers.
#[derive(Debug, Deserialize)]
pub struct Listing {
    data: Vec<Listed>,
}

/// One model of another server.
#[derive(Debug, Deserialize)]
pub struct Listed {
    /// What a request to that server puts into `model`.
    pub id: String,
    /// vLLM, and our own nodes.
    #[serde(default)]
    max_model_len: Option<u32>,
    /// llama-server.
    #[serde(default)]
    meta: Option<Meta>,
    /// llama-server's router, and our own nodes; a word that we do not know says nothing.
    #[serde(default)]
    status: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Meta {
    /// Of the slot that is set up.
    #[serde(default)]
    n_ctx: Option<u32>,
    /// Of the training, when nothing smaller is said.
    #[serde(default)]
    n_ctx_train: Option<u32>,
}

impl Listing {
    /// Reads it; `None` if this is no list of models.
    pub fn read(body: &[u8]) -> Option<Self> {
        let mut list: Self = serde_json::from_slice(body).ok()?;
        list.data.truncate(MODELS_MAX);
        list.data.retain(Listed::has_a_name);
        Some(list)
    }

    /// The model of this name; without one the first.
    pub fn find(&self, wanted: Option<&str>) -> Option<&Listed> {
        let is_it = |one: &&Listed| wanted.is_none_or(|wanted| one.id == wanted);
        self.data.iter().find(is_it)
    }

    /// Every name, in the server's order.
    pub fn names(&self) -> Vec<String> {
        self.data.iter().map(|one| one.id.clone()).collect()
    }
}

impl Listed {
    /// Tokens of one request, prompt and answer together, if the server tells.
    pub fn n_ctx(&self) -> Option<u32> {
        let of_meta = |meta: &Meta| meta.n_ctx.or(meta.n_ctx_train);
        self.max_model_len
            .or_else(|| self.meta.as_ref().and_then(of_meta))
    }

    /// Whether it is on its way and will answer later by itself.
    pub fn is_on_its_way(&self) -> bool {
        let word = self
            .status
            .as_ref()
            .and_then(|status| status["value"].as_str());
        matches!(word, Some("loading" | "downloading"))
    }

    fn has_a_name(&self) -> bool {
        (1..=NAME_BYTES_MAX).contains(&self.id.len()) && !self.id.chars().any(char::is_control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Listing {
        Listing::read(body.as_bytes()).expect("a list")
    }

    #[test]
    fn each_server_says_in_its_own_place_how_long_a_request_may_be() {
        for (member, n_ctx) in [
            (r#""max_model_len": 8192"#, Some(8_192)),
            (
                r#""meta": {"n_ctx": 4096, "n_ctx_train": 131072}"#,
                Some(4_096),
            ),
            (r#""meta": {"n_ctx_train": 131072}"#, Some(131_072)),
            (r#""owned_by": "library""#, None),
        ] {
            let list = read(&format!(r#"{{"data": [{{"id": "a", {member}}}]}}"#));
            assert_eq!(list.find(None).expect("one").n_ctx(), n_ctx, "{member}");
        }
    }

    #[test]
    fn a_model_that_is_loading_is_on_its_way_and_an_unknown_word_says_nothing() {
        for (status, is_on_its_way) in [
            (r#"{"value": "loading"}"#, true),
            (r#"{"value": "downloading", "args": []}"#, true),
            (r#"{"value": "loaded"}"#, false),
            (r#"{"value": "unloaded"}"#, false),
            (r#""resting""#, false),
            ("null", false),
        ] {
            let list = read(&format!(
                r#"{{"data": [{{"id": "a", "status": {status}}}]}}"#
            ));
            let found = list.find(Some("a")).expect("it is there");
            assert_eq!(found.is_on_its_way(), is_on_its_way, "{status}");
        }
    }

    #[test]
    fn names_that_nobody_could_write_are_not_listed() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let list = read(&format!(
            r#"{{"data": [{{"id": ""}}, {{"id": "a\nb"}}, {{"id": "{long}"}}, {{"id": "good"}}]}}"#
        ));
        assert_eq!(list.names(), ["good"]);
        assert!(list.find(Some("other")).is_none());
    }

    #[test]
    fn something_else_is_no_list() {
        for body in ["", "[]", r#"{"models": []}"#, "<html>"] {
            assert!(Listing::read(body.as_bytes()).is_none(), "{body}");
        }
    }
}
