//! The model list, from what nodes reported: answers from memory, never waits for a node.

use config::wire::models::{Architecture, Meta, Model, ModelList, Status, StatusValue};
use policy::refusal::Refusal;
use policy::registry::{Listed, ListedState};

/// Ids named to a caller who asked for one that does not exist.
const NEAREST_MAX: usize = 5;

/// `GET /v1/models`
pub fn list(listed: Vec<Listed>, created: i64) -> ModelList {
    ModelList::new(listed.into_iter().map(|one| model(one, created)).collect())
}

/// `GET /v1/models/{id}`
pub fn one(listed: Vec<Listed>, id: &str, created: i64) -> Result<Model, Refusal> {
    let nearest = listed
        .iter()
        .map(|one| one.id.clone())
        .take(NEAREST_MAX)
        .collect();
    listed
        .into_iter()
        .find(|one| one.id == id)
        .map(|one| model(one, created))
        .ok_or_else(|| Refusal::UnknownModel {
            model: id.chars().take(256).collect(),
            nearest,
        })
}

fn model(listed: Listed, created: i64) -> Model {
    let mut model = Model::new(listed.id, created);
    model.tier = listed.tier;
    model.context_length = listed.n_ctx;
    model.max_model_len = listed.n_ctx;
    model.status = Some(Status {
        value: match listed.state {
            ListedState::Ready => StatusValue::Loaded,
            ListedState::Loading => StatusValue::Loading,
            ListedState::Sleeping => StatusValue::Sleeping,
            ListedState::Unavailable => StatusValue::Unloaded,
        },
    });
    if let Some(file) = listed.model {
        let mut input_modalities = vec!["text".to_owned()];
        input_modalities.extend(file.modalities.into_iter().filter(|kind| kind != "text"));
        model.architecture = Some(Architecture {
            input_modalities,
            output_modalities: vec!["text".to_owned()],
        });
        model.meta = Some(Meta {
            n_ctx_train: file.n_ctx_train,
            n_params: file.parameters,
            size: file.size_bytes,
        });
    }
    model
}

#[cfg(test)]
mod tests {
    use policy::registry::ListedKind;

    use super::*;

    fn listed(id: &str, state: ListedState) -> Listed {
        let kind = ListedKind::Model;
        Listed {
            id: id.into(),
            kind,
            tier: None,
            state,
            model: None,
            n_ctx: Some(512),
            nodes: Vec::new(),
        }
    }

    #[test]
    fn a_model_is_found_by_its_whole_id() {
        let all = || {
            vec![
                listed("a/b:q4", ListedState::Ready),
                listed("c", ListedState::Unavailable),
            ]
        };
        let found = one(all(), "a/b:q4", 7).unwrap();
        assert_eq!((found.created, found.context_length), (7, Some(512)));
        let refused = one(all(), "a/b", 7).unwrap_err();
        assert!(
            matches!(refused, Refusal::UnknownModel { nearest, .. } if nearest == ["a/b:q4", "c"])
        );
    }

    #[test]
    fn the_state_is_told_in_the_words_of_llama_server() {
        let json = serde_json::to_value(list(vec![listed("c", ListedState::Loading)], 7)).unwrap();
        assert_eq!(json["data"][0]["status"]["value"], "loading");
        assert!(
            json["data"][0].get("meta").is_none(),
            "unknown members are left out, never null"
        );
    }
}
