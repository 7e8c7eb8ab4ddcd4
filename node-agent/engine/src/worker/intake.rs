//! From a request frame to a job that fits: everything that can be wrong with it is said here.

use std::time::Instant;

use scheduler::Job;
use scheduler::JobId;
use scheduler::Principal;
use scheduler::Token;
use scheduler::admit;

use super::answer::Answer;
use crate::check;
use crate::engine::Engine;
use crate::sampling::Sampler;
use crate::spec::GenerateSpec;
use crate::spec::Prompt;
use crate::spec::Refusal;

/// Makes a job of a request, or says why not.
pub(super) fn prepare(
    id: JobId,
    spec: &GenerateSpec,
    engine: &dyn Engine,
    seed_default: Option<u64>,
    now: Instant,
) -> Result<Job<Answer>, Refusal> {
    check::generate(spec)?;
    let prompt = read_prompt(&spec.prompt, engine)?;
    let n_ctx = engine.card().n_ctx;
    let admission = admit(prompt.len(), spec.max_tokens, n_ctx).map_err(|long| {
        Refusal::ContextLengthExceeded {
            prompt_tokens: long.prompt_tokens,
            max_tokens: long.max_tokens,
            n_ctx: long.n_ctx,
        }
    })?;
    let mut sampler = Sampler::new(spec.sampling.clone(), seed_default, &prompt);
    if let Some(grammar) = &spec.grammar {
        let constraint = engine
            .constraint(grammar)
            .map_err(|reason| Refusal::BadGrammar { reason })?;
        sampler.constrain(constraint);
    }
    if spec.ignore_eos {
        sampler.ban(engine.end_tokens());
    }
    Ok(Job {
        id,
        principal: Principal(spec.principal),
        arrived: now,
        deadline: spec.deadline.and_then(|left| now.checked_add(left)),
        payload: Answer::new(spec, sampler, prompt.len(), admission.tokens_max),
        prompt,
    })
}

fn read_prompt(prompt: &Prompt, engine: &dyn Engine) -> Result<Vec<Token>, Refusal> {
    let invalid = |reason: String| Refusal::Invalid {
        param: "prompt".to_owned(),
        reason,
    };
    let tokens = match prompt {
        Prompt::Text {
            text,
            parse_special,
            add_special,
        } => engine.tokenize(text, *add_special, *parse_special),
        Prompt::Tokens(tokens) => {
            let n_vocab = engine.card().n_vocab;
            let is_unknown = |token: &&i32| u32::try_from(**token).map_or(true, |id| id >= n_vocab);
            if let Some(unknown) = tokens.iter().find(is_unknown) {
                return Err(invalid(format!("token {unknown} is not below {n_vocab}")));
            }
            tokens.iter().copied().map(Token).collect()
        }
    };
    if tokens.is_empty() {
        return Err(invalid("it has no tokens".to_owned()));
    }
    Ok(tokens)
}
