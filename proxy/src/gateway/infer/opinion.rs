//! The second opinion: where the classifier's score is close to a threshold, the fast tier is asked in one word. Off unless the settings
//! say so. Nobody is charged for it, and nothing waits for it longer than they say: without an answer the first verdict stands. It goes
//! nowhere where the request itself may not go, and to no server of somebody else.

use config::tier::Tier;
use config::wire::chat::{Content, Message, Part, Role};
use policy::classify::{Reason, Verdict};
use policy::route::{Step, Target};
use policy::router::Wish;
use serde_json::{Value, json};

use super::Question;
use crate::gateway::Gateway;
use crate::gateway::body::Inference;
use crate::gateway::relay::Pass;

/// Bytes of what the person said last that the fast tier reads: its beginning says what is wanted.
const READ_MAX: usize = 2_048;
const TASK: &str = "Say how strong a language model the request below needs. fast: small talk, facts, short translations. primary: \
                    everyday explaining, writing, code. heavy: proofs, long analysis, hard code. One word.";
const GRAMMAR: &str = r#"root ::= "fast" | "primary" | "heavy""#;

impl Gateway {
    pub(super) async fn target(&self, question: &Question<'_>, wish: Wish) -> Target {
        match wish {
            Wish::Tier(tier) => Target::Tier(tier),
            Wish::Model(model) => Target::Model(model),
            Wish::Auto => {
                let first = question.request.verdict(self.figures.thresholds);
                Target::Auto(self.reconsidered(question, first).await)
            }
        }
    }

    async fn reconsidered(&self, question: &Question<'_>, first: Verdict) -> Verdict {
        let settings = &self.rooms.dispatcher.rules.classifier;
        let margin = settings.second_opinion_margin;
        if !settings.second_opinion || !self.figures.thresholds.is_close(first.score, margin) {
            return first;
        }
        let Some(text) = said_last(question.request) else {
            return first;
        };
        let opinion = self.opinion(question, text).await;
        with_opinion(first, opinion)
    }

    /// What the fast tier says; `None`: it has no free slot, or said nothing in time.
    async fn opinion(&self, question: &Question<'_>, text: &str) -> Option<Tier> {
        let dispatcher = &self.rooms.dispatcher;
        let route = self.route(question, &Target::Tier(Tier::Fast), Pass::default());
        let is_free = |step: &&Step| step.backend.tier == Tier::Fast && step.wait.is_zero();
        let step = route.steps.iter().find(is_free)?;
        let body = json!({
            "model": step.model,
            "messages": [{"role": "system", "content": TASK}, {"role": "user", "content": text}],
            "grammar": GRAMMAR,
            "max_tokens": 8,
            "temperature": 0,
        });
        let patience = dispatcher.rules.classifier.second_opinion_patience;
        let body = serde_json::to_vec(&body).ok()?;
        // No prefix is shared with anybody: the name stands for this request alone.
        let wall = question.completion_id.as_str();
        word(&dispatcher.opinion(step, (wall, body), patience).await?)
    }
}

fn word(answer: &Value) -> Option<Tier> {
    let said = answer.pointer("/choices/0/message/content")?.as_str()?;
    said.trim().parse().ok()
}

/// The verdict after the fast tier was asked; the reasons say what came of it.
fn with_opinion(first: Verdict, opinion: Option<Tier>) -> Verdict {
    let rule = match opinion {
        None => "no_second_opinion",
        Some(tier) if tier == first.tier => "second_opinion_agrees",
        Some(_) => "second_opinion",
    };
    let mut verdict = first;
    verdict.tier = opinion.unwrap_or(verdict.tier);
    verdict.reasons.push(Reason { rule, weight: 0.0 });
    verdict
}

/// The beginning of what the person said last.
fn said_last(request: &Inference) -> Option<&str> {
    let Inference::Chat(chat) = request else {
        return None;
    };
    let mut messages = chat.messages.iter().rev();
    let text = text_of(messages.find(|message| message.role == Role::User)?)?;
    text.get(..text.floor_char_boundary(READ_MAX))
}

fn text_of(message: &Message) -> Option<&str> {
    match message.content.as_ref()? {
        Content::Text(text) => Some(text),
        Content::Parts(parts) => parts.iter().find_map(Part::text),
    }
}

#[cfg(test)]
mod tests {
    use policy::classify::Category;

    use super::*;

    fn first() -> Verdict {
        Verdict {
            tier: Tier::Primary,
            category: Category::Code,
            score: 0.35,
            reasons: vec![Reason {
                rule: "code",
                weight: 0.11,
            }],
        }
    }

    #[test]
    fn another_opinion_moves_the_tier_and_says_so() {
        let verdict = with_opinion(first(), Some(Tier::Fast));
        assert_eq!(verdict.tier, Tier::Fast);
        assert_eq!(verdict.why(), "code,second_opinion");
    }

    #[test]
    fn without_an_answer_the_first_verdict_stands() {
        let verdict = with_opinion(first(), None);
        assert_eq!(verdict.tier, Tier::Primary);
        assert_eq!(verdict.why(), "code,no_second_opinion");
    }

    #[test]
    fn only_one_of_three_words_is_an_opinion() {
        let told = |text: &str| json!({"choices": [{"message": {"content": text}}]});
        assert_eq!(word(&told(" heavy\n")), Some(Tier::Heavy));
        assert_eq!(word(&told("very heavy")), None);
        assert_eq!(word(&json!({"error": {}})), None);
    }
}
