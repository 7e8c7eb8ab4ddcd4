//! A grammar of llama.cpp behind a type that never asks it again after it failed, which would abort.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use scheduler::Token;

use crate::engine::Candidate;
use crate::engine::Constraint;

/// A compiled grammar and its place in an answer.
pub(super) struct LlamaConstraint {
    pub(super) sampler: LlamaSampler,
    /// It refused a token; asking it again would abort.
    pub(super) broken: bool,
}

impl Constraint for LlamaConstraint {
    fn retain_allowed(&mut self, candidates: &mut Vec<Candidate>) {
        if self.broken {
            candidates.clear();
        }
        let data = candidates.iter().map(|candidate| {
            LlamaTokenData::new(LlamaToken(candidate.token.0), candidate.logit, 0.0)
        });
        let mut array = LlamaTokenDataArray::new(data.collect(), false);
        if array.data.is_empty() {
            return;
        }
        self.sampler.apply(&mut array);
        candidates.clear();
        let allowed = array
            .data
            .iter()
            .filter(|data| data.logit() > f32::NEG_INFINITY);
        candidates.extend(allowed.map(|data| Candidate {
            token: Token(data.id().0),
            logit: data.logit(),
        }));
    }

    fn accept(&mut self, token: Token) -> Result<(), String> {
        if self.broken {
            return Err("the grammar has failed before".to_owned());
        }
        self.sampler
            .try_accept(LlamaToken(token.0))
            .map_err(|error| {
                self.broken = true;
                format!("the grammar does not go on with token {token:?}: {error}")
            })
    }
}
