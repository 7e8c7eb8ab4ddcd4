//! Tensor infos: name, shape, type, place. Must never read the numbers themselves.

use std::collections::BTreeSet;
use std::io::Read;

use super::read::Source;
use super::{Problem, shown};

/// Name length 8, dimensions 4, one of them 8, type 4, offset 8.
pub(super) const BYTES_MIN: u64 = 32;
const DIMENSIONS_MAX: u32 = 4;

/// One tensor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tensor {
    /// Such as `blk.0.attn_q.weight`.
    pub name: String,
    /// One to four, the fastest first.
    pub dimensions: Vec<u64>,
    /// How its numbers are stored.
    pub kind: TensorType,
    /// How many numbers.
    pub elements: u64,
    /// Their size in the file.
    pub bytes: u64,
    /// Bytes from the start of the data.
    pub offset: u64,
}

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TensorType {
    /// ggml's number of it.
    pub id: u32,
    /// ggml's name.
    pub name: &'static str,
    /// Numbers of one block.
    pub block: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
}

/// All types that the bundled ggml reads (ggml.h, ggml-common.h).
const TYPES: [(u32, &str, u64, u64); 37] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
    // names that older files still carry for repacked blocks of Q4_0
    (31, "Q4_0_4_4", 32, 18),
    (36, "IQ4_NL_4_4", 32, 18),
];

impl TensorType {
    fn of(id: u32) -> Option<Self> {
        let (id, name, block, block_bytes) = *TYPES.iter().find(|row| row.0 == id)?;
        Some(Self {
            id,
            name,
            block,
            block_bytes,
        })
    }
}

pub(super) fn read_all<R: Read>(
    source: &mut Source<R>,
    count: u64,
) -> Result<Vec<Tensor>, Problem> {
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for _tensor in 0..count {
        let tensor = read_one(source)?;
        if !names.insert(tensor.name.clone()) {
            return Err(Problem::Damaged(format!(
                "the tensor {} comes twice",
                shown(&tensor.name)
            )));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_one<R: Read>(source: &mut Source<R>) -> Result<Tensor, Problem> {
    let what = "the list of tensors";
    let name = source.name("the name of a tensor")?;
    let damaged =
        |reason: String| Problem::Damaged(format!("the tensor {} {reason}", shown(&name)));
    let count = source.u32(what)?;
    if !(1..=DIMENSIONS_MAX).contains(&count) {
        return Err(damaged(format!(
            "has {count} dimensions; 1 to {DIMENSIONS_MAX} are possible"
        )));
    }
    let mut dimensions = Vec::new();
    let mut elements = 1_u64;
    for _dimension in 0..count {
        let size = source.u64(what)?;
        elements = elements
            .checked_mul(size)
            .filter(|_product| size > 0)
            .filter(|product| i64::try_from(*product).is_ok())
            .ok_or_else(|| damaged(format!("has an impossible dimension of {size}")))?;
        dimensions.push(size);
    }
    let id = source.u32(what)?;
    let kind = TensorType::of(id).ok_or_else(|| damaged(format!("is of the unknown type {id}")))?;
    let row = dimensions.first().copied().unwrap_or(1);
    if row % kind.block != 0 {
        return Err(damaged(format!(
            "has rows of {row} numbers, but {} comes in blocks of {}",
            kind.name, kind.block
        )));
    }
    let bytes = (elements / kind.block)
        .checked_mul(kind.block_bytes)
        .ok_or_else(|| damaged("is too large".to_owned()))?;
    let offset = source.u64(what)?;
    Ok(Tensor {
        name,
        dimensions,
        kind,
        elements,
        bytes,
        offset,
    })
}
