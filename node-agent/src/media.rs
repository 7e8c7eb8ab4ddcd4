//! Pictures and sounds of a chat, decoded in Rust: what reaches the engine is plain pixels and plain samples.
//!
//! Everything here was written by somebody else, so sizes are known before memory is taken, and nothing is ever fetched: a request
//! carries its media itself. Decoding takes its time; callers run it in a thread of its own.

mod picture;
mod sound;

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use config::wire::chat::{Content, ImageUrl, InputAudio, Part};
use config::wire::valid::ValidChat;
use engine::{Media, Modalities};

use crate::reply::Refused;

/// With or without padding, as [`config::wire::valid`] takes it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// A large picture takes some hundred megabytes while it is decoded, so only one is at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The media of a chat in the order in which a template places them, and where in the request each stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Pixels and samples.
    pub media: Vec<Arc<Media>>,
    /// For example `messages[0].content[1].image_url`.
    pub places: Vec<String>,
}

/// Whether a chat has any.
pub fn has_any(chat: &ValidChat) -> bool {
    parts(chat).next().is_some()
}

/// Decodes all of them for a model that takes these.
pub fn decode(chat: &ValidChat, takes: Modalities) -> Result<Found, Refused> {
    let mut found = Found::default();
    let mut bytes = 0_usize;
    for (place, part) in parts(chat) {
        let (name, media) = match part {
            Part::Text { .. } => continue,
            Part::ImageUrl { image_url } => {
                let place = format!("{place}.image_url");
                if !takes.image {
                    return Err(cannot(place, takes));
                }
                let media = image(image_url);
                (place, media)
            }
            Part::InputAudio { input_audio } => {
                let place = format!("{place}.input_audio");
                let Some(hertz) = takes.audio_hz else {
                    return Err(cannot(place, takes));
                };
                let media = audio(input_audio, hertz);
                (place, media)
            }
        };
        let media = media.map_err(|message| Refused::Malformed {
            param: name.clone(),
            message,
        })?;
        bytes += media.bytes();
        if bytes > engine::media::REQUEST_BYTES_MAX {
            let most = engine::media::REQUEST_BYTES_MAX / 1024 / 1024;
            let message = format!(
                "the pictures and sounds of this request are more than {most} MiB once decoded; send fewer"
            );
            return Err(Refused::Malformed {
                param: name,
                message,
            });
        }
        found.media.push(Arc::new(media));
        found.places.push(name);
    }
    Ok(found)
}

/// All parts that are no text, and where they stand.
fn parts(chat: &ValidChat) -> impl Iterator<Item = (String, &Part)> {
    let messages = chat.messages.iter().enumerate();
    messages.flat_map(|(at, message)| {
        let parts = match &message.content {
            Some(Content::Parts(parts)) => parts.as_slice(),
            Some(Content::Text(_)) | None => &[],
        };
        let media = parts
            .iter()
            .enumerate()
            .filter(|(_at, part)| part.is_media());
        media.map(move |(part_at, part)| (format!("messages[{at}].content[{part_at}]"), part))
    })
}

fn cannot(param: String, takes: Modalities) -> Refused {
    let message = match (takes.image, takes.audio_hz) {
        (true, _) => "this model takes text and pictures, no sound",
        (false, Some(_)) => "this model takes text and sound, no pictures",
        (false, None) => "this model takes text only, no pictures or sound",
    };
    Refused::Unsupported {
        param,
        message: message.to_owned(),
    }
}

fn image(image: &ImageUrl) -> Result<Media, String> {
    let data = image.url.split_once(";base64,").map(|(_kind, data)| data);
    let data = data.ok_or("not a data: URL with base64; remote pictures are not fetched")?;
    let bytes = plain(data)?;
    let low = image.detail.as_deref() == Some("low");
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    picture::decode(&bytes, low)
}

fn audio(audio: &InputAudio, hertz: u32) -> Result<Media, String> {
    let bytes = plain(&audio.data)?;
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    sound::decode(&bytes, &audio.format, hertz)
}

fn plain(data: &str) -> Result<Vec<u8>, String> {
    BASE64
        .decode(data)
        .map_err(|error| format!("not base64: {error}"))
}

#[cfg(test)]
mod tests;
