//! Pictures and sound on their way to a model, decoded already: plain pixels and plain samples.
//!
//! Files are decoded in the agent, in Rust. This room must never look into a file format and never hold more than its bounds.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::digest::Context;
use ring::digest::SHA256;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;

use crate::spec::Refusal;

/// Pictures and sounds in one request.
pub const MEDIA_MAX: usize = 32;
/// The longest side of a picture, in pixels.
pub const SIDE_MAX: u32 = 4_096;
/// The most pixels of a picture: what a frame carries easily, and more than any projector looks at.
pub const PIXELS_MAX: u64 = 4 * 1024 * 1024;
/// The most samples of a sound: ten minutes at 16 kHz.
pub const SAMPLES_MAX: usize = 10 * 60 * 16_000;
/// Bytes of all media of one request, decoded. As base64 they fit into a frame.
pub const REQUEST_BYTES_MAX: usize = 40 * 1024 * 1024;

/// A piece of a prompt.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// Text in which special tokens count as such.
    Text(String),
    /// Text in which nothing is a special token, whatever it looks like.
    Literal(String),
    /// Tokens as they are.
    Tokens(Vec<i32>),
    /// A picture or sound, by its place in [`crate::GenerateSpec::media`].
    Media(u32),
}

/// What a model takes besides text.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Modalities {
    /// Pictures.
    pub image: bool,
    /// Sound with this many samples a second.
    pub audio_hz: Option<u32>,
}

/// A picture or sound.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Media {
    /// Pixels row by row, three bytes each.
    Image {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Red, green, blue, and so on.
        #[serde(serialize_with = "as_base64", deserialize_with = "from_base64")]
        rgb: Arc<[u8]>,
    },
    /// One channel at the rate that [`Modalities::audio_hz`] says.
    Audio {
        /// Samples within -1 and 1.
        #[serde(
            serialize_with = "samples_as_base64",
            deserialize_with = "samples_from_base64"
        )]
        pcm: Arc<[f32]>,
    },
}

impl Media {
    /// Whether it is a picture.
    pub const fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }

    /// Bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Image { rgb, .. } => rgb.len(),
            Self::Audio { pcm } => pcm.len() * size_of::<f32>(),
        }
    }

    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Image { width, height, rgb } => {
                let pixels = u64::from(*width) * u64::from(*height);
                if *width == 0 || *height == 0 || *width > SIDE_MAX || *height > SIDE_MAX {
                    return Err(format!(
                        "a picture of {width} x {height}; each side has 1 to {SIDE_MAX} pixels"
                    ));
                }
                if pixels > PIXELS_MAX {
                    return Err(format!(
                        "a picture of {pixels} pixels, at most {PIXELS_MAX}"
                    ));
                }
                if u64::try_from(rgb.len()).ok() != Some(pixels * 3) {
                    return Err(format!("{} bytes for {pixels} pixels", rgb.len()));
                }
                Ok(())
            }
            Self::Audio { pcm } if pcm.is_empty() => Err("a sound without samples".to_owned()),
            Self::Audio { pcm } if pcm.len() > SAMPLES_MAX => Err(format!(
                "a sound of {} samples, at most {SAMPLES_MAX}",
                pcm.len()
            )),
            Self::Audio { pcm } if !pcm.iter().all(|sample| sample.is_finite()) => {
                Err("a sound with samples that are no numbers".to_owned())
            }
            Self::Audio { .. } => Ok(()),
        }
    }

    /// A digest of all that a model can see of it.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut digest = Context::new(&SHA256);
        match self {
            Self::Image { width, height, rgb } => {
                digest.update(b"image");
                digest.update(&width.to_le_bytes());
                digest.update(&height.to_le_bytes());
                digest.update(rgb);
            }
            Self::Audio { pcm } => {
                digest.update(b"audio");
                for sample in pcm.iter() {
                    digest.update(&sample.to_le_bytes());
                }
            }
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.finish().as_ref());
        bytes
    }
}

/// What is wrong with the media of a request and the places they have in its prompt.
pub(crate) fn check(segments: &[Segment], media: &[Arc<Media>]) -> Result<(), Refusal> {
    let invalid = |param: String, reason: String| Err(Refusal::Invalid { param, reason });
    if media.len() > MEDIA_MAX {
        let reason = format!("{} pictures and sounds, at most {MEDIA_MAX}", media.len());
        return invalid("media".to_owned(), reason);
    }
    for (at, one) in media.iter().enumerate() {
        if let Err(reason) = one.check() {
            return invalid(format!("media[{at}]"), reason);
        }
    }
    let bytes: usize = media.iter().map(|one| one.bytes()).sum();
    if bytes > REQUEST_BYTES_MAX {
        let reason = format!("{bytes} bytes once decoded, at most {REQUEST_BYTES_MAX}");
        return invalid("media".to_owned(), reason);
    }
    let named = segments.iter().filter_map(|segment| match segment {
        Segment::Media(index) => Some(usize::try_from(*index).unwrap_or(usize::MAX)),
        Segment::Text(_) | Segment::Literal(_) | Segment::Tokens(_) => None,
    });
    if !named.eq(0..media.len()) {
        let reason = "each picture and sound has one place in the prompt, in order".to_owned();
        return invalid("prompt".to_owned(), reason);
    }
    Ok(())
}

fn as_base64<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    let bytes = STANDARD_NO_PAD.decode(text.as_bytes());
    bytes.map(Arc::from).map_err(D::Error::custom)
}

fn samples_as_base64<S: Serializer>(pcm: &Arc<[f32]>, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes: Vec<u8> = pcm.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
}

fn samples_from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[f32]>, D::Error> {
    let bytes = from_base64(deserializer)?;
    let (samples, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(D::Error::custom("half a sample"));
    }
    Ok(samples.iter().copied().map(f32::from_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, bytes: usize) -> Arc<Media> {
        let rgb = vec![7; bytes].into();
        Arc::new(Media::Image { width, height, rgb })
    }

    #[test]
    fn media_survive_the_way_through_a_frame() {
        let pcm = vec![0.0, -1.0, 0.25, f32::MIN_POSITIVE].into();
        for media in [image(2, 1, 6), Arc::new(Media::Audio { pcm })] {
            let text = serde_json::to_string(&media).unwrap();
            let back: Media = serde_json::from_str(&text).unwrap();
            assert_eq!(back, *media);
            assert_eq!(back.digest(), media.digest());
        }
        assert!(serde_json::from_str::<Media>(r#"{"audio":{"pcm":"AAAAAA"}}"#).is_ok());
        assert!(serde_json::from_str::<Media>(r#"{"audio":{"pcm":"AAAA"}}"#).is_err());
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_before_a_model_sees_them() {
        for (media, ok) in [
            (image(2, 2, 12), true),
            (image(2, 2, 11), false),
            (image(0, 2, 0), false),
            (image(u32::MAX, u32::MAX, 0), false),
            (image(SIDE_MAX, SIDE_MAX, 0), false),
        ] {
            assert_eq!(media.check().is_ok(), ok, "{:?}", media.check());
        }
        let silent = Media::Audio {
            pcm: Arc::from([f32::NAN]),
        };
        assert!(silent.check().is_err());
    }

    #[test]
    fn each_medium_has_one_place_in_order() {
        let media = [image(1, 1, 3), image(1, 1, 3)];
        let text = || Segment::Text("x".to_owned());
        let fine = [Segment::Media(0), text(), Segment::Media(1)];
        assert_eq!(check(&fine, &media), Ok(()));
        for segments in [
            vec![text()],
            vec![Segment::Media(1), Segment::Media(0)],
            vec![Segment::Media(0), Segment::Media(0)],
            vec![Segment::Media(0), Segment::Media(1), Segment::Media(2)],
        ] {
            assert!(check(&segments, &media).is_err(), "{segments:?}");
        }
    }
}
