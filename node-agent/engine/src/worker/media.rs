//! Pictures and sounds within prompts: what they cost, what stands for them in a sequence, and when they are read.
//!
//! A picture takes places in a sequence that no token is at. Negative numbers stand there, made from a digest of its pixels, so that
//! a cache is reused only for the same picture. This room must never let such a number reach a model.

use std::ops::Range;
use std::sync::Arc;

use ring::digest::Context;
use ring::digest::SHA256;
use scheduler::SlotId;
use scheduler::Slots;
use scheduler::Token;

use super::answer::Answer;
use crate::engine::Engine;
use crate::engine::EngineFault;
use crate::engine::PreparedMedia;
use crate::media::Media;
use crate::media::Segment;
use crate::spec::Refusal;

/// Bytes of pixels and samples of all requests that wait for their turn. Taken apart by a projector they are about four times that.
pub(super) const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A picture or sound in a prompt.
#[derive(Debug)]
pub(super) struct Placed {
    /// Its place in the prompt.
    pub(super) place: Range<usize>,
    is_image: bool,
    bytes: usize,
    /// Until it has been read.
    prepared: Option<PreparedMedia>,
}

/// The media of one prompt, in order.
#[derive(Debug, Default)]
pub(super) struct PromptMedia(Vec<Placed>);

impl PromptMedia {
    /// Their places in the prompt.
    pub(super) fn places(&self) -> Vec<Range<usize>> {
        self.0.iter().map(|placed| placed.place.clone()).collect()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tokens of pictures and of sounds.
    pub(super) fn tokens(&self) -> (u32, u32) {
        let sum = |image: bool| {
            let same = self.0.iter().filter(|placed| placed.is_image == image);
            let tokens: usize = same.map(|placed| placed.place.len()).sum();
            u32::try_from(tokens).unwrap_or(u32::MAX)
        };
        (sum(true), sum(false))
    }

    /// Bytes of those that have not been read.
    pub(super) fn bytes(&self) -> usize {
        let waiting = self.0.iter().filter(|placed| placed.prepared.is_some());
        waiting.map(|placed| placed.bytes).sum()
    }

    /// Where a prompt may be cut so that no picture is cut: `len`, or less.
    pub(super) fn whole(&self, len: usize) -> usize {
        let cut = self.0.iter().find(|placed| {
            let Range { start, end } = placed.place;
            start < len && len < end
        });
        cut.map_or(len, |placed| placed.place.start)
    }

    fn take(&mut self, place: &Range<usize>) -> Option<PreparedMedia> {
        let placed = self.0.iter_mut().find(|placed| placed.place == *place)?;
        placed.prepared.take()
    }
}

/// The tokens of a prompt in pieces, with numbers that stand for its media.
pub(super) fn read_prompt(
    segments: &[Segment],
    media: &[Arc<Media>],
    engine: &dyn Engine,
) -> Result<(Vec<Token>, PromptMedia), Refusal> {
    let begin = engine.begin_token();
    let mut tokens: Vec<Token> = begin.into_iter().collect();
    let mut placed = Vec::new();
    for segment in segments {
        match segment {
            Segment::Text(text) => append(&mut tokens, begin, &engine.tokenize(text, false, true)),
            Segment::Literal(text) => tokens.extend(engine.tokenize(text, false, false)),
            Segment::Tokens(plain) => {
                let n_vocab = engine.card().n_vocab;
                let known = |token: &&i32| u32::try_from(**token).is_ok_and(|id| id < n_vocab);
                if let Some(unknown) = plain.iter().find(|token| !known(token)) {
                    return invalid("prompt", format!("token {unknown} is not below {n_vocab}"));
                }
                let plain: Vec<Token> = plain.iter().copied().map(Token).collect();
                append(&mut tokens, begin, &plain);
            }
            Segment::Media(index) => {
                let one = usize::try_from(*index).ok().and_then(|at| media.get(at));
                let Some(one) = one else {
                    return invalid("prompt", format!("there is no medium {index}"));
                };
                let prepared = engine.prepare_media(one);
                let prepared =
                    prepared.or_else(|reason| invalid(&format!("media[{index}]"), reason))?;
                let start = tokens.len();
                tokens.extend(stand_ins(&one.digest(), prepared.tokens));
                placed.push(Placed {
                    place: start..tokens.len(),
                    is_image: one.is_image(),
                    bytes: one.bytes(),
                    prepared: Some(prepared),
                });
            }
        }
    }
    if tokens.last().is_some_and(|last| last.0 < 0) {
        let reason = "it ends with a picture or sound; some text must follow";
        return invalid("prompt", reason.to_owned());
    }
    Ok((tokens, PromptMedia(placed)))
}

/// Appends tokens to a prompt. Many chat templates write the begin token themselves; twice, it spoils the answer.
fn append(tokens: &mut Vec<Token>, begin: Option<Token>, more: &[Token]) {
    let again = begin.is_some() && tokens.len() == 1 && more.first() == begin.as_ref();
    tokens.extend(more.get(usize::from(again)..).unwrap_or_default());
}

/// Reads the next picture or sound of the request that came first, if one is next anywhere; the second value is how it went.
pub(super) fn read_next(
    engine: &mut dyn Engine,
    slots: &mut Slots<Answer>,
) -> Option<(SlotId, Result<(), EngineFault>)> {
    let next = slots.iter().filter_map(|slot| {
        let work = slot.work()?;
        Some((work.job.arrived, slot.id(), work.next_solid()?))
    });
    let (_arrived, slot, place) = next.min_by_key(|(arrived, _slot, _place)| *arrived)?;
    let work = slots.work_mut(slot)?;
    let Some(prepared) = work.job.payload.media.take(&place) else {
        let reason = "a picture or sound was read already".to_owned();
        let caches_intact = true;
        return Some((
            slot,
            Err(EngineFault {
                reason,
                caches_intact,
            }),
        ));
    };
    let read = engine.read_media(slot, place.start, &prepared);
    if read.is_ok() {
        slots.has_read(slot, place.end);
    }
    Some((slot, read))
}

/// As many negative numbers as wanted, which follow from the digest.
fn stand_ins(digest: &[u8; 32], count: usize) -> Vec<Token> {
    let mut numbers = Vec::with_capacity(count);
    for block in 0_u64.. {
        let mut named = Context::new(&SHA256);
        named.update(digest);
        named.update(&block.to_le_bytes());
        let digest = named.finish();
        let (words, _rest) = digest.as_ref().as_chunks::<4>();
        for word in words {
            if numbers.len() == count {
                return numbers;
            }
            numbers.push(Token(i32::from_le_bytes(*word) | i32::MIN));
        }
    }
    numbers
}

fn invalid<T>(param: &str, reason: String) -> Result<T, Refusal> {
    let param = param.to_owned();
    Err(Refusal::Invalid { param, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_a_picture_is_negative_and_its_own() {
        let (one, other) = (stand_ins(&[1; 32], 300), stand_ins(&[2; 32], 300));
        assert_eq!(one.len(), 300);
        assert!(one.iter().chain(&other).all(|token| token.0 < 0));
        assert_ne!(one.first(), other.first());
        assert_eq!(stand_ins(&[1; 32], 9), one[..9]);
    }

    #[test]
    fn a_prompt_is_never_cut_within_a_picture() {
        let placed = |place: Range<usize>, is_image| Placed {
            place,
            is_image,
            bytes: 3,
            prepared: None,
        };
        let media = PromptMedia(vec![placed(10..20, true), placed(30..35, false)]);
        for (len, whole) in [(5, 5), (10, 10), (11, 10), (20, 20), (34, 30), (40, 40)] {
            assert_eq!(media.whole(len), whole, "{len}");
        }
        assert_eq!(media.tokens(), (10, 5));
        assert_eq!(media.bytes(), 0, "all were read");
    }
}
