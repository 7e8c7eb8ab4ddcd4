//! From a request frame to a job that fits: everything that can be wrong with it is said here.

use std::time::Instant;

use ring::digest::Context;
use ring::digest::SHA256;
use scheduler::Class;
use scheduler::Job;
use scheduler::JobId;
use scheduler::Principal;
use scheduler::Token;
use scheduler::Wall;
use scheduler::admit;

use super::answer::Answer;
use super::media;
use super::media::PromptMedia;
use crate::check;
use crate::engine::Engine;
use crate::sampling::Sampler;
use crate::spec::GenerateSpec;
use crate::spec::Priority;
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
    let (mut prompt, media) = read_prompt(spec, engine)?;
    let n_ctx = engine.card().n_ctx;
    let admission = admit(prompt.len(), spec.max_tokens, n_ctx).map_err(|long| {
        Refusal::ContextLengthExceeded {
            prompt_tokens: long.prompt_tokens,
            max_tokens: long.max_tokens,
            n_ctx: long.n_ctx,
        }
    })?;
    let tokens_max = spec.tokens_at_most.map_or(admission.tokens_max, |most| {
        most.clamp(1, admission.tokens_max)
    });
    let text: Vec<Token> = prompt
        .iter()
        .copied()
        .filter(|token| token.0 >= 0)
        .collect();
    let n_vocab = engine.card().n_vocab;
    let mut sampler = Sampler::new(spec.sampling.clone(), seed_default, &text, n_vocab);
    read_texts(&mut sampler, &text, engine);
    if let Some(grammar) = &spec.grammar {
        let constraint = engine
            .constraint(grammar)
            .map_err(|reason| Refusal::BadGrammar { reason })?;
        sampler.constrain(constraint);
    }
    if spec.ignore_eos {
        sampler.ban(engine.end_tokens(), u64::MAX);
    } else if spec.min_tokens > 0 {
        sampler.ban(engine.end_tokens(), u64::from(spec.min_tokens));
    }
    let mut answer = Answer::new(spec, sampler, prompt.len(), tokens_max);
    answer.media = media;
    let cells = prompt.len() + usize::try_from(tokens_max).unwrap_or(usize::MAX);
    if let Some(resume) = &spec.resume {
        let begun = answer.replay(&resume.tokens, engine);
        let begun = begun.map_err(|reason| Refusal::Invalid {
            param: "resume".to_owned(),
            reason,
        })?;
        prompt.extend(begun);
    }
    Ok(Job {
        id,
        principal: Principal(spec.principal),
        class: class(spec.priority),
        begun: spec.resume.is_some(),
        wall: wall(spec),
        // What is not kept cannot be found again.
        links: if spec.cache_prompt {
            spec.links.clone()
        } else {
            Vec::new()
        },
        cells,
        arrived: now,
        deadline: spec.deadline.and_then(|left| now.checked_add(left)),
        payload: answer,
        prompt,
    })
}

const fn class(priority: Priority) -> Class {
    match priority {
        Priority::Interactive => Class::Interactive,
        Priority::Normal => Class::Normal,
        Priority::Batch => Class::Batch,
    }
}

/// Tells a sampler what the prompt says, if one of its rules looks at text.
fn read_texts(sampler: &mut Sampler, prompt: &[Token], engine: &dyn Engine) {
    let start = prompt.len().saturating_sub(sampler.reads());
    let mut piece = Vec::new();
    for token in prompt.get(start..).unwrap_or_default() {
        piece.clear();
        engine.append_piece(*token, true, &mut piece);
        sampler.read(*token, &piece);
    }
}

/// Who may reuse this prompt: everybody with the same salt, or else the same principal.
fn wall(spec: &GenerateSpec) -> Wall {
    let mut named = Context::new(&SHA256);
    if let Some(salt) = &spec.cache_salt {
        named.update(b"salt");
        named.update(salt.as_bytes());
    } else {
        named.update(b"principal");
        named.update(&spec.principal.to_le_bytes());
    }
    let digest = named.finish();
    let (half, _rest) = digest.as_ref().split_at(size_of::<u128>());
    Wall(
        half.iter()
            .fold(0, |number, byte| number << 8 | u128::from(*byte)),
    )
}

fn read_prompt(
    spec: &GenerateSpec,
    engine: &dyn Engine,
) -> Result<(Vec<Token>, PromptMedia), Refusal> {
    let invalid = |reason: String| Refusal::Invalid {
        param: "prompt".to_owned(),
        reason,
    };
    let mut placed = PromptMedia::default();
    let tokens = match &spec.prompt {
        Prompt::Segments(segments) => {
            let (tokens, found) = media::read_prompt(segments, &spec.media, engine)?;
            placed = found;
            tokens
        }
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
    Ok((tokens, placed))
}
