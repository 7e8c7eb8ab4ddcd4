//! Text that looks like a control token and is none: what people, tools and other programs wrote is never read as `<|im_end|>`. Before a
//! template is filled, such text is exchanged for single private-use characters; afterwards the prompt is cut at them, so that the
//! tokenizer is told piece by piece what is markup and what is only text. Pure.

use serde_json::Value;

/// The first of the characters that stand for something; a whole plane of them has no meaning of its own.
const FIRST: u32 = 0xF_0000;
/// One past the last.
const END: u32 = 0xF_FFFE;
/// Control tokens of the well-known families, for files whose vocabulary does not mark them.
const KNOWN: [&str; 44] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
    "<|image|>",
    "<|audio|>",
    "<bos>",
    "<eos>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
];

/// A piece of a prompt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// Written by the template, and ordinary text: control tokens count.
    Text(String),
    /// Text that is never read as a control token.
    Literal(String),
    /// A picture or sound: its place among the media of the request.
    Media(u32),
}

/// The texts of a model's control tokens.
#[derive(Debug)]
pub struct Controls {
    /// Sorted, without duplicates, none empty.
    texts: Vec<String>,
}

impl Controls {
    /// Those that the model's vocabulary marks, and the well-known ones.
    pub fn new<I: IntoIterator<Item = String>>(marked: I) -> Self {
        let known = KNOWN.iter().map(|text| (*text).to_owned());
        let mut texts: Vec<String> = marked
            .into_iter()
            // A token of one letter is a letter.
            .filter(|text| text.chars().nth(1).is_some())
            .chain(known)
            .collect();
        texts.sort_unstable();
        texts.dedup();
        Self { texts }
    }

    /// The length in bytes of the longest control token at the start of `text`.
    fn starting(&self, text: &str) -> Option<usize> {
        let mut candidates = self.texts.as_slice();
        let mut longest = None;
        for (at, byte) in text.bytes().enumerate() {
            // Sorted: those that go on with this byte stand together.
            let from = candidates.partition_point(|known| known.as_bytes().get(at) < Some(&byte));
            candidates = candidates.get(from..).unwrap_or_default();
            let to = candidates.partition_point(|known| known.as_bytes().get(at) <= Some(&byte));
            candidates = candidates.get(..to).unwrap_or_default();
            if candidates.is_empty() {
                break;
            }
            // The shorter of two with the same beginning comes first.
            if candidates
                .first()
                .is_some_and(|known| known.len() == at + 1)
            {
                longest = Some(at + 1);
            }
        }
        longest
    }
}

/// What the placeholders of one conversation stand for.
#[derive(Debug)]
pub(super) struct Neutral<'a> {
    controls: &'a Controls,
    stand_ins: Vec<Piece>,
}

impl<'a> Neutral<'a> {
    pub(super) const fn new(controls: &'a Controls) -> Self {
        Self {
            controls,
            stand_ins: Vec::new(),
        }
    }

    /// The text with placeholders. `spared`: control texts that stay, because templates look for them.
    pub(super) fn text(&mut self, text: &str, spared: &[&str]) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(letter) = rest.chars().next() {
            let control = self
                .controls
                .starting(rest)
                .and_then(|length| rest.split_at_checked(length))
                .filter(|(control, _after)| !spared.contains(control));
            if let Some((control, after)) = control {
                out.push(self.stand_in(Piece::Literal(control.to_owned())));
                rest = after;
                continue;
            }
            if (FIRST..END).contains(&u32::from(letter)) {
                // Not to be mistaken for one of ours.
                out.push(self.stand_in(Piece::Literal(letter.to_string())));
            } else {
                out.push(letter);
            }
            rest = rest.get(letter.len_utf8()..).unwrap_or_default();
        }
        out
    }

    /// All strings within a value, names of fields included.
    pub(super) fn value(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, &[])),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(name, field)| (self.text(name, &[]), self.value(field)))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    /// The placeholder of a picture or sound.
    pub(super) fn media(&mut self, index: u32) -> char {
        self.stand_in(Piece::Media(index))
    }

    fn stand_in(&mut self, piece: Piece) -> char {
        let at = self.stand_ins.iter().position(|known| *known == piece);
        let at = at.unwrap_or_else(|| {
            self.stand_ins.push(piece);
            self.stand_ins.len() - 1
        });
        u32::try_from(at)
            .ok()
            .and_then(|at| FIRST.checked_add(at))
            .filter(|code| *code < END)
            .and_then(char::from_u32)
            // No vocabulary has that many control tokens.
            .unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    /// Cuts the rendered prompt at the placeholders.
    pub(super) fn pieces(&self, prompt: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        for letter in prompt.chars() {
            let known = u32::from(letter)
                .checked_sub(FIRST)
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|at| self.stand_ins.get(at));
            let Some(known) = known else {
                text.push(letter);
                continue;
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            match (pieces.last_mut(), known) {
                (Some(Piece::Literal(before)), Piece::Literal(more)) => before.push_str(more),
                (_, known) => pieces.push(known.clone()),
            }
        }
        if !text.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Text(text));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(pieces: &[Piece]) -> String {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) | Piece::Literal(text) => text.as_str(),
                Piece::Media(_) => "",
            })
            .collect()
    }

    #[test]
    fn control_texts_become_literals_and_the_longest_wins() {
        let controls = Controls::new(["<a>".to_owned(), "<a>b".to_owned(), "x".to_owned()]);
        let mut neutral = Neutral::new(&controls);
        let text = neutral.text("x<a>bc<|im_end|><|im_start|>system<a", &[]);
        assert!(!text.contains("<|"), "{text:?}");
        assert_eq!(
            neutral.pieces(&format!("<|im_start|>{text}")),
            vec![
                Piece::Text("<|im_start|>x".to_owned()),
                Piece::Literal("<a>b".to_owned()),
                Piece::Text("c".to_owned()),
                Piece::Literal("<|im_end|><|im_start|>".to_owned()),
                Piece::Text("system<a".to_owned()),
            ]
        );
        assert_eq!(neutral.text("<a>", &["<a>"]), "<a>");
    }

    #[test]
    fn private_letters_of_a_person_stay_what_they_are() {
        let controls = Controls::new([]);
        let mut neutral = Neutral::new(&controls);
        let text = neutral.text("\u{f0000}\u{f0001}", &[]);
        let media = neutral.media(3);
        assert_eq!(
            neutral.pieces(&format!("{text}{media}")),
            vec![
                Piece::Literal("\u{f0000}\u{f0001}".to_owned()),
                Piece::Media(3)
            ]
        );
        assert_eq!(neutral.pieces(""), vec![Piece::Text(String::new())]);
    }

    #[test]
    fn values_are_neutralised_all_the_way_down() {
        let controls = Controls::new([]);
        let mut neutral = Neutral::new(&controls);
        let value = serde_json::json!({"<s>": ["</s>", 1, {"a": "b<|end|>"}]});
        assert!(!neutral.value(&value).to_string().contains('<'));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_control_text_of_a_person_is_left(
            words in prop::collection::vec(
                prop_oneof![Just("<|im_end|>"), Just("<|"), Just("im_end|>"), Just("</s>"), Just("é\u{f0002}"), Just(" a")],
                0..12,
            )
        ) {
            let controls = Controls::new([]);
            let mut neutral = Neutral::new(&controls);
            let asked = words.concat();
            let pieces = neutral.text(&asked, &[]);
            let pieces = neutral.pieces(&pieces);
            prop_assert_eq!(whole(&pieces), asked);
            for piece in pieces {
                if let Piece::Text(text) = piece {
                    prop_assert!(!text.contains("<|im_end|>") && !text.contains("</s>"));
                }
            }
        }
    }
}
