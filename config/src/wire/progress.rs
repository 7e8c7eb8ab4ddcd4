//! How far a request is whose answer has not begun, as a word in SSE comments: from a node as `: prefill 1200/4096`, to clients as
//! `: keep-alive prefill 1200/4096`. No SDK looks into a comment; one that begins with `: ping` would end the stream in some clients.

use std::fmt;

/// How far a request is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// It waits; so many go before it.
    Queue(u32),
    /// Its model is being loaded: percent.
    Load(u8),
    /// Its prompt is being read: tokens, of so many.
    Prefill(u32, u32),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(ahead) => write!(f, "queue {ahead}"),
            Self::Load(percent) => write!(f, "load {percent}"),
            Self::Prefill(done, total) => write!(f, "prefill {done}/{total}"),
        }
    }
}

impl Progress {
    /// Reads the text of a comment; `None` when it says something else.
    pub fn parse(comment: &str) -> Option<Self> {
        let (word, figures) = comment.split_once(' ')?;
        match word {
            "queue" => figures.parse().ok().map(Self::Queue),
            "load" => {
                let percent: u8 = figures.parse().ok()?;
                (percent <= 100).then_some(Self::Load(percent))
            }
            "prefill" => {
                let (done, total) = figures.split_once('/')?;
                let (done, total) = (done.parse().ok()?, total.parse().ok()?);
                (done <= total).then_some(Self::Prefill(done, total))
            }
            _ => None,
        }
    }

    /// Appends it as a node's comment.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!(": {self}\n\n").as_bytes());
    }

    /// The comment that keeps an idle stream open, with what is known.
    pub fn keep_alive(known: Option<Self>) -> Vec<u8> {
        match known {
            Some(progress) => format!(": keep-alive {progress}\n\n").into_bytes(),
            None => super::sse::KEEP_ALIVE.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for progress in [
            Progress::Queue(0),
            Progress::Queue(17),
            Progress::Load(100),
            Progress::Prefill(1_200, 4_096),
        ] {
            assert_eq!(Progress::parse(&progress.to_string()), Some(progress));
        }
        assert_eq!(
            Progress::keep_alive(Some(Progress::Queue(3))),
            b": keep-alive queue 3\n\n"
        );
        assert_eq!(Progress::keep_alive(None), super::super::sse::KEEP_ALIVE);
    }

    #[test]
    fn other_comments_say_nothing() {
        for comment in [
            "",
            "keep-alive",
            "tokens 1,2",
            "queue",
            "queue -1",
            "queue many",
            "load 101",
            "prefill 5",
            "prefill 5/4",
            "ping 1",
        ] {
            assert_eq!(Progress::parse(comment), None, "{comment}");
        }
    }
}
