//! Turns the bytes of tokens into text: whole characters only, cut at the first stop string.
//!
//! A token may end in the middle of a character (an emoji takes three tokens in a small vocabulary) or of a stop string.
//! Both are held back until it is clear what they are. However the bytes are split into tokens, the text is the same.

/// Bytes in, text out.
#[derive(Clone, Debug, Default)]
pub struct TextAssembler {
    stops: Vec<String>,
    /// The bytes of an unfinished character, at most three.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// Bytes of text handed out.
    emitted: usize,
    stopped: bool,
}

impl TextAssembler {
    /// Cuts the text before the first of `stops`; empty ones are ignored, since they would cut everywhere.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            ..Self::default()
        }
    }

    /// Takes the bytes of a token and returns the text that is certain now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        let arrived = take_characters(&mut self.partial);
        self.take_text(&arrived);
        self.release(self.hold_back())
    }

    /// Returns what was held back, when no more tokens will come.
    pub fn finish(&mut self) -> String {
        if !self.stopped && !self.partial.is_empty() {
            self.partial.clear();
            self.take_text("\u{FFFD}");
        }
        self.release(0)
    }

    /// Whether a stop string was found. Nothing follows then.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes of text handed out so far.
    pub fn emitted(&self) -> usize {
        self.emitted
    }

    /// Where the text of the next token begins: what was handed out and what is held.
    pub fn position(&self) -> usize {
        self.emitted + self.held.len()
    }

    /// Appends character by character, so that the first stop string to be *completed* wins however the bytes came.
    fn take_text(&mut self, text: &str) {
        if self.stops.is_empty() {
            self.held.push_str(text);
            return;
        }
        for character in text.chars() {
            self.held.push(character);
            let found = self
                .stops
                .iter()
                .filter(|stop| self.held.ends_with(stop.as_str()));
            if let Some(length) = found.map(String::len).max() {
                self.held.truncate(self.held.len() - length);
                self.stopped = true;
                self.partial.clear();
                return;
            }
        }
    }

    /// How many bytes at the end may be the beginning of a stop string.
    fn hold_back(&self) -> usize {
        if self.stopped {
            return 0;
        }
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            let most = stop.len().saturating_sub(1).min(held.len());
            (1..=most)
                .rev()
                .find(|length| held.ends_with(&stop[..*length]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }

    fn release(&mut self, hold: usize) -> String {
        let rest = self.held.split_off(self.held.len() - hold);
        let text = std::mem::replace(&mut self.held, rest);
        self.emitted += text.len();
        text
    }
}

/// Takes all whole characters out of `bytes`; what can never become one is replaced as the Unicode standard says.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                bytes.clear();
                return text;
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(length) = error.error_len() else {
                    let unfinished = invalid.to_vec();
                    *bytes = unfinished;
                    return text;
                };
                text.push('\u{FFFD}');
                rest = &invalid[length..];
            }
        }
    }
}

#[cfg(test)]
mod tests;
