//! Writes tiny projectors with random weights: one that turns any picture of 64 x 64 pixels into 4 tokens, one that turns 30 seconds
//! of sound into 150. What a model says about them is nonsense, but the same nonsense every time. Included by the tests of several
//! crates, so it must not need any of them.

use std::fs;
use std::path::{Path, PathBuf};

/// Width within the projector.
const WIDTH: u64 = 64;
const FEED_FORWARD: u64 = 128;
/// Side of the picture and of its patches in pixels; 4 x 4 patches become one token.
const SIDE: u64 = 64;
const PATCH: u64 = 8;
/// Bands of sound, and frames within 30 seconds after the first halving.
const BANDS: u64 = 80;
const FRAMES: u64 = 1_500;
/// So many frames become one token.
const STACK: u64 = 10;
const HIDDEN: u64 = 64;
const ALIGNMENT: usize = 32;

/// Tokens of any picture.
pub(crate) const IMAGE_TOKENS: u64 = 4;
/// Tokens of up to 30 seconds of sound.
pub(crate) const AUDIO_TOKENS: u64 = 150;
/// Width of the tiny models in this folder.
pub(crate) const TINY_WIDTH: u64 = 128;

/// Writes a projector for pictures for a model of that width.
pub(crate) fn write_vision(folder: &Path, model_width: u64) -> PathBuf {
    let mut file = File::new("gemma3", "vision");
    file.numbers(&[
        ("image_size", SIDE),
        ("patch_size", PATCH),
        ("projector.scale_factor", 4),
        ("projection_dim", model_width),
    ]);
    for key in ["image_mean", "image_std"] {
        file.floats(&format!("clip.vision.{key}"), &[0.5; 3]);
    }
    let patches = (SIDE / PATCH).pow(2);
    file.random("v.patch_embd.weight", &[PATCH, PATCH, 3, WIDTH]);
    file.same("v.patch_embd.bias", &[WIDTH], 0.0);
    file.random("v.position_embd.weight", &[WIDTH, patches]);
    file.layer("v", &["attn_q", "attn_k", "attn_v", "attn_out"]);
    file.same("mm.soft_emb_norm.weight", &[WIDTH], 1.0);
    file.random("mm.input_projection.weight", &[model_width, WIDTH]);
    file.finish(&folder.join("mmproj-vision.gguf"))
}

/// Writes a projector for sound for a model of that width.
pub(crate) fn write_audio(folder: &Path, model_width: u64) -> PathBuf {
    let mut file = File::new("ultravox", "audio");
    file.numbers(&[
        ("num_mel_bins", BANDS),
        ("projector.stack_factor", STACK),
        ("projection_dim", model_width),
    ]);
    file.half("a.conv1d.1.weight", &[3, BANDS, WIDTH]);
    file.same("a.conv1d.1.bias", &[1, WIDTH], 0.0);
    file.half("a.conv1d.2.weight", &[3, WIDTH, WIDTH]);
    file.same("a.conv1d.2.bias", &[1, WIDTH], 0.0);
    file.random("a.position_embd.weight", &[WIDTH, FRAMES]);
    file.layer("a", &["attn_q", "attn_v", "attn_out"]);
    file.random("a.blk.0.attn_k.weight", &[WIDTH, WIDTH]);
    file.same("mm.a.norm_pre.weight", &[WIDTH * STACK], 1.0);
    file.random("mm.a.mlp.1.weight", &[WIDTH * STACK, HIDDEN * 2]);
    file.same("mm.a.norm_mid.weight", &[HIDDEN], 1.0);
    file.random("mm.a.mlp.2.weight", &[HIDDEN, model_width]);
    file.finish(&folder.join("mmproj-audio.gguf"))
}

struct File {
    kind: &'static str,
    values: Vec<u8>,
    values_count: u64,
    tensors: Vec<u8>,
    tensors_count: u64,
    data: Vec<u8>,
    random: u64,
}

impl File {
    fn new(projector: &str, kind: &'static str) -> Self {
        let mut file = Self {
            kind,
            values: Vec::new(),
            values_count: 0,
            tensors: Vec::new(),
            tensors_count: 0,
            data: Vec::new(),
            random: 1,
        };
        file.text("general.architecture", "clip");
        file.text("clip.projector_type", projector);
        for (key, on) in [
            ("clip.has_vision_encoder", kind == "vision"),
            ("clip.has_audio_encoder", kind == "audio"),
            ("clip.use_gelu", true),
        ] {
            file.key(key, 7);
            file.values.push(u8::from(on));
        }
        file.numbers(&[
            ("embedding_length", WIDTH),
            ("feed_forward_length", FEED_FORWARD),
            ("block_count", 1),
            ("attention.head_count", 2),
        ]);
        file.key(&format!("clip.{kind}.attention.layer_norm_epsilon"), 6);
        file.values.extend(1e-6_f32.to_le_bytes());
        file
    }

    fn layer(&mut self, part: &str, with_bias: &[&str]) {
        for name in with_bias {
            self.random(&format!("{part}.blk.0.{name}.weight"), &[WIDTH, WIDTH]);
            self.same(&format!("{part}.blk.0.{name}.bias"), &[WIDTH], 0.0);
        }
        for name in ["blk.0.ln1", "blk.0.ln2", "post_ln"] {
            self.same(&format!("{part}.{name}.weight"), &[WIDTH], 1.0);
            self.same(&format!("{part}.{name}.bias"), &[WIDTH], 0.0);
        }
        for (name, from, to) in [
            ("ffn_up", WIDTH, FEED_FORWARD),
            ("ffn_down", FEED_FORWARD, WIDTH),
        ] {
            self.random(&format!("{part}.blk.0.{name}.weight"), &[from, to]);
            self.same(&format!("{part}.blk.0.{name}.bias"), &[to], 0.0);
        }
    }

    fn finish(self, path: &Path) -> PathBuf {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors_count.to_le_bytes());
        file.extend(self.values_count.to_le_bytes());
        file.extend(self.values);
        file.extend(self.tensors);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(self.data);
        fs::write(path, file).expect("the folder is writable");
        path.to_owned()
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

    fn numbers(&mut self, numbers: &[(&str, u64)]) {
        for (key, value) in numbers {
            self.key(&format!("clip.{}.{key}", self.kind), 4);
            let value = u32::try_from(*value).expect("small");
            self.values.extend(value.to_le_bytes());
        }
    }

    fn floats(&mut self, key: &str, floats: &[f32]) {
        self.key(key, 9);
        self.values.extend(6_u32.to_le_bytes());
        self.values.extend((floats.len() as u64).to_le_bytes());
        for float in floats {
            self.values.extend(float.to_le_bytes());
        }
    }

    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32) -> u64 {
        self.tensors.extend((name.len() as u64).to_le_bytes());
        self.tensors.extend(name.as_bytes());
        let dimensions = u32::try_from(shape.len()).expect("at most four");
        self.tensors.extend(dimensions.to_le_bytes());
        for length in shape {
            self.tensors.extend(length.to_le_bytes());
        }
        self.data
            .resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensors_count += 1;
        shape.iter().product()
    }

    fn same(&mut self, name: &str, shape: &[u64], number: f32) {
        for _number in 0..self.tensor(name, shape, 0) {
            self.data.extend(number.to_le_bytes());
        }
    }

    fn random(&mut self, name: &str, shape: &[u64]) {
        for _number in 0..self.tensor(name, shape, 0) {
            let number = self.draw();
            self.data.extend(number.to_le_bytes());
        }
    }

    /// The same as 16-bit floats, which convolutions over time want.
    fn half(&mut self, name: &str, shape: &[u64]) {
        for _number in 0..self.tensor(name, shape, 1) {
            let bits = self.draw().to_bits();
            let exponent = (bits >> 23 & 0xff).saturating_sub(112);
            let number = bits >> 16 & 0x8000 | exponent << 10 | bits >> 13 & 0x3ff;
            let [low, high, ..] = number.to_le_bytes();
            self.data.extend([low, high]);
        }
    }

    /// A number within -0.25 and 0.25.
    fn draw(&mut self) -> f32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // 24 bits, as many as a number has room for.
        let [high, middle, low, ..] = self.random.to_be_bytes();
        let bits = f32::from(u16::from_be_bytes([high, middle])) * 256.0 + f32::from(low);
        bits / 33_554_432.0 - 0.25
    }
}
