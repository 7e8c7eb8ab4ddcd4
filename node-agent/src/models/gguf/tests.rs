//! Real files read right; damaged ones are refused, whatever the damage.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/models")
        .join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(model(name)).expect("the model is there")
}

fn read(bytes: &[u8]) -> Result<Gguf, Problem> {
    Gguf::read(bytes, u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

/// A header from parts: counts, then raw entries.
fn header(tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    bytes.extend(rest);
    bytes
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = u64::try_from(name.len())
        .expect("fits")
        .to_le_bytes()
        .to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
    bytes
}

fn tensor(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = u64::try_from(name.len())
        .expect("fits")
        .to_le_bytes()
        .to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(u32::try_from(dimensions.len()).expect("fits").to_le_bytes());
    bytes.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn a_real_file_tells_what_it_is() {
    let gguf = Gguf::open(&model("tiny-fast-q8_0.gguf")).expect("reads");
    assert_eq!(gguf.architecture(), Some("llama"));
    assert!(
        gguf.chat_template()
            .is_some_and(|template| template.contains("messages"))
    );
    assert_eq!(gguf.array_len("tokenizer.ggml.tokens"), Some(1024));
    assert!(
        gguf.arch_number("block_count")
            .is_some_and(|layers| layers > 0)
    );
    assert!(gguf.tensor_bytes() < gguf.file_bytes);
    let other = Gguf::open(&model("tiny-heavy-q8_0.gguf")).expect("reads");
    assert_eq!(
        gguf.tokenizer_sha256, other.tokenizer_sha256,
        "the same vocabulary"
    );
    assert!(other.parameters() > gguf.parameters());
}

#[test]
fn a_file_cut_anywhere_in_its_header_is_refused_without_harm() {
    let bytes = bytes_of("tiny-fast-q8_0.gguf");
    let whole = read(&bytes).expect("reads");
    let header = usize::try_from(whole.data_offset).expect("fits");
    for len in (0..header).step_by(7).chain([bytes.len() - 1]) {
        let cut = bytes.get(..len).expect("shorter");
        assert!(read(cut).is_err(), "cut at {len}");
    }
}

#[test]
fn impossible_counts_are_refused_before_anything_is_allocated() {
    let huge = u64::MAX.to_le_bytes();
    let text_of = |bytes: &[u8]| read(bytes).expect_err("damaged").to_string();
    assert!(text_of(&header(u64::MAX, 0, &[0; 64])).contains("the count of tensors"));
    assert!(text_of(&header(0, u64::MAX, &[0; 64])).contains("the count of keys"));
    assert!(text_of(&header(0, 1, &key("a", 8, &huge))).contains("the length of a text"));
    let mut list = 8_u32.to_le_bytes().to_vec();
    list.extend(huge);
    assert!(text_of(&header(0, 1, &key("a", 9, &list))).contains("the length of a list"));
    let mut name = huge.to_vec();
    name.extend([0; 32]);
    assert!(text_of(&header(0, 1, &name)).contains("the name of a key"));
}

#[test]
fn wrong_types_lists_of_lists_and_doubles_are_refused() {
    let text_of = |bytes: &[u8]| read(bytes).expect_err("damaged").to_string();
    assert!(text_of(&header(0, 1, &key("a", 99, &[0; 16]))).contains("unknown type 99"));
    let mut nested = 9_u32.to_le_bytes().to_vec();
    nested.extend(1_u64.to_le_bytes());
    nested.extend([0; 32]);
    assert!(text_of(&header(0, 1, &key("a", 9, &nested))).contains("a list of lists"));
    let twice = [key("a", 7, &[1]), key("a", 7, &[1])].concat();
    assert!(text_of(&header(0, 2, &twice)).contains("comes twice"));
    let odd = key("general.alignment", 4, &3_u32.to_le_bytes());
    assert!(text_of(&header(0, 1, &odd)).contains("power of two"));
}

#[test]
fn tensors_that_lie_are_refused() {
    let text_of = |part: Vec<u8>| {
        let mut bytes = header(1, 0, &part);
        bytes.resize(bytes.len() + 256, 0);
        read(&bytes).expect_err("damaged").to_string()
    };
    assert!(text_of(tensor("t", &[0], 0, 0)).contains("impossible dimension"));
    assert!(text_of(tensor("t", &[1 << 40, 1 << 40], 0, 0)).contains("impossible dimension"));
    assert!(text_of(tensor("t", &[1; 5], 0, 0)).contains("5 dimensions"));
    assert!(text_of(tensor("t", &[4], 77, 0)).contains("unknown type 77"));
    assert!(text_of(tensor("t", &[33], 8, 0)).contains("blocks of 32"));
    assert!(text_of(tensor("t", &[4], 0, 7)).contains("no multiple of 32"));
    assert!(text_of(tensor("t", &[1 << 20], 0, 0)).contains("ends beyond the file"));
    assert!(text_of(tensor("t", &[4], 0, 1 << 62)).contains("ends beyond the file"));
}

#[test]
fn a_file_of_the_other_byte_order_is_told_apart() {
    assert_eq!(read(b"GGUF\0\0\0\x03"), Err(Problem::BigEndian));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_damage_never_panics_and_never_takes_more_memory_than_the_file(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = bytes_of("tiny-fast-q8_0.gguf");
        // Damage where it matters: the header.
        let header = 40_000.min(bytes.len());
        for (place, value) in changes {
            if let Some(byte) = bytes.get_mut(place.index(header)) {
                *byte = value;
            }
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(gguf) = read(&bytes) {
            let texts: usize = gguf.metadata.iter().map(|(key, value)| {
                key.len() + match value {
                    Value::Text(text) => text.len() / 3,
                    Value::Numbers(numbers) => numbers.len(),
                    Value::Number(_) | Value::Negative(_) | Value::Float(_) | Value::Bool(_) | Value::LongText(_) | Value::Array(_) => 0,
                }
            }).sum();
            prop_assert!(texts <= bytes.len());
            prop_assert!(gguf.tensors.len() * 32 <= bytes.len());
        }
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(rest in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(rest);
        let _read = read(&bytes);
    }
}
