//! The chain of hashes by which a conversation is known again: where its last turn was read, the next one need not be. Keyed by a secret
//! of the store and by whom the conversation belongs to, so that two people never match. No text leaves this room.

use std::fmt;
use std::sync::Arc;

use config::wire::chat::Role;
use config::wire::node::LINKS_MAX;
use config::wire::valid::ValidChat;
use policy::identity::Subject;
use policy::route::warm::{Link, Prompt};
use ring::hmac;

use super::body::Inference;

/// Bytes of text for one token: English with the vocabularies of today.
const BYTES_PER_TOKEN: u64 = 4;

/// Makes chains.
#[derive(Clone)]
pub struct Prefixes(hmac::Key);

impl fmt::Debug for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prefixes")
    }
}

/// A conversation as the route sees it.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Its links, oldest first; empty for what is no conversation.
    pub chain: Arc<[Link]>,
    tokens: u32,
    spread: u64,
}

impl Conversation {
    /// What is to be read.
    pub fn prompt(&self) -> Prompt<'_> {
        Prompt {
            chain: &self.chain,
            tokens: self.tokens,
            spread: self.spread,
        }
    }
}

impl Prefixes {
    /// Chains under a secret that all proxies of one store share.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The chain of a request. `id` spreads what is no conversation.
    pub fn of(&self, request: &Inference, subject: &Subject, id: &str) -> Conversation {
        let chain: Vec<Link> = match request {
            Inference::Chat(chat) => self.links(chat, subject).unwrap_or_default(),
            Inference::Completion(_) | Inference::Other(_) => Vec::new(),
        };
        let spread = chain.first().map_or_else(
            || number(&hmac::sign(&self.0, id.as_bytes())),
            |link| link.hash,
        );
        Conversation {
            chain: chain.into(),
            tokens: tokens(request.prompt_bytes()),
            spread,
        }
    }

    /// One link for each message after the opening, which is the tools and the first messages of the system: the newest ones.
    fn links(&self, chat: &ValidChat, subject: &Subject) -> Option<Vec<Link>> {
        let own = hmac::sign(&self.0, subject.as_str().as_bytes());
        let own = hmac::Key::new(hmac::HMAC_SHA256, own.as_ref());
        let tools = serde_json::to_vec(&chat.tools).ok()?;
        let mut bytes = tools.len() as u64;
        let mut last = hmac::sign(&own, &tools);
        let mut is_opening = true;
        let mut links = Vec::with_capacity(chat.messages.len().min(LINKS_MAX));
        let skipped = chat.messages.len().saturating_sub(LINKS_MAX);
        for (place, message) in chat.messages.iter().enumerate() {
            let text = serde_json::to_vec(message).ok()?;
            bytes = bytes.saturating_add(text.len() as u64);
            let mut link = hmac::Context::with_key(&own);
            link.update(last.as_ref());
            link.update(&text);
            last = link.sign();
            is_opening &= message.role == Role::System;
            if !is_opening && place >= skipped {
                links.push(Link {
                    hash: number(&last),
                    tokens: tokens(bytes),
                });
            }
        }
        Some(links)
    }
}

/// The links as a node is told them.
pub fn header(chain: &[Link]) -> String {
    let links = chain.iter().map(|link| format!("{:016x}", link.hash));
    links.collect::<Vec<_>>().join(",")
}

fn tokens(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

fn number(tag: &hmac::Tag) -> u64 {
    tag.as_ref()
        .first_chunk::<8>()
        .map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use config::ids::UserId;
    use serde_json::{Value, json};

    use super::*;

    fn links(user: &str, secret: u8, messages: &Value) -> Vec<u64> {
        let body = json!({"model": "auto", "messages": messages}).to_string();
        let chat = ValidChat::parse(body.as_bytes()).expect("parses");
        let subject = Subject::of_user(&UserId::new(user));
        let links = Prefixes::new(&[secret; 32]).links(&chat, &subject);
        links
            .expect("links")
            .into_iter()
            .map(|link| link.hash)
            .collect()
    }

    #[test]
    fn the_next_turn_begins_with_the_links_of_the_last_one() {
        let first = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]);
        let mut second = first.clone();
        let more = second.as_array_mut().expect("an array");
        more.push(json!({"role": "assistant", "content": "b"}));
        more.push(json!({"role": "user", "content": "c"}));
        let (one, two) = (links("anna", 1, &first), links("anna", 1, &second));
        assert_eq!(one.len(), 1, "the opening has no link");
        assert_eq!(two.len(), 3);
        assert_eq!(two.first(), one.first());
    }

    #[test]
    fn another_person_secret_system_prompt_or_wording_never_matches() {
        let said = |system: &str, user: &str| json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
        let known = links("anna", 1, &said("s", "a"));
        for other in [
            links("bert", 1, &said("s", "a")),
            links("anna", 2, &said("s", "a")),
            links("anna", 1, &said("t", "a")),
            links("anna", 1, &said("s", "b")),
        ] {
            assert!(other.iter().all(|link| !known.contains(link)));
        }
    }

    #[test]
    fn a_long_conversation_sends_its_newest_links() {
        let message = |n: usize| json!({"role": "user", "content": n.to_string()});
        let all: Vec<Value> = (0..100).map(message).collect();
        let links = links("anna", 1, &json!(all));
        assert_eq!(links.len(), LINKS_MAX);
    }
}
