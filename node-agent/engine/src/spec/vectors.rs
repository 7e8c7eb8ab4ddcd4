//! What an engine does besides answering: numbers for texts, and what it needs to fill a hole in one. Plain values.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use super::Refusal;

/// What a worker does with its model.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Text for text.
    #[default]
    Generate,
    /// A vector for a text. `None` pools as the model file says, or else takes the mean.
    Embed(Option<Pooling>),
    /// A number for a question and a document.
    Rerank,
}

/// How one vector is made of those of all tokens.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
}

impl Pooling {
    /// Names it as settings do.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
        }
    }
}

/// A low-rank change to the weights of a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Lora {
    /// The GGUF file.
    pub path: PathBuf,
    /// How much of it: 0 is nothing, 1 what was trained.
    pub scale: f32,
}

/// What a model for vectors says about itself.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Vectors {
    /// Numbers in one vector; 1 when documents are ranked.
    pub width: u32,
    /// Tokens of the longest text.
    pub tokens_max: u32,
    /// Whether it ranks pairs instead of placing texts.
    pub ranks: bool,
}

/// The control tokens around a hole in a text.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Fim {
    /// Before what comes before the hole.
    pub prefix: i32,
    /// Before what comes after it.
    pub suffix: i32,
    /// Before what fills it.
    pub middle: i32,
    /// Before the name of a repository.
    pub repository: Option<i32>,
    /// Before each file of it.
    pub file: Option<i32>,
}

/// One text to be turned into numbers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedInput {
    /// A text.
    Text(String),
    /// Its tokens.
    Tokens(Vec<i32>),
    /// A question and a document whose match is asked for.
    Pair {
        /// The question.
        query: String,
        /// The document.
        document: String,
    },
}

impl EmbedInput {
    /// About as much as it takes in a frame.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) => tokens.len() * 8,
            Self::Pair { query, document } => query.len() + document.len(),
        }
    }
}

/// The numbers for some texts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Embedded {
    /// One vector for each text, in their order; as the model makes them, of any length.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of each text.
    pub tokens: Vec<u32>,
}

/// Why there are none.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EmbedError {
    /// Which text is to blame, if one is.
    pub input: Option<u32>,
    /// Why.
    pub refusal: Refusal,
}

impl From<Refusal> for EmbedError {
    fn from(refusal: Refusal) -> Self {
        Self {
            input: None,
            refusal,
        }
    }
}
