//! What was said before makes its tokens less likely: the repeat, presence and frequency penalties.

use std::collections::HashMap;
use std::collections::VecDeque;

use scheduler::Token;

use super::is;
use crate::spec::Sampling;

/// How far the repeat penalty looks back unless the request says so; llama.cpp's default.
const REPEAT_LAST_N: u32 = 64;

/// The last tokens and how often each is among them.
#[derive(Debug)]
struct Window {
    last: VecDeque<Token>,
    counts: HashMap<Token, u32>,
    most: usize,
}

impl Window {
    fn new(most: u32) -> Self {
        Self {
            last: VecDeque::new(),
            counts: HashMap::new(),
            most: usize::try_from(most).unwrap_or(usize::MAX),
        }
    }

    fn push(&mut self, token: Token) {
        self.last.push_back(token);
        *self.counts.entry(token).or_default() += 1;
        while self.last.len() > self.most {
            let Some(oldest) = self.last.pop_front() else {
                return;
            };
            if let Some(count) = self.counts.get_mut(&oldest) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&oldest);
                }
            }
        }
    }
}

/// The penalties of one answer and what they look back on.
#[derive(Debug)]
pub(super) struct Penalties {
    repeat: f32,
    presence: f32,
    frequency: f32,
    /// What the repeat penalty sees, prompt included.
    recent: Window,
    /// What the other two see, if it is something else: as OpenAI has it, the answer so far.
    answer: Option<Window>,
}

impl Penalties {
    /// Looks back on `prompt`; `None` when no penalty is on.
    pub(super) fn new(rules: &Sampling, prompt: &[Token]) -> Option<Self> {
        let repeats = !is(rules.repeat_penalty, 1.0);
        let counts = !is(rules.presence_penalty, 0.0) || !is(rules.frequency_penalty, 0.0);
        if !repeats && !counts {
            return None;
        }
        let looking_back = rules.repeat_last_n.unwrap_or(REPEAT_LAST_N);
        let mut recent = Window::new(looking_back);
        let start = prompt.len().saturating_sub(recent.most);
        for token in prompt.get(start..).unwrap_or_default() {
            recent.push(*token);
        }
        Some(Self {
            repeat: rules.repeat_penalty,
            presence: rules.presence_penalty,
            frequency: rules.frequency_penalty,
            recent,
            answer: (counts && rules.repeat_last_n.is_none()).then(|| Window::new(u32::MAX)),
        })
    }

    pub(super) fn accept(&mut self, token: Token) {
        self.recent.push(token);
        if let Some(answer) = &mut self.answer {
            answer.push(token);
        }
    }

    pub(super) fn apply(&self, logits: &mut [f32]) {
        for token in self.recent.counts.keys() {
            change(logits, *token, |logit| {
                // A negative logit would become likelier by a division.
                if logit <= 0.0 {
                    logit * self.repeat
                } else {
                    logit / self.repeat
                }
            });
        }
        let seen = self.answer.as_ref().unwrap_or(&self.recent);
        for (token, count) in &seen.counts {
            let count = f32::from(u16::try_from(*count).unwrap_or(u16::MAX));
            let penalty = count * self.frequency + self.presence;
            change(logits, *token, |logit| logit - penalty);
        }
    }
}

/// Changes the logit of one token, if there is such a token.
pub(super) fn change(logits: &mut [f32], token: Token, rule: impl Fn(f32) -> f32) {
    let place = usize::try_from(token.0).ok();
    if let Some(logit) = place.and_then(|place| logits.get_mut(place)) {
        *logit = rule(*logit);
    }
}
