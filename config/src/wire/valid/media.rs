//! Pictures and sound inside a request. Remote addresses are refused: fetching them would let a caller reach the operator's network.

use serde_json::Value;

use super::Invalid;
use super::read::{Object, invalid, quote, word};
use crate::wire::chat::{ImageUrl, InputAudio};

/// Types of pictures that are taken.
pub const IMAGE_TYPES: [&str; 5] = [
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "image/bmp",
];
const AUDIO_FORMATS: [(&str, ()); 4] = [("wav", ()), ("mp3", ()), ("flac", ()), ("ogg", ())];
const DETAILS: [(&str, ()); 3] = [("auto", ()), ("low", ()), ("high", ())];

/// A piece of media and the size that it has once decoded.
pub(super) struct Sized<T> {
    pub(super) value: T,
    pub(super) bytes: u64,
}

/// `image_url`: an object with `url`, or the URL itself.
pub(super) fn image(part: &mut Object) -> Result<Sized<ImageUrl>, Invalid> {
    let path = part.at("image_url");
    if let Some(Value::String(_)) = part.peek("image_url") {
        let url = part.required_string("image_url", usize::MAX)?;
        return sized_image(path, url, None);
    }
    let Some(mut image) = part.object("image_url")? else {
        return Err(invalid(path, "missing; an object with url is required"));
    };
    let url = image.required_string("url", usize::MAX)?;
    let detail = image.string("detail", 16)?;
    if let Some(detail) = &detail {
        word(image.at("detail"), detail, &DETAILS)?;
    }
    sized_image(path, url, detail)
}

fn sized_image(
    path: String,
    url: String,
    detail: Option<String>,
) -> Result<Sized<ImageUrl>, Invalid> {
    let Some(rest) = strip_scheme(&url, "data:") else {
        let message = if strip_scheme(&url, "http").is_some() {
            "remote images are not fetched, because that would let callers reach the operator's network; \
             send the picture as a data: URL"
                .to_owned()
        } else {
            "not a data: URL; send data:image/png;base64,...".to_owned()
        };
        return Err(invalid(path, message));
    };
    let Some((media_type, data)) = rest.split_once(";base64,") else {
        return Err(invalid(
            path,
            "a data: URL without base64; send data:image/png;base64,...",
        ));
    };
    let known = IMAGE_TYPES
        .iter()
        .any(|known| known.eq_ignore_ascii_case(media_type));
    if !known {
        let message = format!(
            "{} is not one of {}",
            quote(media_type),
            IMAGE_TYPES.join(", ")
        );
        return Err(invalid(path, message));
    }
    let bytes = decoded_len(&path, data)?;
    let value = ImageUrl { url, detail };
    Ok(Sized { value, bytes })
}

fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = url.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// `input_audio`: base64 and a format.
pub(super) fn audio(part: &mut Object) -> Result<Sized<InputAudio>, Invalid> {
    let Some(mut audio) = part.object("input_audio")? else {
        return Err(invalid(
            part.at("input_audio"),
            "missing; an object with data and format is required",
        ));
    };
    let format = audio.required_string("format", 16)?;
    word(audio.at("format"), &format, &AUDIO_FORMATS)?;
    let data = audio.required_string("data", usize::MAX)?;
    let bytes = decoded_len(&audio.at("data"), &data)?;
    let value = InputAudio { data, format };
    Ok(Sized { value, bytes })
}

/// The size of standard base64 once decoded. Checks alphabet, padding and length without decoding.
fn decoded_len(path: &str, data: &str) -> Result<u64, Invalid> {
    let body = data.trim_end_matches('=');
    let padding = data.len() - body.len();
    let alphabet = body
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/');
    let whole = data.len().is_multiple_of(4) || padding == 0;
    if body.is_empty() || !alphabet || padding > 2 || body.len() % 4 == 1 || !whole {
        return Err(invalid(
            path,
            "not base64 (standard alphabet, no line breaks)",
        ));
    }
    Ok(u64::try_from(body.len()).unwrap_or(u64::MAX) / 4 * 3
        + u64::try_from(body.len() % 4).unwrap_or(0).saturating_sub(1))
}
