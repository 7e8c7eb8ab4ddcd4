//! Pictures and sound: the projector file, and how what it makes gets into a sequence.
//!
//! Only pixels and samples are handed to llama.cpp, never a file: its own reader of files would start other programs. What a
//! picture becomes is computed at once and blocks the thread; nothing else is computed in the meantime.

use std::any::Any;
use std::path::Path;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::mtmd::MtmdBitmap;
use llama_cpp_2::mtmd::MtmdContext;
use llama_cpp_2::mtmd::MtmdContextParams;
use llama_cpp_2::mtmd::MtmdInputChunkType;
use llama_cpp_2::mtmd::MtmdInputChunks;
use llama_cpp_2::mtmd::MtmdInputText;
use llama_cpp_2::mtmd::mtmd_default_marker;
use scheduler::SlotId;

use crate::engine::PreparedMedia;
use crate::media::Media;
use crate::media::Modalities;
use crate::spec::LoadError;
use crate::spec::LoadSpec;

/// A loaded projector.
pub(super) struct Projector {
    context: MtmdContext,
    /// All tokens of a picture see each other, so they are computed in one pass.
    at_once: bool,
}

/// Reads the file that `spec` names; it must have been made for this model.
pub(super) fn load(
    spec: &LoadSpec,
    model: &LlamaModel,
    (threads, last_words): (u16, &dyn Fn() -> String),
) -> Result<Option<Projector>, LoadError> {
    let Some(path) = &spec.projector else {
        return Ok(None);
    };
    let fail = |reason: String| LoadError::Model {
        path: path.display().to_string(),
        reason: format!("the projector cannot be used: {reason}"),
    };
    if !Path::new(path).is_file() {
        return Err(fail("it is not a file".to_owned()));
    }
    let name = path.to_str();
    let name = name.ok_or_else(|| fail("its path is not valid UTF-8".to_owned()))?;
    let params = MtmdContextParams {
        use_gpu: spec.gpu_layers > 0,
        print_timings: false,
        n_threads: i32::from(threads),
        ..MtmdContextParams::default()
    };
    let context = MtmdContext::init_from_file(name, model, &params);
    let context = context.map_err(|_null| fail(last_words()))?;
    Ok(Some(Projector {
        at_once: context.decode_use_non_causal(),
        context,
    }))
}

impl Projector {
    /// Whether all tokens of a picture must fit into one pass.
    pub(super) fn needs_one_pass(&self) -> bool {
        self.at_once
    }

    pub(super) fn modalities(&self) -> Modalities {
        Modalities {
            image: self.context.support_vision(),
            audio_hz: self
                .context
                .get_audio_sample_rate()
                .filter(|_rate| self.context.support_audio()),
        }
    }

    /// Computes how many tokens a picture or sound takes, and all that is needed to read it later.
    pub(super) fn prepare(&self, media: &Media, batch_max: usize) -> Result<PreparedMedia, String> {
        media.check()?;
        let modalities = self.modalities();
        let bitmap = match media {
            Media::Image { .. } if !modalities.image => {
                return Err("this model's projector takes sound only, no pictures".to_owned());
            }
            Media::Audio { .. } if modalities.audio_hz.is_none() => {
                return Err("this model's projector takes pictures only, no sound".to_owned());
            }
            Media::Image { width, height, rgb } => {
                MtmdBitmap::from_image_data(*width, *height, rgb)
            }
            Media::Audio { pcm } => MtmdBitmap::from_audio_data(pcm),
        };
        let bitmap = bitmap.map_err(|error| error.to_string())?;
        let text = MtmdInputText {
            text: mtmd_default_marker().to_owned(),
            add_special: false,
            parse_special: true,
        };
        let chunks = self.context.tokenize(text, &[&bitmap]);
        let chunks = chunks.map_err(|_code| "the projector cannot take it apart".to_owned())?;
        self.fits_one_pass(&chunks, batch_max)?;
        let positions = usize::try_from(chunks.total_positions()).unwrap_or(0);
        let tokens = chunks.total_tokens();
        if tokens == 0 || positions == 0 || positions > tokens {
            return Err(format!(
                "the projector makes {tokens} tokens at {positions} positions of it"
            ));
        }
        Ok(PreparedMedia {
            tokens,
            positions,
            state: Box::new(chunks),
        })
    }

    /// llama.cpp ends the process where a picture that must be computed at once does not fit.
    fn fits_one_pass(&self, chunks: &MtmdInputChunks, batch_max: usize) -> Result<(), String> {
        let mut longest = 0;
        for index in 0..chunks.len() {
            if let Some(chunk) = chunks.get(index)
                && chunk.chunk_type() == MtmdInputChunkType::Image
            {
                longest = longest.max(chunk.n_tokens());
            }
        }
        if self.at_once && longest > batch_max {
            return Err(format!(
                "it takes {longest} tokens at once, more than the {batch_max} of a step; set batch = {longest} or more"
            ));
        }
        Ok(())
    }

    /// Reads what was prepared into a sequence, from `position` on. Says at which position the sequence then ends.
    pub(super) fn read(
        &mut self,
        context: &mut LlamaContext<'_>,
        state: &dyn Any,
        (slot, position, batch_max): (SlotId, usize, usize),
    ) -> Result<usize, String> {
        let chunks = state.downcast_ref::<MtmdInputChunks>();
        let chunks = chunks.ok_or("it was prepared by another engine")?;
        let number = |number: usize| i32::try_from(number).map_err(|error| error.to_string());
        let (from, batch) = (number(position)?, number(batch_max.max(1))?);
        let slot = i32::from(slot.0);
        let end = chunks.eval_chunks(&mut self.context, context, from, slot, batch, false);
        let end = end.map_err(|error| error.to_string())?;
        usize::try_from(end).map_err(|error| error.to_string())
    }
}

/// Where sequences have fewer positions than tokens: some models count a whole picture as a few positions.
#[derive(Clone, Debug, Default)]
pub(super) struct Positions {
    /// For each sequence: from which token on, and how many positions fewer.
    shifts: Vec<Vec<(usize, usize)>>,
}

impl Positions {
    pub(super) fn new(slots: u16) -> Self {
        Self {
            shifts: vec![Vec::new(); usize::from(slots)],
        }
    }

    /// The position of the token at `index`.
    pub(super) fn of(&self, slot: SlotId, index: usize) -> usize {
        let shifts = self.of_slot(slot).iter().rev();
        let shift = shifts.clone().find(|(from, _shift)| *from <= index);
        index - shift.map_or(0, |(_from, shift)| (*shift).min(index))
    }

    /// Whether positions and tokens are counted alike.
    pub(super) fn are_plain(&self, slot: SlotId) -> bool {
        self.of_slot(slot).is_empty()
    }

    /// The tokens before `end` have come to an end at `position`.
    pub(super) fn note(&mut self, slot: SlotId, end: usize, position: usize) {
        let shift = end.saturating_sub(position);
        if shift > 0
            && let Some(shifts) = self.shifts.get_mut(usize::from(slot.0))
        {
            shifts.push((end, shift));
        }
    }

    /// Only the first `len` tokens are left.
    pub(super) fn truncate(&mut self, slot: SlotId, len: usize) {
        if let Some(shifts) = self.shifts.get_mut(usize::from(slot.0)) {
            shifts.retain(|(from, _shift)| *from <= len && len > 0);
        }
    }

    /// One sequence now holds what another does.
    pub(super) fn copy(&mut self, from: SlotId, to: SlotId) {
        let copied = self.of_slot(from).to_vec();
        if let Some(shifts) = self.shifts.get_mut(usize::from(to.0)) {
            *shifts = copied;
        }
    }

    fn of_slot(&self, slot: SlotId) -> &[(usize, usize)] {
        self.shifts
            .get(usize::from(slot.0))
            .map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_fall_behind_tokens_after_each_picture() {
        let slot = SlotId(1);
        let mut positions = Positions::new(2);
        assert_eq!(positions.of(slot, 100), 100);
        // Ten tokens of text, a picture of 20 tokens at 5 positions, ten more, the same picture.
        positions.note(slot, 30, 15);
        positions.note(slot, 60, 30);
        assert_eq!(positions.of(slot, 9), 9);
        assert_eq!(positions.of(slot, 30), 15);
        assert_eq!(positions.of(slot, 39), 24);
        assert_eq!(positions.of(slot, 60), 30);
        positions.copy(slot, SlotId(0));
        positions.truncate(slot, 40);
        assert_eq!(positions.of(slot, 60), 45);
        assert_eq!(positions.of(SlotId(0), 60), 30);
        positions.truncate(slot, 0);
        assert!(positions.are_plain(slot) && !positions.are_plain(SlotId(0)));
    }
}
