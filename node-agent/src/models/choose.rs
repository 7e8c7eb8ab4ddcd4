//! Which files of a repository make up the model that was asked for: quantisation, all its parts, and the projector that belongs to it. As
//! llama.cpp chooses, so that both fetch the same. Pure.

use serde::Serialize;

/// Tried in this order when no quantisation was asked for.
const DEFAULTS: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// More parts than any model has.
const PARTS_MAX: usize = 1_000;

/// A file of a repository.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Listed {
    /// Its name, folders included.
    pub file: String,
    /// Its size.
    pub bytes: Option<u64>,
    /// Its SHA-256 in hex, if it is stored as a large file.
    pub sha256: Option<String>,
}

/// What to fetch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Choice {
    /// The model's parts, the first one first.
    pub parts: Vec<Listed>,
    /// The projector for images and audio.
    pub projector: Option<Listed>,
}

/// Why nothing can be chosen.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChoiceError {
    /// No GGUF at all.
    #[error("{0} holds no GGUF file; look for a repository whose name ends in -GGUF")]
    None(String),
    /// Not this quantisation.
    #[error("{repo} holds no {quant}; it holds {there}")]
    NoQuant {
        /// Where.
        repo: String,
        /// What was asked for.
        quant: String,
        /// What there is.
        there: String,
    },
    /// A part is missing.
    #[error("{repo} holds {have} of the {want} parts of {file}; it is not whole yet")]
    Parts {
        /// Where.
        repo: String,
        /// The first part.
        file: String,
        /// Parts there.
        have: usize,
        /// Parts wanted.
        want: usize,
    },
}

/// Chooses among the files of `repo`.
pub fn choose(repo: &str, quant: Option<&str>, files: &[Listed]) -> Result<Choice, ChoiceError> {
    let mut models: Vec<&Listed> = files
        .iter()
        .filter(|listed| is_model(&listed.file))
        .collect();
    models.sort_by(|a, b| a.file.cmp(&b.file));
    let first = models
        .first()
        .ok_or_else(|| ChoiceError::None(repo.to_owned()))?;
    let of = |quant: &str| models.iter().find(|listed| has_quant(&listed.file, quant));
    let chosen = match quant {
        Some(quant) => of(quant).ok_or_else(|| ChoiceError::NoQuant {
            repo: repo.to_owned(),
            quant: quant.to_owned(),
            there: quants(&models),
        })?,
        None => DEFAULTS.iter().find_map(|quant| of(quant)).unwrap_or(first),
    };
    Ok(Choice {
        parts: parts(repo, chosen, files)?,
        projector: projector(&chosen.file, files),
    })
}

/// `name-00001-of-00003.gguf`: the name before, this part, all parts.
pub fn split_of(file: &str) -> Option<(&str, usize, usize)> {
    let stem = strip_end(file)?;
    let (head, total) = stem.rsplit_once("-of-")?;
    let (name, part) = head.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    let (part, total): (usize, usize) = (digits(part)?, digits(total)?);
    (part >= 1 && part <= total && total <= PARTS_MAX).then_some((name, part, total))
}

/// The quantisation in a file's name, as it is written there.
pub fn quant_of(file: &str) -> Option<&str> {
    let stem =
        split_of(file).map_or_else(|| strip_end(file), |(name, _part, _total)| Some(name))?;
    let base = stem.rsplit('/').next()?;
    base.rsplit(['-', '.']).find(|word| bits(word).is_some())
}

fn strip_end(file: &str) -> Option<&str> {
    file.strip_suffix(".gguf")
        .or_else(|| file.strip_suffix(".GGUF"))
}

fn is_model(file: &str) -> bool {
    let name = file.to_ascii_lowercase();
    let first = split_of(file).is_none_or(|(_name, part, _total)| part == 1);
    strip_end(file).is_some() && first && !name.contains("mmproj") && !name.contains("imatrix")
}

fn has_quant(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    // Followed by a dot or a dash: Q4_K is not Q4_K_M.
    file.match_indices(&quant).any(|(place, found)| {
        let before = place
            .checked_sub(1)
            .and_then(|place| file.as_bytes().get(place));
        let after = file.as_bytes().get(place + found.len());
        before.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            && matches!(after, Some(b'.' | b'-' | b'/'))
    })
}

fn quants(models: &[&Listed]) -> String {
    let mut there: Vec<&str> = models
        .iter()
        .filter_map(|listed| quant_of(&listed.file))
        .collect();
    there.dedup();
    if there.is_empty() {
        return models
            .iter()
            .take(8)
            .map(|listed| listed.file.as_str())
            .collect::<Vec<_>>()
            .join(", ");
    }
    there.join(", ")
}

fn parts(repo: &str, chosen: &Listed, files: &[Listed]) -> Result<Vec<Listed>, ChoiceError> {
    let Some((name, _part, want)) = split_of(&chosen.file) else {
        return Ok(vec![chosen.clone()]);
    };
    let mut parts: Vec<(usize, &Listed)> = files
        .iter()
        .filter_map(|listed| {
            let (other, part, total) = split_of(&listed.file)?;
            (other == name && total == want).then_some((part, listed))
        })
        .collect();
    parts.sort_by_key(|(part, _listed)| *part);
    parts.dedup_by_key(|(part, _listed)| *part);
    if parts.len() != want {
        return Err(ChoiceError::Parts {
            repo: repo.to_owned(),
            file: name.to_owned(),
            have: parts.len(),
            want,
        });
    }
    Ok(parts
        .into_iter()
        .map(|(_part, listed)| listed.clone())
        .collect())
}

/// Of the projectors in the closest folder, the one whose precision is closest to the model's.
fn projector(model: &str, files: &[Listed]) -> Option<Listed> {
    let wanted = quant_of(model).and_then(bits).unwrap_or(16);
    let candidates = files.iter().filter(|listed| {
        let name = listed
            .file
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        strip_end(&listed.file).is_some() && name.contains("mmproj")
    });
    let depth = |file: &str| {
        model
            .split('/')
            .zip(file.split('/'))
            .take_while(|(a, b)| a == b)
            .count()
    };
    let distance = |file: &str| quant_of(file).and_then(bits).unwrap_or(16).abs_diff(wanted);
    candidates
        .filter(|listed| {
            // A projector in another folder than the model's or one above it belongs to another model.
            let folder = listed
                .file
                .rsplit_once('/')
                .map_or("", |(folder, _name)| folder);
            folder.is_empty() || model.starts_with(&format!("{folder}/"))
        })
        .min_by_key(|listed| {
            (
                std::cmp::Reverse(depth(&listed.file)),
                distance(&listed.file),
                listed.file.clone(),
            )
        })
        .cloned()
}

/// Bits of a number in this quantisation, roughly; `None` if the word is none.
pub fn bits(word: &str) -> Option<u32> {
    let word = word.to_ascii_uppercase();
    match word.as_str() {
        "F32" => return Some(32),
        "F16" | "BF16" => return Some(16),
        _ => {}
    }
    if word.starts_with("MXFP4") || word.starts_with("NVFP4") {
        return Some(4);
    }
    let rest = word
        .strip_prefix("IQ")
        .or_else(|| word.strip_prefix("TQ"))
        .or_else(|| word.strip_prefix('Q'))?;
    let plain = rest
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let digit = rest.chars().next()?.to_digit(10)?;
    (plain && rest.contains('_') && (1..=8).contains(&digit)).then_some(digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<Listed> {
        let one = |name: &&str| Listed {
            file: (*name).to_owned(),
            bytes: Some(1),
            sha256: None,
        };
        names.iter().map(one).collect()
    }

    fn chosen(quant: Option<&str>, names: &[&str]) -> (Vec<String>, Option<String>) {
        let choice = choose("a/b", quant, &listed(names)).expect("chooses");
        (
            choice.parts.into_iter().map(|part| part.file).collect(),
            choice.projector.map(|projector| projector.file),
        )
    }

    #[test]
    fn the_middle_quantisation_is_taken_unless_another_is_asked_for() {
        let names = [
            "m-F16.gguf",
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "m-Q8_0.gguf",
            "README.md",
        ];
        assert_eq!(chosen(None, &names).0, ["m-Q4_K_M.gguf"]);
        assert_eq!(chosen(Some("q8_0"), &names).0, ["m-Q8_0.gguf"]);
        assert_eq!(
            chosen(None, &["m-F16.gguf", "m-Q8_0.gguf"]).0,
            ["m-Q8_0.gguf"]
        );
        assert_eq!(chosen(None, &["z.gguf", "m.gguf"]).0, ["m.gguf"]);
        assert_eq!(
            chosen(Some("UD-Q4_K_XL"), &["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"]).0,
            ["m-UD-Q4_K_XL.gguf"]
        );
        let error = choose("a/b", Some("Q4_K"), &listed(&names)).expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "a/b holds no Q4_K; it holds F16, Q4_K_M, Q4_K_S, Q8_0"
        );
    }

    #[test]
    fn all_parts_are_fetched_together_or_not_at_all() {
        let names = [
            "q/m-Q8_0-00002-of-00002.gguf",
            "q/m-Q8_0-00001-of-00002.gguf",
        ];
        assert_eq!(
            chosen(None, &names).0,
            [
                "q/m-Q8_0-00001-of-00002.gguf",
                "q/m-Q8_0-00002-of-00002.gguf"
            ]
        );
        let error =
            choose("a/b", None, &listed(&["m-Q8_0-00001-of-00003.gguf"])).expect_err("not whole");
        assert!(error.to_string().contains("holds 1 of the 3 parts"));
    }

    #[test]
    fn the_closest_projector_comes_along() {
        let names = [
            "m-Q8_0.gguf",
            "mmproj-F16.gguf",
            "mmproj-Q8_0.gguf",
            "imatrix.gguf",
        ];
        assert_eq!(chosen(None, &names).1.as_deref(), Some("mmproj-Q8_0.gguf"));
        let folders = ["a/m-Q8_0.gguf", "b/mmproj-Q8_0.gguf", "mmproj-F16.gguf"];
        assert_eq!(chosen(None, &folders).1.as_deref(), Some("mmproj-F16.gguf"));
        assert_eq!(chosen(None, &["m.gguf"]).1, None);
    }
}
