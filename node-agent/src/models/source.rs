//! What a person writes to name a model: `hf:user/repo[:quant]`, an https address, `ollama:name[:tag]` or a file. Pure: asks nobody.

use std::path::PathBuf;

use reqwest::Url;

/// As the hub bounds it.
const REPO_CHARS_MAX: usize = 256;
const QUANT_CHARS_MAX: usize = 64;

/// A named model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// A repository of Hugging Face or a mirror.
    Hub {
        /// `user/repo`.
        repo: String,
        /// Which quantisation, as the person wrote it.
        quant: Option<String>,
    },
    /// A file anywhere.
    Url(Url),
    /// A name of Ollama's registry.
    Ollama {
        /// `library` if none is written.
        namespace: String,
        /// Such as `gemma3`.
        name: String,
        /// `latest` if none is written.
        tag: String,
    },
    /// A file of this machine.
    File(PathBuf),
}

/// Why a name names no model.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SourceError {
    /// Not `user/repo`.
    #[error(
        "\"{0}\" is not USER/REPO: one /, and letters, digits, _ - . around it; for example hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"
    )]
    Repo(String),
    /// The part after the colon.
    #[error("\"{0}\" is no quantisation; it reads like Q4_K_M, Q8_0 or F16")]
    Quant(String),
    /// A broken address.
    #[error("\"{0}\" is no address of a file: https://HOST/PATH.gguf")]
    Address(String),
    /// Weights are not fetched in the clear from other machines.
    #[error("{0} is not encrypted; use https:// (http:// is taken for this machine alone)")]
    Plain(String),
    /// A name of Ollama's registry.
    #[error(
        "\"{0}\" is no name of Ollama's registry: ollama:NAME[:TAG] or ollama:NAMESPACE/NAME[:TAG]"
    )]
    Ollama(String),
    /// Nothing was written.
    #[error(
        "no model was named: hf:USER/REPO[:QUANT], https://HOST/FILE.gguf, ollama:NAME[:TAG] or a file"
    )]
    Empty,
}

impl Source {
    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(SourceError::Empty);
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return hub(rest);
        }
        if let Some(rest) = text.strip_prefix("ollama:") {
            return ollama(rest);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            let url = Url::parse(text).map_err(|_error| SourceError::Address(text.to_owned()))?;
            if !may_be_asked(&url) {
                return Err(SourceError::Plain(text.to_owned()));
            }
            return Ok(Self::Url(url));
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

/// Encrypted, or this machine.
pub fn may_be_asked(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => is_loopback(url),
        _ => false,
    }
}

/// Whether an address names this machine.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn word(text: &str, more: &[char]) -> bool {
    !text.is_empty()
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
}

fn hub(text: &str) -> Result<Source, SourceError> {
    let (repo, quant) = match text.split_once(':') {
        Some((repo, quant)) => (repo, Some(quant)),
        None => (text, None),
    };
    let wrong = || SourceError::Repo(repo.to_owned());
    let (user, name) = repo.split_once('/').ok_or_else(wrong)?;
    let plain = |part: &str| word(part, &['_', '-', '.']);
    if !plain(user) || !plain(name) || repo.len() > REPO_CHARS_MAX {
        return Err(wrong());
    }
    if let Some(quant) = quant
        && (!word(quant, &['_', '-', '.']) || quant.len() > QUANT_CHARS_MAX)
    {
        return Err(SourceError::Quant(quant.to_owned()));
    }
    Ok(Source::Hub {
        repo: repo.to_owned(),
        quant: quant.map(str::to_owned),
    })
}

fn ollama(text: &str) -> Result<Source, SourceError> {
    let wrong = || SourceError::Ollama(text.to_owned());
    let (path, tag) = text.rsplit_once(':').unwrap_or((text, "latest"));
    let (namespace, name) = path.split_once('/').unwrap_or(("library", path));
    let plain = |part: &str| word(part, &['_', '-', '.']) && part.len() <= REPO_CHARS_MAX;
    if !plain(namespace) || !plain(name) || !plain(tag) {
        return Err(wrong());
    }
    Ok(Source::Ollama {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        tag: tag.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let hub = |repo: &str, quant: Option<&str>| Source::Hub {
            repo: repo.to_owned(),
            quant: quant.map(str::to_owned),
        };
        let parse = |text| Source::parse(text).expect("is a name");
        assert_eq!(parse("hf:a/b"), hub("a/b", None));
        assert_eq!(
            parse("hf:ggml-org/gemma-3-4b-it-GGUF:q4_k_m"),
            hub("ggml-org/gemma-3-4b-it-GGUF", Some("q4_k_m"))
        );
        assert_eq!(parse("./a.gguf"), Source::File(PathBuf::from("./a.gguf")));
        assert!(matches!(
            parse("https://example.org/a.gguf"),
            Source::Url(_)
        ));
        assert!(matches!(parse("http://127.0.0.1:8/a.gguf"), Source::Url(_)));
        let Source::Ollama {
            namespace,
            name,
            tag,
        } = parse("ollama:gemma3:4b")
        else {
            panic!("is a name of Ollama's");
        };
        assert_eq!(
            (namespace.as_str(), name.as_str(), tag.as_str()),
            ("library", "gemma3", "4b")
        );
    }

    #[test]
    fn names_that_climb_out_of_a_folder_or_send_weights_in_the_clear_are_refused() {
        for wrong in [
            "",
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b:",
            "hf:a/b:../x",
            "hf:a b/c",
            "http://example.org/a.gguf",
            "ollama:",
            "ollama:a/b/c",
            "ollama:../a",
        ] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Source::parse(&format!("hf:a/{}", "b".repeat(300))).is_err());
    }
}
