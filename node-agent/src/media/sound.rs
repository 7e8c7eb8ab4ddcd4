//! A sound file becomes samples: wav or mp3, one channel, at the rate that the model hears. Its length is bounded while it is read.

use std::f64::consts::PI;
use std::io::Cursor;

use engine::Media;
use hound::{SampleFormat, WavReader};
use nanomp3::SliceReader;

/// The longest sound. Models hear 30 seconds at a time; more costs tokens and minutes.
const SECS_MAX: u32 = 300;
const HERTZ_MIN: u32 = 4_000;
const HERTZ_MAX: u32 = 192_000;
const CHANNELS_MAX: u16 = 8;
/// Zero crossings of the filter on each side.
const CROSSINGS: f64 = 12.0;
/// Places between two samples at which the filter is known.
const PHASES: usize = 128;

/// Samples of one channel and their rate.
struct Wave {
    samples: Vec<f32>,
    hertz: u32,
}

impl Wave {
    fn new(hertz: u32) -> Result<Self, String> {
        if !(HERTZ_MIN..=HERTZ_MAX).contains(&hertz) {
            return Err(format!(
                "{hertz} samples a second; between {HERTZ_MIN} and {HERTZ_MAX} can be read"
            ));
        }
        Ok(Self {
            samples: Vec::new(),
            hertz,
        })
    }

    /// Adds the mean of all channels of one moment.
    fn push(&mut self, moment: &[f32]) -> Result<(), String> {
        let most = u64::from(self.hertz) * u64::from(SECS_MAX);
        if u64::try_from(self.samples.len()).unwrap_or(u64::MAX) >= most {
            return Err(format!("the sound is longer than {SECS_MAX} seconds"));
        }
        let channels = u16::try_from(moment.len()).unwrap_or(u16::MAX).max(1);
        let mean = moment.iter().sum::<f32>() / f32::from(channels);
        let mean = if mean.is_finite() { mean } else { 0.0 };
        self.samples.push(mean.clamp(-1.0, 1.0));
        Ok(())
    }
}

/// Decodes a file. The message says what is wrong with it.
pub(super) fn decode(bytes: &[u8], format: &str, hertz: u32) -> Result<Media, String> {
    let wave = match format {
        "wav" => wav(bytes)?,
        "mp3" => mp3(bytes)?,
        other => {
            return Err(format!("{other} cannot be decoded here; send wav or mp3"));
        }
    };
    if wave.samples.is_empty() {
        return Err("there is no sound in it".to_owned());
    }
    let pcm = resampled(wave, hertz);
    Ok(Media::Audio { pcm: pcm.into() })
}

fn wav(bytes: &[u8]) -> Result<Wave, String> {
    let broken = |error: hound::Error| format!("the wav file cannot be read: {error}");
    let reader = WavReader::new(Cursor::new(bytes)).map_err(broken)?;
    let spec = reader.spec();
    if spec.channels == 0 || spec.channels > CHANNELS_MAX {
        return Err(format!(
            "{} channels; 1 to {CHANNELS_MAX} can be read",
            spec.channels
        ));
    }
    let mut wave = Wave::new(spec.sample_rate)?;
    let mut moment = Vec::with_capacity(usize::from(spec.channels));
    let mut add = |sample: f32| {
        moment.push(sample);
        if moment.len() < usize::from(spec.channels) {
            return Ok(());
        }
        let pushed = wave.push(&moment);
        moment.clear();
        pushed
    };
    match spec.sample_format {
        SampleFormat::Float => {
            for sample in reader.into_samples::<f32>() {
                add(sample.map_err(broken)?)?;
            }
        }
        SampleFormat::Int => {
            let bits = i32::from(spec.bits_per_sample).clamp(1, 32);
            let full = 2_f64.powi(bits - 1);
            for sample in reader.into_samples::<i32>() {
                add(narrow(f64::from(sample.map_err(broken)?) / full))?;
            }
        }
    }
    Ok(wave)
}

fn mp3(bytes: &[u8]) -> Result<Wave, String> {
    let broken = "the mp3 file cannot be read";
    if !nanomp3::detect(bytes) {
        return Err("not an mp3 file".to_owned());
    }
    let mut reader = SliceReader::<'_, f32>::new(bytes);
    let mut wave: Option<Wave> = None;
    loop {
        let frame = reader.read_frame().map_err(|_error| broken)?;
        let Some(frame) = frame.map(<[f32]>::to_vec) else {
            break;
        };
        let channels = reader.channels().map_or(1, channels_of);
        let hertz = reader.sample_rate();
        let wave = match &mut wave {
            Some(wave) if wave.hertz == hertz => wave,
            Some(_other) => return Err("an mp3 file that changes its rate".to_owned()),
            None => wave.insert(Wave::new(hertz)?),
        };
        for moment in frame.chunks_exact(channels) {
            wave.push(moment)?;
        }
    }
    wave.ok_or_else(|| "there is no sound in it".to_owned())
}

fn channels_of(channels: nanomp3::Channels) -> usize {
    match channels {
        nanomp3::Channels::Mono => 1,
        nanomp3::Channels::Stereo => 2,
    }
}

/// The same sound at another rate: a windowed sinc, which also takes out what the new rate cannot hold.
fn resampled(wave: Wave, hertz: u32) -> Vec<f32> {
    if wave.hertz == hertz {
        return wave.samples;
    }
    let step = f64::from(wave.hertz) / f64::from(hertz);
    let filter = Filter::new(step.max(1.0));
    let count = u64::try_from(wave.samples.len()).unwrap_or(0) * u64::from(hertz);
    let count = count.div_ceil(u64::from(wave.hertz));
    let (from, to) = (u64::from(wave.hertz), u64::from(hertz));
    (0..count)
        .map(|at| filter.at(&wave.samples, at * from / to, (at * from % to, to)))
        .collect()
}

/// A low pass, known at [`PHASES`] places between two samples.
struct Filter {
    /// Samples on each side.
    reach: u32,
    /// For each phase the weights of the samples from `-reach + 1` to `reach`; their sum is 1.
    weights: Vec<Vec<f32>>,
}

impl Filter {
    /// `stretch`: how many old samples lie between two that are kept.
    fn new(stretch: f64) -> Self {
        let reach = (CROSSINGS * stretch).ceil();
        let taps = (1..=HERTZ_MAX).take_while(|tap| f64::from(*tap) <= reach);
        let reach = u32::try_from(taps.count()).unwrap_or(1);
        let phases = (0_u32..).take(PHASES + 1);
        let weights = phases.map(|phase| {
            let phase = f64::from(phase) / f64::from(u32::try_from(PHASES).unwrap_or(1));
            let before = (0..reach).rev().map(|tap| phase + f64::from(tap));
            let after = (1..=reach).map(|tap| f64::from(tap) - phase);
            let raw = before.chain(after);
            let raw: Vec<f64> = raw
                .map(|away| sinc(away / stretch) * hann(away / f64::from(reach)))
                .collect();
            let sum: f64 = raw.iter().sum();
            raw.into_iter().map(|weight| narrow(weight / sum)).collect()
        });
        Self {
            weights: weights.collect(),
            reach,
        }
    }

    /// The value at `place` and a part of the way to the next sample.
    fn at(&self, samples: &[f32], place: u64, (part, of): (u64, u64)) -> f32 {
        let phases = u64::try_from(PHASES).unwrap_or(1);
        let phase = usize::try_from((part * phases + of / 2) / of).unwrap_or(0);
        let Some(weights) = self.weights.get(phase) else {
            return 0.0;
        };
        let reach = u64::from(self.reach);
        // The first weight is for the sample `reach - 1` before this one; what lies before the beginning is silent.
        let missing = (reach - 1).saturating_sub(place);
        let first = place.saturating_sub(reach - 1);
        let start = usize::try_from(first).unwrap_or(usize::MAX);
        let skipped = usize::try_from(missing).unwrap_or(usize::MAX);
        let heard = samples.get(start..).unwrap_or_default();
        let weights = weights.get(skipped..).unwrap_or_default();
        let sum: f32 = weights.iter().zip(heard).map(|(w, s)| w * s).sum();
        sum.clamp(-1.0, 1.0)
    }
}

fn sinc(x: f64) -> f64 {
    if x.abs() < 1e-9 {
        1.0
    } else {
        (PI * x).sin() / (PI * x)
    }
}

fn hann(x: f64) -> f64 {
    if x.abs() >= 1.0 {
        0.0
    } else {
        0.5 + 0.5 * (PI * x).cos()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "samples and weights are within -1 and 1 and need no more than seven digits"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}
