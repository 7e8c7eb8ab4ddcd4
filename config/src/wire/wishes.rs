//! What a request may wish for besides its answer: to stay at home, its place in the queues, who may go on with it. Headers and the
//! `hearth` member of a body say the same things in the same words; headers win. Only reads: what a wish is worth is decided above.

use serde::{Deserialize, Serialize};

use super::valid::Invalid;
use super::valid::read::{Object, invalid, quote, word};
use crate::settings::problem::nearest;

/// The header for [`Wishes::local_only`].
pub const LOCAL_ONLY: &str = "x-hearth-local-only";
/// The header for [`Wishes::priority`], from clients and on the way to a node.
pub const PRIORITY: &str = "x-hearth-priority";
/// The header for [`Wishes::continue_with`].
pub const CONTINUE: &str = "x-hearth-continue";

/// The member of a body that holds wishes: SDKs send it as `extra_body={"hearth": {...}}`.
const MEMBER: &str = "hearth";
const WORD_BYTES_MAX: usize = 64;
const BOOLEANS: [(&str, bool); 2] = [("true", true), ("false", false)];

/// A class in the queues. Ordered: what goes first is less.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody looks at the screen.
    Interactive,
    /// As usual.
    #[default]
    Normal,
    /// Nobody waits: it goes when there is room, but it does go.
    Batch,
}

impl Priority {
    /// All classes, first served first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Normal, Self::Batch];

    /// The word in requests, settings, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Normal => "normal",
            Self::Batch => "batch",
        }
    }

    /// Its place in [`Self::ALL`].
    pub const fn rank(self) -> usize {
        match self {
            Self::Interactive => 0,
            Self::Normal => 1,
            Self::Batch => 2,
        }
    }
}

impl std::fmt::Display for Priority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text named no class.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a priority is interactive, normal or batch")]
pub struct UnknownPriority;

impl std::str::FromStr for Priority {
    type Err = UnknownPriority;

    fn from_str(text: &str) -> Result<Self, UnknownPriority> {
        Self::ALL
            .into_iter()
            .find(|one| one.as_str() == text)
            .ok_or(UnknownPriority)
    }
}

/// Who may go on with an answer whose node is lost.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContinueWith {
    /// Only the same model, token for token.
    #[default]
    Twin,
    /// Another model too, from the text that was said.
    Text,
}

impl ContinueWith {
    /// All words.
    pub const ALL: [Self; 2] = [Self::Twin, Self::Text];

    /// The word in requests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Twin => "twin",
            Self::Text => "text",
        }
    }
}

/// What a request wishes for; `None`: it says nothing about it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wishes {
    /// Never leaves the tiers at home, not even on fallback.
    pub local_only: Option<bool>,
    /// Its class in the queues.
    pub priority: Option<Priority>,
    /// Who may go on with its answer.
    pub continue_with: Option<ContinueWith>,
}

impl Wishes {
    /// Reads headers. `header` gives the value of one by its lower-case name, if it was sent.
    ///
    /// # Errors
    ///
    /// A value that is none of its words; `param` is the header's name.
    pub fn of_headers<'a>(
        header: impl Fn(&'static str) -> Option<&'a [u8]>,
    ) -> Result<Self, Invalid> {
        Ok(Self {
            local_only: said(&header, LOCAL_ONLY, &BOOLEANS)?,
            priority: said(&header, PRIORITY, &priorities())?,
            continue_with: said(&header, CONTINUE, &continuations())?,
        })
    }

    /// These, and where they say nothing, those.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            local_only: self.local_only.or(other.local_only),
            priority: self.priority.or(other.priority),
            continue_with: self.continue_with.or(other.continue_with),
        }
    }

    /// Takes the `hearth` member out of a body.
    pub(super) fn take(body: &mut Object) -> Result<Self, Invalid> {
        let Some(mut said) = body.object(MEMBER)? else {
            return Ok(Self::default());
        };
        let wishes = Self {
            local_only: said.boolean("local_only")?,
            priority: one_of(&mut said, "priority", &priorities())?,
            continue_with: one_of(&mut said, "continue_with", &continuations())?,
        };
        nothing_else(said)?;
        Ok(wishes)
    }
}

const KNOWN: [&str; 3] = ["local_only", "priority", "continue_with"];

/// A wish that nobody understands must not be believed to be granted.
fn nothing_else(rest: Object) -> Result<(), Invalid> {
    let unknown = rest.unknown();
    let Some(name) = unknown.names.first() else {
        return Ok(());
    };
    let meant = match nearest(name, KNOWN) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("known are {}", KNOWN.join(", ")),
    };
    Err(invalid(
        format!("{MEMBER}.{name}"),
        format!("{} is no wish; {meant}", quote(name)),
    ))
}

fn priorities() -> [(&'static str, Priority); 3] {
    Priority::ALL.map(|one| (one.as_str(), one))
}

fn continuations() -> [(&'static str, ContinueWith); 2] {
    ContinueWith::ALL.map(|one| (one.as_str(), one))
}

fn said<'a, T: Copy>(
    header: &impl Fn(&'static str) -> Option<&'a [u8]>,
    name: &'static str,
    words: &[(&str, T)],
) -> Result<Option<T>, Invalid> {
    let Some(value) = header(name) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value);
    word(name.to_owned(), text.trim(), words).map(Some)
}

fn one_of<T: Copy>(
    object: &mut Object,
    key: &str,
    words: &[(&str, T)],
) -> Result<Option<T>, Invalid> {
    let path = object.at(key);
    let said = object.string(key, WORD_BYTES_MAX)?;
    said.map(|text| word(path, &text, words)).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::valid::ValidChat;
    use super::*;

    fn wishes(hearth: &Value) -> Result<Wishes, Invalid> {
        let body = json!({
            "model": "auto",
            "messages": [{"role": "user", "content": "Hi"}],
            "hearth": hearth,
        });
        ValidChat::parse(body.to_string().as_bytes()).map(|chat| chat.wishes)
    }

    fn headers(all: &[(&'static str, &'static str)]) -> Result<Wishes, Invalid> {
        Wishes::of_headers(|name| {
            let found = all.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.as_bytes())
        })
    }

    #[test]
    fn a_body_and_headers_say_the_same_in_the_same_words() {
        let body = wishes(&json!({
            "local_only": true,
            "priority": "batch",
            "continue_with": "text",
        }));
        let head = headers(&[
            ("x-hearth-local-only", "true"),
            ("x-hearth-priority", "batch"),
            ("x-hearth-continue", " text "),
        ]);
        let wanted = Wishes {
            local_only: Some(true),
            priority: Some(Priority::Batch),
            continue_with: Some(ContinueWith::Text),
        };
        assert_eq!(body, Ok(wanted));
        assert_eq!(head, Ok(wanted));
    }

    #[test]
    fn headers_win_and_silence_leaves_what_the_body_says() {
        let body = wishes(&json!({"priority": "batch", "local_only": true})).expect("read");
        let head = headers(&[("x-hearth-priority", "interactive")]).expect("read");
        let both = head.or(body);
        assert_eq!(both.priority, Some(Priority::Interactive));
        assert_eq!(both.local_only, Some(true));
        assert_eq!(both.continue_with, None);
    }

    #[test]
    fn nothing_said_is_nothing_wished() {
        for hearth in [json!(null), json!({}), json!({"priority": null})] {
            assert_eq!(wishes(&hearth), Ok(Wishes::default()), "{hearth}");
        }
        assert_eq!(headers(&[]), Ok(Wishes::default()));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_path_and_what_would_be_right() {
        let cases = [
            (json!("batch"), "hearth", "expected an object"),
            (
                json!({"local_only": "yes"}),
                "hearth.local_only",
                "true or false",
            ),
            (
                json!({"priority": "high"}),
                "hearth.priority",
                "interactive, normal, batch",
            ),
            (json!({"priority": 1}), "hearth.priority", "a string"),
            (
                json!({"continue_with": "any"}),
                "hearth.continue_with",
                "twin, text",
            ),
            (
                json!({"localonly": true}),
                "hearth.localonly",
                "did you mean local_only?",
            ),
            (
                json!({"continue": "text"}),
                "hearth.continue",
                "did you mean continue_with?",
            ),
            (
                json!({"colour": 1}),
                "hearth.colour",
                "local_only, priority, continue_with",
            ),
        ];
        for (hearth, param, part) in cases {
            let error = wishes(&hearth).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(param), "{hearth}");
            assert!(error.message.contains(part), "{hearth}: {}", error.message);
        }
        for (name, value) in [
            ("x-hearth-local-only", "1"),
            ("x-hearth-priority", "urgent"),
            ("x-hearth-continue", ""),
        ] {
            let error = headers(&[(name, value)]).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(name));
        }
    }
}
