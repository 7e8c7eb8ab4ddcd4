//! Reads an Ollama Modelfile and says it as a `[[tiers]]` section. A line that would change answers and cannot be said is an error, never
//! dropped. Pure.

use std::fmt::Write as _;

/// What a Modelfile asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    /// `FROM`: a name or a path.
    pub from: String,
    /// `PARAMETER num_ctx`.
    pub context: Option<u32>,
    /// `PARAMETER num_thread`.
    pub threads: Option<u32>,
    /// `PARAMETER num_gpu`; -1 was "all".
    pub gpu_layers: Option<u32>,
    /// Sampling, by the names of our settings.
    pub sampling: Vec<(&'static str, String)>,
    /// `SYSTEM`.
    pub system: Option<String>,
    /// `ADAPTER`.
    pub adapters: Vec<String>,
    /// What was read and changes nothing here, with the reason.
    pub notes: Vec<String>,
}

/// What is wrong with a Modelfile, and on which line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ModelfileError {
    /// From 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub reason: String,
}

struct Command<'a> {
    line: usize,
    word: &'a str,
    rest: String,
}

impl Modelfile {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, ModelfileError> {
        let mut file = Self::default();
        for command in commands(text)? {
            let (line, wrong) = (command.line, |reason: String| ModelfileError {
                line: command.line,
                reason,
            });
            let value = command.rest.trim().to_owned();
            if value.is_empty() {
                return Err(wrong(format!("{} has no value", command.word)));
            }
            match command.word.to_ascii_uppercase().as_str() {
                "FROM" => file.from = value,
                "SYSTEM" => file.system = Some(value),
                "ADAPTER" => file.adapters.push(value),
                "PARAMETER" => file.parameter(&value).map_err(wrong)?,
                "TEMPLATE" => file.template(&value).map_err(wrong)?,
                "LICENSE" => file.notes.push(format!(
                    "line {line}: LICENSE is not kept; the model's file names its licence"
                )),
                "REQUIRES" => file.notes.push(format!(
                    "line {line}: REQUIRES names a version of Ollama; it says nothing here"
                )),
                "MESSAGE" => {
                    return Err(wrong("MESSAGE (an example in every conversation) cannot be imported; send it with each request".to_owned()));
                }
                other => {
                    return Err(wrong(format!(
                        "{other} is no instruction; FROM, PARAMETER, SYSTEM, TEMPLATE, ADAPTER and LICENSE are"
                    )));
                }
            }
        }
        if file.from.is_empty() {
            return Err(ModelfileError {
                line: 1,
                reason: "there is no FROM: which model is it?".to_owned(),
            });
        }
        Ok(file)
    }

    fn parameter(&mut self, text: &str) -> Result<(), String> {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("PARAMETER {text} has no value"))?;
        let value = unquoted(value.trim());
        let whole = |value: &str| {
            value
                .parse::<u32>()
                .map_err(|_error| format!("{name} is \"{value}\"; it must be a whole number"))
        };
        match name {
            "num_ctx" => self.context = Some(whole(value)?),
            "num_thread" => self.threads = Some(whole(value)?),
            "num_gpu" => {
                self.gpu_layers = if value == "-1" {
                    None
                } else {
                    Some(whole(value)?)
                }
            }
            "temperature" => self.sample("temperature", value, 0.0, 2.0)?,
            "top_p" => self.sample("top_p", value, 0.0, 1.0)?,
            "min_p" => self.sample("min_p", value, 0.0, 1.0)?,
            "repeat_penalty" => self.sample("repeat_penalty", value, 0.01, 2.0)?,
            "top_k" => {
                let top_k = whole(value)?;
                self.sampling.retain(|(key, _value)| *key != "top_k");
                if top_k > 0 {
                    self.sampling.push(("top_k", top_k.to_string()));
                }
            }
            "num_batch" => self.notes.push(format!(
                "num_batch {value}: the worker chooses its batches by what running answers can bear"
            )),
            "num_keep" | "use_mmap" | "use_mlock" | "numa" | "low_vram" | "main_gpu" | "f16_kv"
            | "vocab_only" => {
                self.notes
                    .push(format!("{name} {value}: chosen from the hardware here"));
            }
            "num_predict" | "stop" | "seed" | "repeat_last_n" | "presence_penalty"
            | "frequency_penalty" | "typical_p" | "mirostat" | "mirostat_eta" | "mirostat_tau"
            | "tfs_z" => {
                return Err(format!(
                    "{name} is no default of a tier; send it with the request, or remove the line"
                ));
            }
            _ => {
                return Err(format!(
                    "{name} is no parameter of a Modelfile; is it misspelt?"
                ));
            }
        }
        Ok(())
    }

    fn sample(&mut self, key: &'static str, value: &str, min: f64, max: f64) -> Result<(), String> {
        let number = value
            .parse::<f64>()
            .ok()
            .filter(|number| (min..=max).contains(number));
        let number = number
            .ok_or_else(|| format!("{key} is \"{value}\"; it must lie between {min} and {max}"))?;
        self.sampling.retain(|(there, _value)| *there != key);
        self.sampling.push((key, format!("{number:?}")));
        Ok(())
    }

    /// A Go template is a program; those of known families say what the model's own template says.
    fn template(&mut self, text: &str) -> Result<(), String> {
        let family = FAMILIES
            .iter()
            .find(|(_name, marks)| marks.iter().all(|mark| text.contains(mark)));
        let (name, _marks) = family.ok_or(
            "TEMPLATE is a Go template of an unknown kind, which cannot be carried over; remove it: the model's file brings its own template \
             (hearth-node models show tells which)",
        )?;
        self.notes.push(format!(
            "TEMPLATE reads like that of {name}; the model's own template is used instead"
        ));
        Ok(())
    }

    /// The section of node.toml. `model` is the file that `FROM` became.
    pub fn section(&self, tier: &str, model: &str) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _written = writeln!(text, "# {}", note.replace('\n', " "));
        }
        let _written = writeln!(
            text,
            "[[tiers]]\ntier = {}\nmodel = {}",
            quoted(tier),
            quoted(model)
        );
        if is_name(&self.from) {
            let _written = writeln!(text, "aliases = [{}]", quoted(&self.from));
        }
        let numbers = [
            ("context", self.context),
            ("threads", self.threads),
            ("gpu_layers", self.gpu_layers),
        ];
        for (key, value) in numbers {
            if let Some(value) = value {
                let _written = writeln!(text, "{key} = {value}");
            }
        }
        if let Some(system) = &self.system {
            let _written = writeln!(text, "system = {}", quoted(system));
        }
        if !self.sampling.is_empty() {
            let _written = writeln!(text, "\n[tiers.sampling]");
            for (key, value) in &self.sampling {
                let _written = writeln!(text, "{key} = {value}");
            }
        }
        text
    }
}

/// Marks of the template families that GGUF files bring themselves.
const FAMILIES: [(&str, &[&str]); 6] = [
    ("Gemma", &["<start_of_turn>", "<end_of_turn>"]),
    ("Gemma 4", &["<|turn>", "<turn|>"]),
    ("ChatML", &["<|im_start|>", "<|im_end|>"]),
    ("Llama 3", &["<|start_header_id|>", "<|eot_id|>"]),
    ("Mistral", &["[INST]", "[/INST]"]),
    ("Phi", &["<|user|>", "<|end|>"]),
];

/// `gemma4:e4b`, not a path.
pub fn is_name(from: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    !from.is_empty() && from.chars().all(plain) && !from.to_ascii_lowercase().ends_with(".gguf")
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text)
}

/// Instructions with their values; `"""` opens a value of several lines.
fn commands(text: &str) -> Result<Vec<Command<'_>>, ModelfileError> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, raw)) = lines.next() {
        let line = raw.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let rest = match rest.strip_prefix("\"\"\"") {
            None => unquoted(rest).to_owned(),
            Some(opened) => {
                let mut value = opened.to_owned();
                while !value.contains("\"\"\"") {
                    let (_index, more) = lines.next().ok_or_else(|| ModelfileError {
                        line: index + 1,
                        reason: format!("the \"\"\" of {word} is never closed"),
                    })?;
                    value.push('\n');
                    value.push_str(more);
                }
                value.split("\"\"\"").next().unwrap_or_default().to_owned()
            }
        };
        found.push(Command {
            line: index + 1,
            word,
            rest,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "# Modelfile for optimized E4B deployment\nFROM gemma4:e4b\nPARAMETER num_ctx 12288\nPARAMETER num_batch 512\n\
        PARAMETER num_thread 8\nPARAMETER temperature 0.2\nPARAMETER top_p 0.9\nSYSTEM \"\"\"You are a technical reasoning assistant.\n\
        Prioritize accuracy.\"\"\"\n";

    #[test]
    fn a_modelfile_becomes_a_section_that_the_settings_take() {
        let file = Modelfile::parse(SEED).expect("reads");
        assert_eq!(file.from, "gemma4:e4b");
        let section = file.section("primary", "/m/gemma.gguf");
        assert!(
            section.contains("aliases = [\"gemma4:e4b\"]") && section.contains("context = 12288"),
            "{section}"
        );
        assert!(
            section.contains("temperature = 0.2") && section.contains("threads = 8"),
            "{section}"
        );
        let table: toml::Table = section.parse().expect("is TOML");
        let tier = table["tiers"][0].as_table().expect("a section");
        assert_eq!(
            tier["system"].as_str(),
            Some("You are a technical reasoning assistant.\nPrioritize accuracy.")
        );
    }

    #[test]
    fn what_cannot_be_carried_over_is_refused_with_its_line() {
        let refused = |text: &str| Modelfile::parse(text).expect_err("is refused").to_string();
        assert!(refused("FROM a\nFRUM b").starts_with("line 2: FRUM is no instruction"));
        assert!(refused("FROM a\nPARAMETER temprature 1").contains("misspelt"));
        assert!(refused("FROM a\nPARAMETER temperature hot").contains("between 0 and 2"));
        assert!(refused("FROM a\nPARAMETER stop x").contains("send it with the request"));
        assert!(refused("FROM a\nSYSTEM \"\"\"open").contains("never closed"));
        assert!(refused("FROM a\nTEMPLATE {{ .Odd }}").contains("Go template of an unknown kind"));
        assert!(refused("PARAMETER num_ctx 1").contains("there is no FROM"));
        let known = Modelfile::parse("FROM ./a.gguf\nTEMPLATE <|im_start|>{{ .Prompt }}<|im_end|>")
            .expect("is known");
        assert!(known.notes.iter().any(|note| note.contains("ChatML")));
        assert!(!is_name(&known.from));
    }
}
