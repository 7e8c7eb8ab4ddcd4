//! Writes tiny GGUF models with random weights, one for each architecture that behaves differently in the cache: full attention
//! (`llama`, `qwen3`), a sliding window (`gemma3`), and a window with shared layers and inputs for each layer (`gemma4`).
//!
//! The weights follow from a seed, so every file is the same on every machine. What such a model says is nonsense, but it
//! says the same nonsense every time, which is what tests of caches need.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Width of the embeddings, and of one head.
const WIDTH: u64 = 64;
const HEADS: u64 = 2;
const FEED_FORWARD: u64 = 128;
const PER_LAYER: u64 = 32;
pub(crate) const WINDOW: u32 = 64;
const CONTEXT: u32 = 4_096;
const ALIGNMENT: usize = 32;
/// Texts after the 256 bytes in the vocabulary.
const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub(crate) const VOCABULARY: u64 = 256 + 1 + 3;

/// Which kind of model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arch {
    Llama,
    Qwen3,
    Gemma3,
    Gemma4,
}

impl Arch {
    pub(crate) const ALL: [Self; 4] = [Self::Llama, Self::Qwen3, Self::Gemma3, Self::Gemma4];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Gemma4 => "gemma4",
        }
    }

    pub(crate) const fn has_window(self) -> bool {
        matches!(self, Self::Gemma3 | Self::Gemma4)
    }

    const fn layers(self) -> u64 {
        match self {
            Self::Llama | Self::Qwen3 => 2,
            // The window's pattern repeats after six layers.
            Self::Gemma3 => 6,
            // The last five share the caches of the first five, each of which ends on a layer with full attention.
            Self::Gemma4 => 10,
        }
    }
}

/// What a model has besides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extra {
    /// `pooling_type` of its metadata.
    pub(crate) pooling: Option<u32>,
    /// A head that says yes or no.
    pub(crate) classifier: bool,
    /// The control tokens are those around a hole.
    pub(crate) fim: bool,
    /// The first control token stands before every text.
    pub(crate) begins: bool,
}

/// Writes a model with something besides into `folder`.
pub(crate) fn write_with(folder: &Path, arch: Arch, name: &str, extra: Extra) -> PathBuf {
    let mut gguf = Gguf::new(arch);
    gguf.metadata();
    if let Some(pooling) = extra.pooling {
        gguf.own_number("pooling_type", pooling);
    }
    if extra.classifier {
        let key = format!("{}.classifier.output_labels", arch.name());
        gguf.list(&key, 8, 2);
        gguf.string("yes");
        gguf.string("no");
    }
    gguf.vocabulary(extra.begins);
    if extra.fim {
        for (key, token) in [("pre", 257_u32), ("suf", 258), ("mid", 259)] {
            gguf.number(&format!("tokenizer.ggml.fim_{key}_token_id"), token);
        }
    }
    gguf.weights();
    if extra.classifier {
        gguf.matrix("cls.output.weight", WIDTH, 2);
    }
    let path = folder.join(format!("{name}.gguf"));
    fs::write(&path, gguf.finish()).expect("the folder is writable");
    path
}

/// Writes an adapter for a `llama` model of [`write`].
pub(crate) fn write_lora(folder: &Path, width: u64) -> PathBuf {
    const RANK: u64 = 4;
    let mut gguf = Gguf::new(Arch::Llama);
    gguf.text("general.type", "adapter");
    gguf.text("general.architecture", "llama");
    gguf.text("adapter.type", "lora");
    gguf.key("adapter.lora.alpha", 6);
    gguf.values.extend(64.0_f32.to_le_bytes());
    for layer in 0..Arch::Llama.layers() {
        let name = format!("blk.{layer}.ffn_up.weight");
        gguf.matrix(&format!("{name}.lora_a"), width, RANK);
        gguf.matrix(&format!("{name}.lora_b"), RANK, FEED_FORWARD);
    }
    let path = folder.join(format!("adapter-{width}.gguf"));
    fs::write(&path, gguf.finish()).expect("the folder is writable");
    path
}

/// Writes a model into `folder`.
pub(crate) fn write(folder: &Path, arch: Arch) -> PathBuf {
    let mut gguf = Gguf::new(arch);
    gguf.metadata();
    gguf.vocabulary(false);
    gguf.weights();
    let path = folder.join(format!("{}.gguf", arch.name()));
    fs::write(&path, gguf.finish()).expect("the folder is writable");
    path
}

struct Gguf {
    arch: Arch,
    values: Vec<u8>,
    values_count: u64,
    tensors: Vec<u8>,
    tensors_count: u64,
    data: Vec<u8>,
    random: u64,
}

impl Gguf {
    fn new(arch: Arch) -> Self {
        Self {
            arch,
            values: Vec::new(),
            values_count: 0,
            tensors: Vec::new(),
            tensors_count: 0,
            data: Vec::new(),
            random: 1,
        }
    }

    fn metadata(&mut self) {
        self.text("general.architecture", self.arch.name());
        self.text("general.name", "random");
        let layers = u32::try_from(self.arch.layers()).expect("few");
        for (key, value) in [
            ("context_length", CONTEXT),
            ("embedding_length", 64),
            ("block_count", layers),
            ("feed_forward_length", 128),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 64),
            ("attention.value_length", 64),
            ("rope.dimension_count", 64),
        ] {
            self.own_number(key, value);
        }
        self.own_float("attention.layer_norm_rms_epsilon", 1e-6);
        self.own_float("rope.freq_base", 10_000.0);
        if self.arch.has_window() {
            self.own_number("attention.sliding_window", WINDOW);
        }
        if self.arch == Arch::Gemma4 {
            for (key, value) in [
                ("attention.key_length_swa", 64),
                ("attention.value_length_swa", 64),
                ("embedding_length_per_layer_input", 32),
                ("attention.shared_kv_layers", 5),
                ("rope.dimension_count_swa", 64),
            ] {
                self.own_number(key, value);
            }
            self.own_float("rope.freq_base_swa", 10_000.0);
            self.own_float("final_logit_softcapping", 30.0);
            let key = "gemma4.attention.sliding_window_pattern";
            self.list(key, 7, layers);
            self.values
                .extend((1..=layers).map(|layer| u8::from(layer % 5 != 0)));
        }
    }

    fn vocabulary(&mut self, begins: bool) {
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "qwen2");
        let count = u32::try_from(VOCABULARY).expect("small");
        self.list("tokenizer.ggml.tokens", 8, count);
        for byte in 0..=u8::MAX {
            let text = as_printable(byte).to_string();
            self.string(&text);
        }
        for text in ["th"].into_iter().chain(CONTROL) {
            self.string(text);
        }
        self.list("tokenizer.ggml.token_type", 5, count);
        for token in 0..count {
            let kind: i32 = if token > 256 { 3 } else { 1 };
            self.values.extend(kind.to_le_bytes());
        }
        self.list("tokenizer.ggml.merges", 8, 1);
        self.string("t h");
        for (key, token) in [("bos", 257_u32), ("eos", 259), ("padding", 257)] {
            self.number(&format!("tokenizer.ggml.{key}_token_id"), token);
        }
        self.key("tokenizer.ggml.add_bos_token", 7);
        self.values.push(u8::from(begins));
    }

    fn weights(&mut self) {
        let gemma = self.arch.has_window();
        let gemma4 = self.arch == Arch::Gemma4;
        let layers = self.arch.layers();
        self.matrix("token_embd.weight", WIDTH, VOCABULARY);
        self.ones("output_norm.weight", WIDTH);
        if gemma4 {
            self.matrix(
                "per_layer_token_embd.weight",
                PER_LAYER * layers,
                VOCABULARY,
            );
            self.matrix("per_layer_model_proj.weight", WIDTH, PER_LAYER * layers);
            self.ones("per_layer_proj_norm.weight", PER_LAYER);
            self.ones("rope_freqs.weight", WIDTH / 2);
        }
        for layer in 0..layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let mut norms = vec!["attn_norm", "ffn_norm"];
            if gemma {
                norms.extend(["post_attention_norm", "post_ffw_norm"]);
            }
            if self.arch != Arch::Llama {
                norms.extend(["attn_q_norm", "attn_k_norm"]);
            }
            if gemma4 {
                norms.push("post_norm");
                self.ones(&name("layer_output_scale"), 1);
                self.matrix(&name("inp_gate"), WIDTH, PER_LAYER);
                self.matrix(&name("proj"), PER_LAYER, WIDTH);
            }
            for norm in norms {
                self.ones(&name(norm), WIDTH);
            }
            for (part, from, to) in [
                ("attn_q", WIDTH, HEADS * WIDTH),
                ("attn_k", WIDTH, WIDTH),
                ("attn_v", WIDTH, WIDTH),
                ("attn_output", HEADS * WIDTH, WIDTH),
                ("ffn_gate", WIDTH, FEED_FORWARD),
                ("ffn_up", WIDTH, FEED_FORWARD),
                ("ffn_down", FEED_FORWARD, WIDTH),
            ] {
                self.matrix(&name(part), from, to);
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors_count.to_le_bytes());
        file.extend(self.values_count.to_le_bytes());
        file.extend(self.values);
        file.extend(self.tensors);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(self.data);
        file
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.string(key);
        self.values.extend(kind.to_le_bytes());
        self.values_count += 1;
    }

    fn string(&mut self, text: &str) {
        self.values.extend((text.len() as u64).to_le_bytes());
        self.values.extend(text.as_bytes());
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        self.string(text);
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.values.extend(value.to_le_bytes());
    }

    fn own_number(&mut self, key: &str, value: u32) {
        self.number(&format!("{}.{key}", self.arch.name()), value);
    }

    fn own_float(&mut self, key: &str, value: f32) {
        self.key(&format!("{}.{key}", self.arch.name()), 6);
        self.values.extend(value.to_le_bytes());
    }

    fn list(&mut self, key: &str, kind: u32, count: u32) {
        self.key(key, 9);
        self.values.extend(kind.to_le_bytes());
        self.values.extend(u64::from(count).to_le_bytes());
    }

    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32) {
        self.tensors.extend((name.len() as u64).to_le_bytes());
        self.tensors.extend(name.as_bytes());
        let dimensions = u32::try_from(shape.len()).expect("few");
        self.tensors.extend(dimensions.to_le_bytes());
        for length in shape {
            self.tensors.extend(length.to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensors_count += 1;
    }

    fn pad(&mut self) {
        self.data
            .resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
    }

    fn ones(&mut self, name: &str, length: u64) {
        self.tensor(name, &[length], 0);
        for _number in 0..length {
            self.data.extend(1.0_f32.to_le_bytes());
        }
        self.pad();
    }

    fn matrix(&mut self, name: &str, from: u64, to: u64) {
        self.tensor(name, &[from, to], 1);
        // A sum of `from` products is then about as large as its factors.
        let from_exact = u16::try_from(from).expect("small");
        let scale = (3.0 / f32::from(from_exact)).sqrt();
        for _number in 0..from * to {
            let number = half(self.draw() * scale);
            self.data.extend(number.to_le_bytes());
        }
        self.pad();
    }

    /// A number within -1 and 1.
    fn draw(&mut self) -> f32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // Sixteen bits are as many as a half can tell apart.
        let top = u16::try_from(self.random >> 48).expect("16 bits");
        f32::from(top) / 32_768.0 - 1.0
    }
}

/// The 16-bit float nearest to zero's side of a small number.
fn half(number: f32) -> u16 {
    const MANTISSA_BITS: u32 = 10;
    let bits = number.to_bits();
    let low = |bits: u32| u16::try_from(bits & 0xffff).expect("16 bits");
    let sign = low(bits >> 16) & 0x8000;
    // From a bias of 127 to one of 15; what is smaller than a half can be is zero.
    let Some(exponent) = (bits >> 23 & 0xff)
        .checked_sub(127 - 15)
        .filter(|exponent| *exponent > 0)
    else {
        return sign;
    };
    sign | low(exponent << MANTISSA_BITS) | (low(bits >> 13) & 0x3ff)
}

/// The character that stands for a byte in byte-level vocabularies: itself if it can be seen, else one from 256 on.
fn as_printable(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !visible(*byte)).count();
    let above = u32::try_from(before).expect("below 256");
    char::from_u32(256 + above).expect("a character")
}
