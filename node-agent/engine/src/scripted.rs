//! An engine that computes nothing: canned answers, delays, refusals and crashes, for tests and demonstrations.
//!
//! It is chosen by a model path that starts with `script:`, followed by what it says or by the JSON of a [`Script`]. Its
//! vocabulary is the 256 bytes and two `ChatML` tokens, so every path through the worker is the same as with a real model.

use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use scheduler::BatchPlan;
use scheduler::KvState;
use scheduler::Rollback;
use scheduler::SlotId;
use scheduler::Token;
use serde::Deserialize;
use serde::Serialize;

use crate::engine::Candidate;
use crate::engine::Constraint;
use crate::engine::DraftWish;
use crate::engine::Engine;
use crate::engine::EngineFault;
use crate::engine::PreparedMedia;
use crate::engine::Snapshot;
use crate::media::Media;
use crate::media::Modalities;
use crate::spec::Device;
use crate::spec::Grammar;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;

const SCHEME: &str = "script:";
const TURN_END: Token = Token(256);
const TURN_START: Token = Token(257);
const VOCABULARY: usize = 258;
const N_CTX_TRAIN: u32 = 8_192;
/// Far enough apart that no temperature ever draws another token.
const CERTAIN: f32 = 1_000.0;

/// What follows the token that starts the answer's turn.
const TURN_HEAD: &str = "assistant\n";
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What a scripted engine does.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// The answer to every prompt that no reply is for.
    pub say: String,
    /// Answers to certain prompts; the first that fits is given.
    pub replies: Vec<ScriptedReply>,
    /// Duration of every step.
    pub step_ms: u64,
    /// Additional duration for every prompt token.
    pub prompt_token_us: u64,
    /// Time before the model is ready.
    pub load_ms: u64,
    /// Refuse to load, for this reason.
    pub refuse_load: Option<String>,
    /// End the process while loading.
    pub crash_on_load: bool,
    /// End the process in the step that reads the end of a prompt with this text.
    pub crash_on: Option<String>,
    /// End the process after this many tokens of answers.
    pub crash_after_tokens: Option<u64>,
    /// Fail the step that reads the end of a prompt with this text.
    pub fault_on: Option<String>,
}

/// An answer to prompts that contain a text.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedReply {
    /// The text.
    pub when: String,
    /// The answer.
    pub say: String,
}

impl Script {
    /// An engine that gives one answer to everything.
    pub fn say(text: impl Into<String>) -> Self {
        Self {
            say: text.into(),
            ..Self::default()
        }
    }

    /// An engine whose model cannot be loaded.
    pub fn refuse_load(reason: impl Into<String>) -> Self {
        Self {
            refuse_load: Some(reason.into()),
            ..Self::default()
        }
    }

    /// The model path that selects this script.
    pub fn path(&self) -> PathBuf {
        let json = serde_json::to_string(self).unwrap_or_default();
        PathBuf::from(format!("{SCHEME}{json}"))
    }

    /// Reads a model path; `None` if it names a file.
    pub(crate) fn from_path(path: &Path) -> Option<Result<Self, String>> {
        let script = path.to_str()?.strip_prefix(SCHEME)?;
        if script.starts_with('{') {
            return Some(serde_json::from_str(script).map_err(|error| error.to_string()));
        }
        Some(Ok(Self::say(script)))
    }
}

/// Plays a script and calls `run` with it.
pub(crate) fn with_engine<R>(
    spec: &LoadSpec,
    script: Script,
    run: impl FnOnce(&mut dyn Engine) -> R,
) -> Result<R, LoadError> {
    thread::sleep(Duration::from_millis(script.load_ms));
    if script.crash_on_load {
        std::process::abort();
    }
    if let Some(reason) = script.refuse_load {
        return Err(LoadError::Model {
            path: SCHEME.to_owned(),
            reason,
        });
    }
    let mut engine = ScriptedEngine::new(spec, script);
    Ok(run(&mut engine))
}

struct ScriptedEngine {
    script: Script,
    card: ModelCard,
    batch_max: usize,
    actors: Vec<Actor>,
    /// The logits of the last plan, by index in it.
    outputs: Vec<Option<Vec<f32>>>,
    tokens_made: u64,
}

/// One slot's part in the play.
#[derive(Clone, Debug, Default)]
struct Actor {
    cached: Vec<Token>,
    reply: Vec<u8>,
    /// Length of the prompt that the reply is for.
    prompt_len: usize,
}

impl Actor {
    /// How much of the reply is there already: of an answer that goes on.
    fn said(&self) -> usize {
        let turn = self.cached.rsplit(|token| *token == TURN_START).next();
        let begun = turn.and_then(|turn| turn.get(TURN_HEAD.len()..));
        let begun = begun.unwrap_or_default();
        let said = self.reply.get(..begun.len()).unwrap_or_default();
        let is_said = said.iter().map(|byte| i32::from(*byte));
        if is_said.eq(begun.iter().map(|token| token.0)) {
            begun.len()
        } else {
            0
        }
    }
}

impl ScriptedEngine {
    fn new(spec: &LoadSpec, script: Script) -> Self {
        let n_ctx = if spec.n_ctx == 0 {
            N_CTX_TRAIN
        } else {
            spec.n_ctx.min(N_CTX_TRAIN)
        };
        let card = ModelCard {
            architecture: "scripted".to_owned(),
            name: "scripted".to_owned(),
            chat_template: Some(TEMPLATE.to_owned()),
            bos_token: String::new(),
            eos_token: "<|im_end|>".to_owned(),
            control_tokens: Vec::new(),
            add_bos: false,
            n_ctx,
            n_ctx_train: N_CTX_TRAIN,
            n_vocab: 258,
            parameters: 0,
            size_bytes: 0,
            quantization: "none".to_owned(),
            slots: spec.slots,
            threads: 1,
            devices: vec![Device {
                name: "CPU".to_owned(),
                description: "no computation".to_owned(),
                memory_free_bytes: 0,
                memory_total_bytes: 0,
            }],
            gpu_layers: 0,
            modalities: Modalities::default(),
            vectors: None,
            fim: None,
        };
        Self {
            actors: vec![Actor::default(); usize::from(spec.slots)],
            batch_max: usize::try_from(spec.batch).unwrap_or(1),
            script,
            card,
            outputs: Vec::new(),
            tokens_made: 0,
        }
    }

    /// Chooses the answer to the prompt that a slot has just read.
    fn cast(&mut self, slot: usize) -> Result<(), EngineFault> {
        let Some(actor) = self.actors.get_mut(slot) else {
            return Ok(());
        };
        let bytes: Vec<u8> = actor
            .cached
            .iter()
            .filter_map(|token| u8::try_from(token.0).ok())
            .collect();
        let prompt = String::from_utf8_lossy(&bytes);
        let has = |text: &Option<String>| {
            text.as_ref()
                .is_some_and(|text| prompt.contains(text.as_str()))
        };
        if has(&self.script.crash_on) {
            std::process::abort();
        }
        if has(&self.script.fault_on) {
            return Err(EngineFault {
                reason: "the script says so".to_owned(),
                caches_intact: true,
            });
        }
        let reply = self
            .script
            .replies
            .iter()
            .find(|reply| prompt.contains(&reply.when));
        let say = reply.map_or(&self.script.say, |reply| &reply.say);
        actor.reply = say.clone().into_bytes();
        actor.prompt_len = actor.cached.len() - actor.said();
        Ok(())
    }

    fn speak(&mut self, slot: usize) -> Vec<f32> {
        self.tokens_made += 1;
        if self
            .script
            .crash_after_tokens
            .is_some_and(|most| self.tokens_made > most)
        {
            std::process::abort();
        }
        let next = self.actors.get(slot).and_then(|actor| {
            let said = actor.cached.len() - actor.prompt_len;
            actor.reply.get(said).map(|byte| usize::from(*byte))
        });
        let mut logits = vec![0.0; VOCABULARY];
        let end = usize::try_from(TURN_END.0).unwrap_or(0);
        if let Some(logit) = logits.get_mut(next.unwrap_or(end)) {
            *logit = CERTAIN;
        }
        // Whoever must not end goes on with dots.
        if next.is_none() {
            logits[usize::from(b'.')] = CERTAIN / 2.0;
        }
        logits
    }
}

impl Engine for ScriptedEngine {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }

    fn tokenize(&self, text: &str, _add_special: bool, parse_special: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let special = [("<|im_start|>", TURN_START), ("<|im_end|>", TURN_END)]
                .into_iter()
                .find_map(|(name, token)| Some((rest.strip_prefix(name)?, token)))
                .filter(|_found| parse_special);
            if let Some((after, token)) = special {
                tokens.push(token);
                rest = after;
            } else {
                let (head, tail) = rest.split_at(character.len_utf8());
                tokens.extend(head.bytes().map(|byte| Token(i32::from(byte))));
                rest = tail;
            }
        }
        tokens
    }

    fn begin_token(&self) -> Option<Token> {
        None
    }

    fn append_piece(&self, token: Token, special: bool, into: &mut Vec<u8>) {
        match token {
            TURN_START if special => into.extend_from_slice(b"<|im_start|>"),
            TURN_END if special => into.extend_from_slice(b"<|im_end|>"),
            Token(byte) => into.extend(u8::try_from(byte).ok()),
        }
    }

    fn end_tokens(&self) -> &[Token] {
        &[TURN_END]
    }

    fn kv_state(&self, _slot: SlotId, len: usize) -> KvState {
        KvState {
            len,
            oldest: (len > 0).then_some(0),
            rollback: Rollback::Any,
        }
    }

    fn keep_prefix(&mut self, slot: SlotId, len: usize) -> bool {
        if let Some(actor) = self.actors.get_mut(usize::from(slot.0)) {
            actor.cached.truncate(len);
        }
        true
    }

    fn decode(&mut self, plan: &BatchPlan) -> Result<(), EngineFault> {
        let prompt_tokens = u64::try_from(plan.prefill_len()).unwrap_or(u64::MAX);
        let reading =
            Duration::from_micros(self.script.prompt_token_us.saturating_mul(prompt_tokens));
        thread::sleep(Duration::from_millis(self.script.step_ms).saturating_add(reading));
        self.outputs.clear();
        self.outputs.resize(plan.tokens().len(), None);
        for part in plan.parts() {
            let slot = usize::from(part.slot.0);
            for (index, planned) in (part.start..).zip(plan.tokens_of(part)) {
                if let Some(actor) = self.actors.get_mut(slot) {
                    actor.cached.push(planned.token);
                }
                if !planned.output {
                    continue;
                }
                if part.prefill {
                    self.cast(slot)?;
                }
                let logits = self.speak(slot);
                if let Some(place) = self.outputs.get_mut(index) {
                    *place = Some(logits);
                }
            }
        }
        Ok(())
    }

    fn kv_tokens_max(&self) -> usize {
        let n_ctx = usize::try_from(self.card.n_ctx).unwrap_or(usize::MAX);
        n_ctx.saturating_mul(usize::from(self.card.slots))
    }

    fn snapshot(&mut self, slot: SlotId, tokens: &[Token]) -> Option<Snapshot> {
        Some(Snapshot {
            bytes: self.snapshot_bytes(slot),
            kv: self.kv_state(slot, tokens.len()),
            state: Box::new(self.actors.get(usize::from(slot.0))?.clone()),
        })
    }

    fn snapshot_bytes(&self, slot: SlotId) -> usize {
        let actor = self.actors.get(usize::from(slot.0));
        actor.map_or(0, |actor| actor.cached.len() * size_of::<Token>())
    }

    fn restore(&mut self, slot: SlotId, snapshot: &Snapshot) -> bool {
        let actor = self.actors.get_mut(usize::from(slot.0));
        match (actor, snapshot.state.downcast_ref::<Actor>()) {
            (Some(actor), Some(kept)) => {
                *actor = kept.clone();
                true
            }
            (Some(_) | None, None) | (None, Some(_)) => false,
        }
    }

    fn copied_state(&self, slot: SlotId, len: usize) -> KvState {
        self.kv_state(slot, len)
    }

    fn copy(&mut self, from: SlotId, to: SlotId) -> bool {
        let taken = self.snapshot(from, &[]);
        taken.is_some_and(|taken| self.restore(to, &taken))
    }

    fn save(&self, _slot: SlotId, _tokens: &[Token], _path: &Path) -> Result<(), String> {
        Err("a script has nothing to save".to_owned())
    }

    fn load(&mut self, _slot: SlotId, _tokens: &[Token], _path: &Path) -> Result<(), String> {
        Err("a script has nothing to load".to_owned())
    }

    fn has_drafter(&self) -> bool {
        false
    }

    fn draft(&mut self, _wishes: &mut [DraftWish<'_>]) {}

    fn logits(&self, index: usize) -> Option<&[f32]> {
        self.outputs.get(index)?.as_deref()
    }

    fn prepare_media(&self, _media: &Media) -> Result<PreparedMedia, String> {
        Err("this model takes text only, no pictures or sound".to_owned())
    }

    fn read_media(
        &mut self,
        _slot: SlotId,
        _len: usize,
        _media: &PreparedMedia,
    ) -> Result<(), EngineFault> {
        Err(EngineFault {
            reason: "a script takes no pictures".to_owned(),
            caches_intact: true,
        })
    }

    fn constraint(&self, _grammar: &Grammar) -> Result<Box<dyn Constraint + Send>, String> {
        Ok(Box::new(Unconstrained))
    }
}

/// A script is taken to know its grammar.
struct Unconstrained;

impl Constraint for Unconstrained {
    fn retain_allowed(&mut self, _candidates: &mut Vec<Candidate>) {}

    fn accept(&mut self, _token: Token) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_survives_its_path() {
        let script = Script {
            say: "a \"quoted\" é".to_owned(),
            step_ms: 3,
            crash_on: Some("now".to_owned()),
            ..Script::default()
        };

        assert_eq!(Script::from_path(&script.path()), Some(Ok(script)));
        assert_eq!(
            Script::from_path(Path::new("script:hello")),
            Some(Ok(Script::say("hello")))
        );
        assert_eq!(Script::from_path(Path::new("model.gguf")), None);
        assert!(matches!(
            Script::from_path(Path::new("script:{\"sya\":1}")),
            Some(Err(_))
        ));
    }
}
