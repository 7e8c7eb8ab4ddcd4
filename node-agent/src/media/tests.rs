use std::io::Cursor;

use base64::engine::general_purpose::STANDARD as WITH_PADDING;
use config::wire::valid::ChatRequest;
use hound::{SampleFormat, WavSpec, WavWriter};
use image::{DynamicImage, ImageFormat, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::*;

const ALL: Modalities = Modalities {
    image: true,
    audio_hz: Some(16_000),
};

fn chat(parts: &Value) -> ValidChat {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": parts}]});
    ChatRequest::parse(body.to_string().as_bytes()).expect("a valid request")
}

fn url(kind: &str, bytes: &[u8]) -> Value {
    let url = format!("data:image/{kind};base64,{}", WITH_PADDING.encode(bytes));
    json!({"type": "image_url", "image_url": {"url": url}})
}

fn sound(format: &str, bytes: &[u8]) -> Value {
    let data = WITH_PADDING.encode(bytes);
    json!({"type": "input_audio", "input_audio": {"data": data, "format": format}})
}

fn file(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

/// A sample of a wave that goes from -1 to 1, at half of what 16 bits hold.
#[expect(clippy::cast_possible_truncation, reason = "at most 16,000")]
fn loud(wave: f64) -> i16 {
    (wave * 16_000.0) as i16
}

/// The last eight bits.
fn byte(number: u32) -> u8 {
    number.to_le_bytes()[0]
}

fn plain_picture(width: u32, height: u32) -> DynamicImage {
    let paint = |x, y| image::Rgb([byte(x), byte(y), 128]);
    RgbImage::from_fn(width, height, paint).into()
}

fn only(part: &Value) -> Result<Media, Refused> {
    let mut found = decode(&chat(&json!([{"type": "text", "text": "?"}, part])), ALL)?;
    assert_eq!(found.media.len(), 1);
    let media = found.media.remove(0);
    Ok(Arc::unwrap_or_clone(media))
}

fn size(media: &Media) -> (u32, u32) {
    match media {
        Media::Image { width, height, .. } => (*width, *height),
        Media::Audio { .. } => panic!("a sound"),
    }
}

fn refusal(part: &Value) -> (String, String) {
    match only(part) {
        Err(Refused::Malformed { param, message }) => (param, message),
        other => panic!("{other:?}"),
    }
}

fn wav_file(spec: WavSpec, samples: impl Iterator<Item = i16>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = WavWriter::new(&mut bytes, spec).expect("a header");
    for sample in samples {
        writer.write_sample(sample).expect("a sample");
    }
    writer.finalize().expect("an end");
    bytes.into_inner()
}

fn mono(sample_rate: u32) -> WavSpec {
    WavSpec {
        channels: 1,
        sample_rate,
        bits_per_sample: 16,
        sample_format: SampleFormat::Int,
    }
}

#[test]
fn every_format_becomes_the_same_pixels() {
    let picture = plain_picture(40, 30);
    for (format, kind) in [
        (ImageFormat::Png, "png"),
        (ImageFormat::WebP, "webp"),
        (ImageFormat::Bmp, "bmp"),
        (ImageFormat::Gif, "gif"),
        (ImageFormat::Jpeg, "jpeg"),
    ] {
        let media = only(&url(kind, &file(&picture, format))).expect(kind);
        assert_eq!(size(&media), (40, 30), "{kind}");
        let exact = Media::Image {
            width: 40,
            height: 30,
            rgb: picture.to_rgb8().into_raw().into(),
        };
        // The others lose colours.
        if !matches!(format, ImageFormat::Gif | ImageFormat::Jpeg) {
            assert_eq!(media, exact, "{kind}");
        }
    }
}

#[test]
fn large_pictures_shrink_and_thin_ones_get_thicker() {
    for (from, to) in [
        ((2_048, 1_024), (1_024, 512)),
        ((300, 9_000), (34, 1_024)),
        ((1, 1), (16, 16)),
        ((5_000, 1), (1_024, 16)),
    ] {
        let bytes = file(&plain_picture(from.0, from.1), ImageFormat::Png);
        assert_eq!(
            size(&only(&url("png", &bytes)).expect("decodes")),
            to,
            "{from:?}"
        );
    }
    let mut low = url("png", &file(&plain_picture(2_000, 2_000), ImageFormat::Png));
    low["image_url"]["detail"] = "low".into();
    assert_eq!(size(&only(&low).expect("decodes")), (512, 512));
}

#[test]
fn what_is_transparent_is_white() {
    let clear: DynamicImage = RgbaImage::from_pixel(20, 20, Rgba([0, 0, 0, 0])).into();
    let Media::Image { rgb, .. } = only(&url("png", &file(&clear, ImageFormat::Png))).unwrap()
    else {
        panic!("a picture");
    };
    assert!(rgb.iter().all(|colour| *colour == 255));
}

#[test]
fn a_bomb_is_refused_by_its_head() {
    // The head of a png of 16,000 x 16,000 pixels; its data would be a few kilobytes of zeros.
    let mut bomb = file(&plain_picture(1, 1), ImageFormat::Png);
    bomb[16..24].copy_from_slice(&[0, 0, 0x3e, 0x80, 0, 0, 0x3e, 0x80]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let (param, message) = refusal(&url("png", &bomb));
    assert_eq!(param, "messages[0].content[1].image_url");
    assert!(message.contains("16000 x 16000"), "{message}");
    bomb[16..20].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let (_param, message) = refusal(&url("png", &bomb));
    assert!(message.contains("picture"), "{message}");
}

#[test]
fn a_file_cut_anywhere_or_of_another_kind_is_a_clear_error() {
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
        let whole = file(&plain_picture(40, 30), format);
        for cut in [1, 8, 20, whole.len() / 2] {
            let (param, message) = refusal(&url("png", &whole[..cut]));
            assert_eq!(param, "messages[0].content[1].image_url");
            assert!(
                message.contains("picture"),
                "{format:?} cut at {cut}: {message}"
            );
        }
    }
    let (_param, message) = refusal(&url(
        "png",
        b"<svg xmlns='x'><image href='file:///etc/passwd'/></svg>",
    ));
    assert!(message.contains("not a png"), "{message}");
}

#[test]
fn sound_becomes_one_channel_at_the_models_rate() {
    let tone = |at: u32| (f64::from(at) / 44_100.0 * 440.0 * std::f64::consts::TAU).sin();
    let stereo = WavSpec {
        channels: 2,
        ..mono(44_100)
    };
    let samples = (0..88_200_u32).map(|at| loud(tone(at / 2)));
    let Media::Audio { pcm } = only(&sound("wav", &wav_file(stereo, samples))).unwrap() else {
        panic!("a sound");
    };
    assert_eq!(pcm.len(), 16_000, "one second");
    for (at, sample) in (0_u32..).zip(pcm.iter()).skip(200).take(15_600) {
        let want =
            (f64::from(at) / 16_000.0 * 440.0 * std::f64::consts::TAU).sin() * 16_000.0 / 32_768.0;
        assert!(
            (f64::from(*sample) - want).abs() < 2e-3,
            "at {at}: {sample} for {want}"
        );
    }
}

#[test]
fn what_the_new_rate_cannot_hold_is_taken_out() {
    let high = |at: u32| (f64::from(at) / 48_000.0 * 11_000.0 * std::f64::consts::TAU).sin();
    let samples = (0..48_000_u32).map(|at| loud(high(at)));
    let Media::Audio { pcm } = only(&sound("wav", &wav_file(mono(48_000), samples))).unwrap()
    else {
        panic!("a sound");
    };
    let loudest = pcm
        .iter()
        .skip(200)
        .take(15_600)
        .fold(0.0_f32, |most, sample| most.max(sample.abs()));
    assert!(loudest < 0.01, "{loudest}");
}

#[test]
fn sound_that_is_too_long_empty_or_no_sound_is_refused() {
    let long = wav_file(mono(8_000), std::iter::repeat_n(1, 8_000 * 301));
    assert!(refusal(&sound("wav", &long)).1.contains("longer than 300"));
    let empty = wav_file(mono(8_000), std::iter::empty());
    assert!(refusal(&sound("wav", &empty)).1.contains("no sound"));
    for format in ["wav", "mp3", "flac", "ogg"] {
        let (param, _message) = refusal(&sound(format, b"this is no sound at all, but some text"));
        assert_eq!(param, "messages[0].content[1].input_audio");
    }
}

#[test]
fn a_model_without_eyes_or_ears_says_so() {
    let picture = url("png", &file(&plain_picture(4, 4), ImageFormat::Png));
    let heard = sound("wav", &wav_file(mono(16_000), std::iter::repeat_n(5, 800)));
    for (part, takes, want) in [
        (&picture, Modalities::default(), "text only"),
        (&heard, Modalities::default(), "text only"),
        (
            &heard,
            Modalities {
                image: true,
                audio_hz: None,
            },
            "no sound",
        ),
        (
            &picture,
            Modalities {
                image: false,
                audio_hz: Some(16_000),
            },
            "no pictures",
        ),
    ] {
        let refused = decode(&chat(&json!([part])), takes);
        assert!(
            matches!(&refused, Err(Refused::Unsupported { message, .. }) if message.contains(want)),
            "{refused:?}"
        );
    }
    assert!(has_any(&chat(&json!([picture]))));
    assert!(!has_any(&chat(&json!("text"))));
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _bit in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}
