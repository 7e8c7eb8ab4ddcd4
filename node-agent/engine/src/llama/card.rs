//! What a loaded model says about itself.

use std::ffi::CStr;

use llama_cpp_2::LlamaBackendDeviceType;
use llama_cpp_2::list_llama_ggml_backend_devices;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llama_cpp_2::vocab::LlamaVocab;

use crate::media::Modalities;
use crate::names;
use crate::spec::Device;
use crate::spec::Fim;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;
use crate::spec::Task;

/// Architectures that are no causal language models; decoding with them fails an assertion.
const NOT_CAUSAL: [&str; 8] = [
    "bert",
    "clip",
    "dream",
    "gemma-embedding",
    "llada",
    "rnd1",
    "t5",
    "wavtokenizer",
];

/// Architectures without a vector for a whole text.
const NO_VECTORS: [&str; 3] = ["clip", "t5", "wavtokenizer"];

/// More than any vocabulary has but for reserved ones.
const CONTROL_TOKENS_MAX: usize = 8_192;

/// Reads the model's metadata; says why it cannot be served.
pub(super) fn read_card(
    spec: &LoadSpec,
    model: &LlamaModel,
    threads: u16,
) -> Result<ModelCard, String> {
    let text = |key: &str| {
        model
            .meta_val_str(key)
            .ok()
            .filter(|value| !value.is_empty())
    };
    let architecture = text("general.architecture").ok_or("it names no architecture")?;
    let is_a = |kinds: &[&str]| kinds.iter().any(|kind| architecture.contains(kind));
    if spec.task == Task::Generate && is_a(&NOT_CAUSAL) {
        return Err(format!(
            "{architecture} is not a causal language model; if it makes vectors, set kind = \"embedding\" or \"rerank\" for its tier"
        ));
    }
    if spec.task != Task::Generate && is_a(&NO_VECTORS) {
        return Err(format!("{architecture} makes no vectors for texts"));
    }
    let n_vocab = u32::try_from(model.n_vocab()).unwrap_or(0);
    let tokenizer = text("tokenizer.ggml.model").unwrap_or_default();
    if n_vocab == 0 || ["", "none", "no_vocab"].contains(&tokenizer.as_str()) {
        return Err("it has no tokenizer".to_owned());
    }
    let n_ctx_train = model.n_ctx_train();
    let wanted = if spec.n_ctx == 0 {
        n_ctx_train
    } else {
        spec.n_ctx.min(n_ctx_train)
    };
    let vocab = model.vocab();
    let token_text = |token: LlamaToken| {
        let known = u32::try_from(token.0).is_ok_and(|id| id < n_vocab);
        let text = known.then(|| vocab.text(token)).flatten();
        text.map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let file_name = spec
        .model_path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    Ok(ModelCard {
        name: text("general.name").or(file_name).unwrap_or_default(),
        chat_template: model
            .chat_template(None)
            .ok()
            .and_then(|template| template.to_string().ok()),
        bos_token: token_text(vocab.bos()),
        eos_token: token_text(vocab.eos()),
        add_bos: vocab.should_add_bos(),
        control_tokens: control_tokens(&vocab, n_vocab),
        n_ctx: wanted.max(1),
        n_ctx_train,
        n_vocab,
        parameters: model.n_params(),
        size_bytes: model.size(),
        quantization: names::quantization(text("general.file_type").as_deref()).to_owned(),
        slots: spec.slots,
        threads,
        devices: devices(spec.gpu_layers > 0),
        // The output counts as a layer.
        gpu_layers: spec.gpu_layers.min(model.n_layer() + 1),
        modalities: Modalities::default(),
        vectors: None,
        fim: fim(model, n_vocab),
        architecture,
    })
}

/// Whether there is a GPU that llama.cpp was built for. Its backends must have been started.
pub(super) fn has_gpu() -> bool {
    let is_gpu = |kind: LlamaBackendDeviceType| match kind {
        LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu => true,
        LlamaBackendDeviceType::Cpu
        | LlamaBackendDeviceType::Accelerator
        | LlamaBackendDeviceType::Unknown => false,
    };
    list_llama_ggml_backend_devices()
        .iter()
        .any(|device| is_gpu(device.device_type))
}

/// Whether a token steers the model instead of being text.
///
/// Some files mark theirs as "user defined", together with runs of spaces and HTML tags, which may well stand in a text; those
/// that steer are written with a bar.
pub(super) fn steers(vocab: &LlamaVocab<'_>, token: LlamaToken) -> bool {
    let attributes = vocab.attr(token);
    if attributes.intersects(LlamaTokenAttr::Control | LlamaTokenAttr::Unknown) {
        return true;
    }
    let text = vocab.text(token).map(CStr::to_bytes).unwrap_or_default();
    attributes.contains(LlamaTokenAttr::UserDefined)
        && (text.starts_with(b"<|") || text.ends_with(b"|>"))
}

/// What a text must not be read as.
fn control_tokens(vocab: &LlamaVocab<'_>, n_vocab: u32) -> Vec<String> {
    let tokens = (0..i32::try_from(n_vocab).unwrap_or(i32::MAX)).map(LlamaToken);
    let steering = tokens.filter(|token| steers(vocab, *token));
    let texts = steering.filter_map(|token| vocab.text(token)?.to_str().ok());
    texts
        .filter(|text| !text.is_empty())
        .take(CONTROL_TOKENS_MAX)
        .map(str::to_owned)
        .collect()
}

/// The tokens around a hole, if the vocabulary has all three.
fn fim(model: &LlamaModel, n_vocab: u32) -> Option<Fim> {
    let vocab = model.vocab();
    let known = |token: LlamaToken| {
        u32::try_from(token.0)
            .is_ok_and(|id| id < n_vocab)
            .then_some(token.0)
    };
    Some(Fim {
        prefix: known(vocab.fim_pre())?,
        suffix: known(vocab.fim_suf())?,
        middle: known(vocab.fim_mid())?,
        repository: known(vocab.fim_rep()),
        file: known(vocab.fim_sep()),
    })
}

/// A number in the metadata of the model's architecture.
pub(super) fn number(model: &LlamaModel, architecture: &str, key: &str) -> Option<u64> {
    model
        .meta_val_str(&format!("{architecture}.{key}"))
        .ok()?
        .parse()
        .ok()
}

pub(super) fn devices(with_gpu: bool) -> Vec<Device> {
    let used = |kind: LlamaBackendDeviceType| match kind {
        LlamaBackendDeviceType::Cpu => true,
        LlamaBackendDeviceType::Accelerator
        | LlamaBackendDeviceType::Gpu
        | LlamaBackendDeviceType::IntegratedGpu
        | LlamaBackendDeviceType::Unknown => with_gpu,
    };
    let all = list_llama_ggml_backend_devices().into_iter();
    let used = all.filter(|device| used(device.device_type));
    let device = used.map(|device| Device {
        name: device.name,
        description: device.description,
        memory_free_bytes: u64::try_from(device.memory_free).unwrap_or(u64::MAX),
        memory_total_bytes: u64::try_from(device.memory_total).unwrap_or(u64::MAX),
    });
    device.collect()
}
