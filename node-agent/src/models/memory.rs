//! How much memory a model takes: weights, KV cache and buffers, from its header and the settings. Pure arithmetic; the figures are held
//! against real workers by a test. Linear in the context: a cell of the cache is the same size at any length.

use super::gguf::Gguf;

/// Cells of a cache come in steps (llama.cpp pads `n_ctx`).
const CELL_STEP: u64 = 256;
/// Libraries, heap and thread stacks of a worker with the smallest model, without its program.
const PROCESS_BYTES: u64 = 10 * MIB;
/// Of the program itself, so many hundredths are in memory: what a worker never calls stays on disk. From resident pages of workers of
/// unoptimised builds on Linux (18 of 40 MiB).
const PROGRAM_SHARE: u64 = 45;
/// Where the system does not say how large the program is: about what a build has.
const PROGRAM_BYTES: u64 = if cfg!(debug_assertions) {
    40 * MIB
} else {
    18 * MIB
};
/// Memory for each word of the vocabulary: its text, its id, its merge rules. An estimate: the tests' models have 1,024 words.
const WORD_BYTES: u64 = 350;
const MIB: u64 = 1024 * 1024;
/// Prompt tokens that are computed at once: as the worker has it while it computes exactly, and otherwise.
const UBATCH_EXACT: u64 = 128;
const UBATCH: u64 = 512;
/// Above so many bytes of attention scores the worker uses flash attention.
const SCORES_BYTES_MAX: u64 = 256 * MIB;

/// What matters about a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Bytes of all tensors.
    pub weights: u64,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Layers.
    pub layers: u64,
    /// Tokens it was trained for.
    pub context_max: u64,
    /// Words of its vocabulary.
    pub vocabulary: u64,
    /// Whether only some experts compute each token. All of them are in memory all the same.
    pub experts: u64,
    /// Experts that compute a token.
    pub experts_used: u64,
    embedding: u64,
    feed_forward: u64,
    heads: u64,
    cache: Vec<LayerCache>,
}

/// One layer's part of the cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct LayerCache {
    /// Keys and values of one cell, in numbers.
    numbers: u64,
    /// Cells that are ever needed; `None` = all of the context.
    window: Option<u64>,
}

/// How it is loaded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Load {
    /// Tokens of one slot.
    pub context: u64,
    /// Requests at once.
    pub slots: u64,
    /// 32nds of a byte for a cached number: 64 for f16, 34 for `q8_0`, 18 for `q4_0`.
    pub kv_32nds: u64,
    /// Layers on a GPU.
    pub gpu_layers: u64,
    /// Flash attention, if the settings say; else it is used where it saves much.
    pub flash: Option<bool>,
    /// Tokens of all slots together, where they share one cache.
    pub unified: Option<u64>,
    /// Layers with a window keep everything.
    pub swa_full: bool,
    /// Most tokens of one step.
    pub batch: u64,
    /// Bytes of the worker's program that are mapped.
    pub program: u64,
}

impl Load {
    /// Without anything special.
    pub const fn plain(context: u64, slots: u64, kv_32nds: u64, gpu_layers: u64) -> Self {
        Self {
            context,
            slots,
            kv_32nds,
            gpu_layers,
            flash: None,
            unified: None,
            swa_full: false,
            batch: 512,
            program: PROGRAM_BYTES,
        }
    }

    /// With a program of so many bytes, if that is known.
    #[must_use]
    pub fn with_program(self, program: Option<u64>) -> Self {
        Self {
            program: program.unwrap_or(self.program),
            ..self
        }
    }

    /// Tokens that each cache holds, and how many caches there are.
    fn caches(&self) -> (u64, u64) {
        match self.unified {
            None => (self.context, self.slots),
            Some(all) => {
                let most = self.context.saturating_mul(self.slots);
                (all.max(self.context).min(most), 1)
            }
        }
    }
}

/// Bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct Need {
    /// Weights, mapped from the file.
    pub weights: u64,
    /// Keys and values of all slots.
    pub kv_cache: u64,
    /// Scratch space of one step, and its results.
    pub compute: u64,
    /// The program itself.
    pub process: u64,
}

impl Need {
    /// All of it.
    pub const fn total(&self) -> u64 {
        self.weights
            .saturating_add(self.kv_cache)
            .saturating_add(self.compute)
            .saturating_add(self.process)
    }
}

impl Shape {
    /// Reads it from a header; the reason if it is no language model.
    pub fn of(gguf: &Gguf) -> Result<Self, String> {
        let number = |key: &str| gguf.arch_number(key);
        let needed = |key: &str| {
            let architecture = gguf.architecture().unwrap_or("the architecture");
            number(key).filter(|value| *value > 0).ok_or_else(|| {
                format!("it does not say {architecture}.{key}: it is no language model")
            })
        };
        let embedding = needed("embedding_length")?;
        let layers = needed("block_count")?.min(10_000);
        let heads = number("attention.head_count").unwrap_or(1).max(1);
        Ok(Self {
            weights: gguf.tensor_bytes(),
            parameters: gguf.parameters(),
            layers,
            context_max: needed("context_length")?,
            vocabulary: gguf
                .array_len("tokenizer.ggml.tokens")
                .or_else(|| number("vocab_size"))
                .unwrap_or(0),
            experts: number("expert_count").unwrap_or(0),
            experts_used: number("expert_used_count").unwrap_or(0),
            embedding,
            feed_forward: number("feed_forward_length").unwrap_or(4 * embedding),
            heads,
            cache: caches(gguf, layers, heads, embedding),
        })
    }

    /// What it takes.
    pub fn need(&self, load: Load) -> Need {
        let exact = self.is_exact(load);
        let ubatch = if exact { UBATCH_EXACT } else { UBATCH }.min(load.batch);
        Need {
            weights: self.weights,
            kv_cache: self.kv_cache(load, ubatch),
            compute: self.compute(load, ubatch, exact),
            process: PROCESS_BYTES
                .saturating_add(load.program / 100 * PROGRAM_SHARE)
                .saturating_add(self.vocabulary.saturating_mul(WORD_BYTES)),
        }
    }

    /// As the worker decides it: the same arithmetic.
    fn is_exact(&self, load: Load) -> bool {
        let scores = load
            .context
            .saturating_mul(self.heads)
            .saturating_mul(UBATCH_EXACT * 4);
        let wanted = match load.flash {
            None => load.gpu_layers == 0 && scores <= SCORES_BYTES_MAX,
            Some(flash) => !flash,
        };
        wanted && load.kv_32nds >= 64
    }

    fn kv_cache(&self, load: Load, ubatch: u64) -> u64 {
        let (tokens, caches) = load.caches();
        let cells = tokens.div_ceil(CELL_STEP).saturating_mul(CELL_STEP);
        let layer = |layer: &LayerCache| {
            let of_window = |window: u64| {
                window.saturating_add(ubatch).min(cells).div_ceil(CELL_STEP) * CELL_STEP
            };
            let window = layer.window.filter(|_window| !load.swa_full);
            let cells = window.map_or(cells, of_window);
            cells
                .saturating_mul(layer.numbers)
                .saturating_mul(load.kv_32nds)
                / 32
        };
        let one = self.cache.iter().map(layer).fold(0, u64::saturating_add);
        one.saturating_mul(caches)
    }

    fn compute(&self, load: Load, ubatch: u64, exact: bool) -> u64 {
        let row = 2 * self.feed_forward + 4 * self.embedding;
        let work = ubatch.saturating_mul(row).saturating_mul(4);
        let scores = if exact {
            load.context
                .saturating_mul(self.heads)
                .saturating_mul(ubatch * 4)
        } else {
            load.context.saturating_mul(ubatch * 4)
        };
        let logits = load
            .slots
            .max(1)
            .saturating_mul(self.vocabulary * 4)
            .saturating_mul(2);
        work.saturating_add(scores).saturating_add(logits)
    }

    /// The longest context, in steps of 256, with which it takes at most `bytes`; `None` if not even 256 tokens do.
    pub fn longest(&self, load: Load, bytes: u64) -> Option<u64> {
        let fits = |context: u64| self.need(Load { context, ..load }).total() <= bytes;
        if !fits(CELL_STEP.min(self.context_max)) {
            return None;
        }
        if fits(self.context_max) {
            return Some(self.context_max);
        }
        let (mut good, mut bad) = (1, self.context_max / CELL_STEP + 1);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if fits(middle * CELL_STEP) {
                good = middle;
            } else {
                bad = middle;
            }
        }
        Some(good * CELL_STEP)
    }

    /// Bytes that are read for one token: all weights, or of a mixture its part.
    pub fn read_per_token(&self) -> u64 {
        if self.experts == 0 || self.experts_used == 0 {
            return self.weights;
        }
        // Attention and embeddings, about a fifth, are read always.
        let fifth = self.weights / 5;
        fifth + (self.weights - fifth) / self.experts.max(1) * self.experts_used.min(self.experts)
    }
}

fn caches(gguf: &Gguf, layers: u64, heads: u64, embedding: u64) -> Vec<LayerCache> {
    let arch = gguf.architecture().unwrap_or_default();
    let key = |name: &str| format!("{arch}.{name}");
    let window = gguf
        .arch_number("attention.sliding_window")
        .filter(|window| *window > 0);
    let own = layers.saturating_sub(gguf.arch_number("attention.shared_kv_layers").unwrap_or(0));
    let head = embedding / heads;
    let width = |name: &str, swa: bool| {
        let plain = gguf
            .arch_number(&format!("attention.{name}"))
            .unwrap_or(head);
        let narrow = swa
            .then(|| gguf.arch_number(&format!("attention.{name}_swa")))
            .flatten();
        narrow.unwrap_or(plain)
    };
    let mut found = Vec::new();
    for layer in 0..own {
        let index = usize::try_from(layer).unwrap_or(usize::MAX);
        let pattern = gguf.per_layer(&key("attention.sliding_window_pattern"), index);
        let listed = gguf
            .array_len(&key("attention.sliding_window_pattern"))
            .is_some();
        let windowed = window.is_some()
            && if listed {
                pattern == Some(1)
            } else {
                is_windowed(arch, pattern, layer)
            };
        let kv_heads = gguf
            .per_layer(&key("attention.head_count_kv"), index)
            .unwrap_or(heads);
        found.push(LayerCache {
            numbers: kv_heads
                .saturating_mul(width("key_length", windowed) + width("value_length", windowed)),
            window: window.filter(|_window| windowed),
        });
    }
    found
}

/// Layers with a window where the file does not list them: llama.cpp's patterns (every nth layer sees all).
fn is_windowed(arch: &str, pattern: Option<u64>, layer: u64) -> bool {
    let every = pattern.filter(|every| *every > 1).or(match arch {
        "gemma2" | "gpt-oss" => Some(2),
        "gemma3" => Some(6),
        "gemma3n" => Some(5),
        "cohere2" | "llama4" | "exaone4" | "olmo2" => Some(4),
        _ => None,
    });
    every.is_some_and(|every| layer % every < every - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(context: u64) -> Load {
        Load::plain(context, 1, 64, 0)
    }

    fn shape(cache: Vec<LayerCache>) -> Shape {
        Shape {
            weights: 1_000_000,
            parameters: 1_000_000,
            layers: 2,
            context_max: 131_072,
            vocabulary: 1_024,
            experts: 0,
            experts_used: 0,
            embedding: 64,
            feed_forward: 256,
            heads: 2,
            cache,
        }
    }

    #[test]
    fn the_cache_grows_in_a_line_and_a_window_stops_it() {
        let full = LayerCache {
            numbers: 128,
            window: None,
        };
        let windowed = LayerCache {
            numbers: 128,
            window: Some(512),
        };
        let of =
            |layers: &[LayerCache], context| shape(layers.to_vec()).need(load(context)).kv_cache;
        assert_eq!(of(&[full], 1024), 1024 * 128 * 2);
        assert_eq!(of(&[full], 4096), 4 * of(&[full], 1024));
        assert_eq!(of(&[windowed], 4096), of(&[windowed], 65_536 / 4));
        assert_eq!(of(&[full, full], 2048), 2 * of(&[full], 2048));
    }

    #[test]
    fn the_longest_context_is_the_largest_that_fits() {
        let shape = shape(vec![
            LayerCache {
                numbers: 128,
                window: None
            };
            2
        ]);
        let bytes = 64 * MIB;
        let longest = shape.longest(load(0), bytes).expect("something fits");
        assert!(longest.is_multiple_of(256) && longest < 131_072);
        assert!(shape.need(load(longest)).total() <= bytes);
        assert!(shape.need(load(longest + 256)).total() > bytes);
        assert_eq!(shape.longest(load(0), 1000), None);
        assert_eq!(shape.longest(load(0), u64::MAX), Some(131_072));
    }
}
