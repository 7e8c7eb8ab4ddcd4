//! The list of models, as `GET /v1/models` answers it. Shape only; who may see which model is decided above.

mod listed;

use serde::{Deserialize, Serialize};

pub use listed::{LIST_BYTES_MAX, Listed, Listing};

/// `GET /v1/models`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models, in the order in which they are shown.
    pub data: Vec<Model>,
}

impl ModelList {
    /// A list of these models.
    pub fn new(data: Vec<Model>) -> Self {
        Self {
            object: "list".to_owned(),
            data,
        }
    }
}

/// One model. The first four members are required by the schema; the rest is left out when unknown, never null.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Model {
    /// What a request puts into `model`.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    /// `hearth`.
    pub owned_by: String,
    /// Input and output kinds, as llama-server names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// What the file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<Meta>,
    /// Whether it can answer now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Tokens of one request, prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// The same as vLLM names it; several clients look only here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    /// The tier that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<crate::tier::Tier>,
}

impl Model {
    /// A model of which nothing more is known.
    pub fn new(id: impl Into<String>, created: i64) -> Self {
        Self {
            id: id.into(),
            object: "model".to_owned(),
            created,
            owned_by: "hearth".to_owned(),
            architecture: None,
            meta: None,
            status: None,
            context_length: None,
            max_model_len: None,
            tier: None,
        }
    }
}

/// Input and output kinds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Architecture {
    /// `text`, `image`, `audio`.
    pub input_modalities: Vec<String>,
    /// `text`.
    pub output_modalities: Vec<String>,
}

/// What the model's file says.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Meta {
    /// Tokens the model was trained for.
    pub n_ctx_train: u32,
    /// Weights.
    pub n_params: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// Whether the model can answer now.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Status {
    /// The word.
    pub value: StatusValue,
}

/// Words of llama-server's router.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusValue {
    /// No node has it now.
    Unloaded,
    /// A worker is starting.
    Loading,
    /// Answers.
    Loaded,
    /// Put away, loaded on demand.
    Sleeping,
    /// Its file is on the way.
    Downloading,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_are_left_out_rather_than_null() {
        let list = ModelList::new(vec![Model::new("auto", 1_700_000_000)]);
        assert_eq!(
            serde_json::to_string(&list).expect("serialises"),
            r#"{"object":"list","data":[{"id":"auto","object":"model","created":1700000000,"owned_by":"hearth"}]}"#
        );
    }
}
