//! A picture file becomes pixels: png, jpeg, webp, gif (its first frame) or bmp, the right way up, on white, no larger than a model
//! looks at. Its size is read from the file's head and checked before anything is decoded.

use std::io::Cursor;

use engine::Media;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage};

/// A picture may have so many pixels: more than most cameras make, 96 MiB once decoded.
const PIXELS_MAX: u64 = 32 * 1024 * 1024;
/// And so many on one side.
const SIDE_MAX: u32 = 16_384;
/// Memory for decoding, which some formats need in several copies.
const DECODE_BYTES_MAX: u64 = 320 * 1024 * 1024;
/// The longest side that a model gets: the projectors of home models look at 224 to 1,024 pixels, or cut larger pictures into tiles
/// that a CPU would read for minutes.
const KEPT_SIDE: u32 = 1_024;
/// The same for `detail: low`.
const LOW_SIDE: u32 = 512;
/// Projectors divide by the shorter side, so it has some pixels.
const SHORT_SIDE: u32 = 16;

/// Decodes a file. The message says what is wrong with it.
pub(super) fn decode(bytes: &[u8], low: bool) -> Result<Media, String> {
    let format = image::guess_format(bytes)
        .ok()
        .filter(|format| is_known(*format));
    let format = format.ok_or("not a png, jpeg, webp, gif or bmp picture")?;
    let broken = |error: image::ImageError| format!("the picture cannot be read: {error}");
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > PIXELS_MAX || width > SIDE_MAX || height > SIDE_MAX {
        return Err(format!(
            "a picture of {width} x {height} pixels; at most {SIDE_MAX} on a side and {PIXELS_MAX} in all"
        ));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let mut picture = smaller(picture, if low { LOW_SIDE } else { KEPT_SIDE });
    picture.apply_orientation(orientation);
    let picture = thick_enough(on_white(&picture));
    let (width, height) = picture.dimensions();
    let rgb = picture.into_raw().into();
    Ok(Media::Image { width, height, rgb })
}

fn is_known(format: ImageFormat) -> bool {
    [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
    ]
    .contains(&format)
}

fn smaller(picture: DynamicImage, side: u32) -> DynamicImage {
    if picture.width().max(picture.height()) <= side {
        return picture;
    }
    // The large step first, with whole pixels, which is several times as fast.
    let coarse = if picture.width().max(picture.height()) > side * 4 {
        picture.thumbnail(side * 2, side * 2)
    } else {
        picture
    };
    coarse.resize(side, side, FilterType::Triangle)
}

fn on_white(picture: &DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let seen = picture.to_rgba8();
    let blend = |colour: u8, alpha: u8| {
        let (colour, alpha) = (u32::from(colour), u32::from(alpha));
        let mixed = (colour * alpha + 255 * (255 - alpha) + 127) / 255;
        u8::try_from(mixed).unwrap_or(u8::MAX)
    };
    RgbImage::from_fn(seen.width(), seen.height(), |x, y| {
        let [red, green, blue, alpha] = seen.get_pixel(x, y).0;
        Rgb([red, green, blue].map(|colour| blend(colour, alpha)))
    })
}

/// Repeats the pixels of a picture that is only a line.
fn thick_enough(picture: RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    if width.min(height) >= SHORT_SIDE {
        return picture;
    }
    let (wide, high) = (width.max(SHORT_SIDE), height.max(SHORT_SIDE));
    image::imageops::resize(&picture, wide, high, FilterType::Nearest)
}
