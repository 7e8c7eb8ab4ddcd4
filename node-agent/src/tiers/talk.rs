//! How a tier's model is spoken to: its own chat template or the one that the settings name, and the formats that they overrule. Reads
//! one file, once a load.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use config::settings::node::{EngineSettings, ReasoningFormat};
use engine::ModelCard;

use crate::template::Template;
use crate::tools::format::ThinkTags;

/// The longest templates of well-known models have 20 KiB.
const TEMPLATE_BYTES_MAX: u64 = 1024 * 1024;

/// The template of a loaded model.
pub(super) fn template(settings: &EngineSettings, card: &ModelCard) -> Result<Template, String> {
    let named = settings.chat_template_file.as_deref();
    let own = named.map(read).transpose()?;
    let source = own.as_deref().or(card.chat_template.as_deref());
    let template = Template::new(source, &card.bos_token, &card.eos_token, card.add_bos);
    let template = template.map_err(|error| match named {
        Some(file) => format!("chat_template_file {}: {error}", file.display()),
        None => error.to_string(),
    })?;
    let calls = settings.tool_format.map(Into::into);
    let thoughts = settings.reasoning_format.map(tags);
    Ok(template
        .with_formats(calls, thoughts)
        .with_controls(card.control_tokens.iter().cloned()))
}

fn read(file: &Path) -> Result<String, String> {
    let wrong = |why: String| format!("chat_template_file {}: {why}", file.display());
    let mut source = String::new();
    let opened = File::open(file).map_err(|error| wrong(error.to_string()))?;
    let read = opened
        .take(TEMPLATE_BYTES_MAX + 1)
        .read_to_string(&mut source);
    let bytes = read.map_err(|error| wrong(error.to_string()))?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes > TEMPLATE_BYTES_MAX) {
        return Err(wrong(format!(
            "it is longer than {TEMPLATE_BYTES_MAX} bytes: it is no chat template"
        )));
    }
    if source.trim().is_empty() {
        return Err(wrong(
            "it is empty: leave the key out to use the model's own".to_owned(),
        ));
    }
    Ok(source)
}

const fn tags(format: ReasoningFormat) -> Option<ThinkTags> {
    match format {
        ReasoningFormat::None => None,
        ReasoningFormat::Think => Some(ThinkTags::THINK),
        ReasoningFormat::Gemma4 => Some(ThinkTags::GEMMA4),
        ReasoningFormat::Mistral => Some(ThinkTags::MISTRAL),
        ReasoningFormat::Seed => Some(ThinkTags::SEED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(content: &[u8]) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("chat.jinja");
        std::fs::write(&file, content).expect("writes");
        read(&file).expect_err("refused")
    }

    #[test]
    fn a_file_that_is_no_template_is_refused_with_its_name() {
        for (content, why) in [
            (&b" \n"[..], "it is empty"),
            (&b"\xff\xfe"[..], "UTF-8"),
            (&vec![b'x'; 1024 * 1024 + 1], "longer than 1048576 bytes"),
        ] {
            let reason = failing(content);
            assert!(
                reason.contains("chat.jinja") && reason.contains(why),
                "{reason}"
            );
        }
        let missing = read(Path::new("/nowhere/chat.jinja")).expect_err("refused");
        assert!(missing.contains("No such file"), "{missing}");
    }
}
