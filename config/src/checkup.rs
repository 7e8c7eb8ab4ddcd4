//! What a doctor says: one line for each thing it looked at, in the order in which the things are needed. Shared by both programs.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One line.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub what: Cow<'static, str>,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub said: String,
}

impl Check {
    /// What was looked at, how it is, and what was found.
    pub fn new(
        what: impl Into<Cow<'static, str>>,
        verdict: Verdict,
        said: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            verdict,
            said: said.into(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names of machines and the words of others stand here: none of them moves the cursor.
        let clean = |text: &str| text.replace(char::is_control, "?");
        let (what, said) = (clean(&self.what), clean(&self.said));
        write!(f, "{:<5} {what:<11} {said}", self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_it_is_what_it_is_and_what_to_do() {
        let check = Check::new("https", Verdict::Fail, "nobody answers: start it");
        assert_eq!(
            check.to_string(),
            "FAIL  https       nobody answers: start it"
        );
        let hostile = Check::new("den\u{1b}[2J", Verdict::Ok, "fine\r\nFAIL");
        assert!(!hostile.to_string().contains(char::is_control));
    }
}
