//! The whole of a request to fill the middle of a text, in llama-server's form.

use serde_json::{Map, Value, json};

use super::ask::model;
use super::read::{Object, as_object, unsupported};
use super::{Generation, Invalid, Unknown, json, options};
use crate::tier::Tier;
use crate::wire::wishes::Wishes;

const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
const FILES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 1_024;

/// A file that the model may look at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExtraFile {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// A request to fill a hole after every check.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidInfill {
    /// `model` as sent.
    pub model: String,
    /// `tier` of the body.
    pub tier: Option<Tier>,
    /// What is before the hole.
    pub prefix: String,
    /// What is after it.
    pub suffix: String,
    /// How what fills it begins.
    pub prompt: String,
    /// Other files, the most useful last.
    pub extra: Vec<ExtraFile>,
    /// What completions have too.
    pub generation: Generation,
    /// What it wishes for in its `hearth` member; stays on the proxy.
    pub wishes: Wishes,
    /// Whom the caller serves; stays on the proxy.
    pub user: Option<String>,
    /// Keys that were not understood.
    pub unknown: Unknown,
}

impl ValidInfill {
    /// Reads and checks a body.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut map = json::object(bytes)?;
        // llama-server's name for the same.
        if let Some(most) = map.remove("n_predict")
            && most.as_i64() != Some(-1)
        {
            map.entry("max_tokens").or_insert(most);
        }
        let mut body = Object::root(map);
        if body.boolean("stream")? == Some(true) {
            return Err(unsupported(
                "stream",
                "an infill is not streamed; use /v1/completions with prompt and suffix for that",
            ));
        }
        options::ignore(&mut body);
        let text = |body: &mut Object, key: &str| {
            let text = body.string(key, TEXT_BYTES_MAX)?;
            Ok::<String, Invalid>(text.unwrap_or_default())
        };
        let generation = options::generation(&mut body)?;
        if generation.n > 1 {
            return Err(unsupported("n", "an infill has one answer; leave it out"));
        }
        Ok(Self {
            model: model(&mut body)?,
            tier: options::tier(&mut body)?,
            prefix: text(&mut body, "input_prefix")?,
            suffix: text(&mut body, "input_suffix")?,
            prompt: text(&mut body, "prompt")?,
            extra: extra(&mut body)?,
            generation,
            wishes: Wishes::take(&mut body)?,
            user: options::end_user(&mut body, 512)?,
            unknown: body.unknown(),
        })
    }

    /// The body for a node.
    pub fn to_node_body(&self) -> Value {
        let mut body = Map::new();
        for (key, text) in [
            ("model", &self.model),
            ("input_prefix", &self.prefix),
            ("input_suffix", &self.suffix),
            ("prompt", &self.prompt),
        ] {
            body.insert(key.to_owned(), text.clone().into());
        }
        let files = self.extra.iter();
        let files: Vec<Value> = files
            .map(|file| json!({"filename": file.name, "text": file.text}))
            .collect();
        if !files.is_empty() {
            body.insert("input_extra".to_owned(), files.into());
        }
        options::write(&self.generation, &mut body);
        Value::Object(body)
    }
}

fn extra(body: &mut Object) -> Result<Vec<ExtraFile>, Invalid> {
    let items = body.array("input_extra", FILES_MAX)?.unwrap_or_default();
    let read = items.into_iter().enumerate().map(|(index, item)| {
        let mut file = as_object(format!("input_extra[{index}]"), item)?;
        Ok(ExtraFile {
            name: file.string("filename", NAME_BYTES_MAX)?.unwrap_or_default(),
            text: file.required_string("text", TEXT_BYTES_MAX)?,
        })
    });
    read.collect()
}
