//! Server-sent events, both directions: an incremental decoder that gives the same events for every split of the bytes, and a
//! writer in the one form that all clients accept (LF, one space, no BOM). Holds at most one event; knows nothing of its content.

use super::progress::Progress;

/// The end of an OpenAI stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// The payload of [`DONE`].
pub const DONE_DATA: &str = "[DONE]";
/// What keeps an idle stream open. Exactly this: a comment that starts `: ping` ends the stream in some clients.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
/// Default bound of one event: a chunk with log-probabilities stays far below.
pub const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Begins the comment of [`write_tokens`].
const TOKENS: &[u8] = b"tokens ";

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// One event.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Event {
    /// `event:`; `None` means `message`.
    pub name: Option<String>,
    /// The `data:` lines, joined by LF.
    pub data: String,
    /// The tokens that a node names in comments before it: see [`write_tokens`].
    pub tokens: Vec<i32>,
}

impl Event {
    /// Whether this is the `[DONE]` that ends an OpenAI stream.
    pub fn is_done(&self) -> bool {
        self.name.is_none() && self.data.trim_end() == DONE_DATA
    }
}

/// An event grew past the bound; the stream cannot be read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an event of the stream is larger than {max} bytes")]
pub struct TooLarge {
    /// The bound.
    pub max: usize,
}

/// Reads events from bytes in any split. Follows the HTML standard, section 9.2.6: CRLF, LF and CR end a line, one space after the
/// colon is dropped, a leading BOM and comments are skipped, an event without data is not dispatched, a last event without its
/// empty line is discarded.
#[derive(Debug)]
pub struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    name: Option<String>,
    tokens: Vec<i32>,
    progress: Option<Progress>,
    skip_lf: bool,
    at_start: bool,
    max: usize,
    failed: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(EVENT_BYTES_MAX)
    }
}

impl Decoder {
    /// A decoder that refuses events of more than `event_bytes_max` bytes.
    pub const fn new(event_bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            name: None,
            tokens: Vec::new(),
            progress: None,
            skip_lf: false,
            at_start: true,
            max: event_bytes_max,
            failed: false,
        }
    }

    /// Takes the next bytes and appends the events that they complete to `events`. After an error every further call fails.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLarge> {
        if self.failed {
            return Err(TooLarge { max: self.max });
        }
        let mut rest = bytes;
        if self.skip_lf && !rest.is_empty() {
            self.skip_lf = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (piece, tail) = rest.split_at(end);
            self.grow(piece)?;
            self.end_line(events);
            rest = match tail {
                [b'\r', b'\n', after @ ..] => after,
                [b'\r'] => {
                    // The LF of a CRLF may come with the next bytes.
                    self.skip_lf = true;
                    &[]
                }
                [_, after @ ..] => after,
                [] => &[],
            };
        }
        self.grow(rest)
    }

    /// Whether bytes of an unfinished event are held: at the end of a stream this means that it was cut.
    pub fn is_mid_event(&self) -> bool {
        !self.line.is_empty() || self.has_data || self.name.is_some()
    }

    /// How far the request is, if comments said so since this was asked last.
    pub const fn progress(&mut self) -> Option<Progress> {
        self.progress.take()
    }

    fn grow(&mut self, piece: &[u8]) -> Result<(), TooLarge> {
        let name = self.name.as_ref().map_or(0, String::len);
        let tokens = self.tokens.len() * size_of::<i32>();
        if self.line.len() + self.data.len() + name + tokens + piece.len() > self.max {
            self.failed = true;
            self.line = Vec::new();
            self.data = Vec::new();
            self.tokens = Vec::new();
            return Err(TooLarge { max: self.max });
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.at_start) && line.starts_with(&BOM) {
            line.drain(..BOM.len());
        }
        if line.is_empty() {
            self.dispatch(events);
        } else {
            self.field(&line);
        }
        line.clear();
        // Keeps the allocation for the next line.
        self.line = line;
    }

    fn field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = match colon {
            Some(at) => line.split_at(at),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => self.name = Some(String::from_utf8_lossy(value).into_owned()),
            // A comment.
            b"" => {
                self.tokens.extend(tokens_of(value));
                let said = std::str::from_utf8(value).ok().and_then(Progress::parse);
                self.progress = said.or(self.progress);
            }
            // `id` and `retry` serve reconnection, which POST streams do not have.
            _ => {}
        }
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) {
        let name = self.name.take().filter(|name| !name.is_empty());
        if !std::mem::take(&mut self.has_data) {
            return;
        }
        let data = String::from_utf8_lossy(&self.data).into_owned();
        self.data.clear();
        let tokens = std::mem::take(&mut self.tokens);
        events.push(Event { name, data, tokens });
    }
}

/// The tokens that a comment names; none if it is any other comment.
fn tokens_of(comment: &[u8]) -> impl Iterator<Item = i32> + '_ {
    let list = comment.strip_prefix(TOKENS).unwrap_or_default();
    let ids = list.split(|byte| *byte == b',');
    ids.filter_map(|id| std::str::from_utf8(id).ok()?.parse().ok())
}

/// Appends a comment with the tokens that the next event, or one after it, is made of: with them another node can go on where this
/// one stops. Nobody but a proxy of Hearth sees it.
pub fn write_tokens(out: &mut Vec<u8>, tokens: &[i32]) {
    if tokens.is_empty() {
        return;
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(TOKENS);
    for (place, token) in tokens.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(token.to_string().as_bytes());
    }
    out.push(b'\n');
}

/// Appends one event without a name. Line breaks within `data` become further `data:` lines.
pub fn write_data(out: &mut Vec<u8>, data: &str) {
    for line in data.split(['\n', '\r']) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// Appends one event whose data is `value` as JSON.
pub fn write_json<T: serde::Serialize>(
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), serde_json::Error> {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    // JSON on one line: serde_json escapes every line break within strings.
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        out.truncate(start);
        return Err(error);
    }
    out.extend_from_slice(b"\n\n");
    Ok(())
}

#[cfg(test)]
mod tests;
