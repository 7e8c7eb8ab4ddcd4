//! The frames between agent and worker: four bytes of length, little-endian, then that much JSON.
//!
//! Both ends are the same program, so a version number is enough and no field needs to be optional. This room must never
//! block on anything but the reader or writer it is given, and never accept a frame above [`FRAME_BYTES_MAX`].

use std::io;
use std::io::Read;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;

use crate::spec::EmbedError;
use crate::spec::EmbedInput;
use crate::spec::Embedded;
use crate::spec::Event;
use crate::spec::GenerateSpec;
use crate::spec::LoadError;
use crate::spec::LoadSpec;
use crate::spec::ModelCard;
use crate::spec::Stats;
use crate::spec::Usage;

/// Raised with every change of a frame.
pub const VERSION: u32 = 3;

/// The longest frame either side accepts. A prompt for a context of a million tokens is about 5 MB; the
/// rest is for pictures ([`crate::media::REQUEST_BYTES_MAX`]).
pub const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Pieces of one answer that may be on their way before its reader has taken any.
pub const PIECES_WINDOW: u32 = 64;

/// What the agent sends.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// The first frame.
    Load {
        /// The agent's [`VERSION`].
        version: u32,
        /// What to load.
        spec: Box<LoadSpec>,
    },
    /// Starts a job.
    Generate {
        /// Its number, chosen by the agent.
        job: u64,
        /// What is wanted.
        spec: Box<GenerateSpec>,
    },
    /// Ends a job. Unknown numbers are ignored, because the end may have crossed this frame.
    Cancel {
        /// The job.
        job: u64,
    },
    /// The reader of an answer took some pieces; as many more may be sent.
    Credit {
        /// The job.
        job: u64,
        /// How many.
        pieces: u32,
    },
    /// Asks for the tokens of a text.
    Tokenize {
        /// Number of the question.
        call: u64,
        /// The text.
        text: String,
        /// Add the begin token if the model wants one.
        add_special: bool,
        /// Read control tokens as such.
        parse_special: bool,
    },
    /// Asks for the text of tokens.
    Detokenize {
        /// Number of the question.
        call: u64,
        /// The tokens.
        tokens: Vec<i32>,
    },
    /// Asks for the numbers of some texts.
    Embed {
        /// Number of the question; [`ToWorker::Cancel`] takes it too.
        call: u64,
        /// The texts.
        inputs: Vec<EmbedInput>,
    },
    /// Ends the worker after the current step.
    Shutdown,
}

/// What the worker sends.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// The model is ready.
    Loaded {
        /// The worker's [`VERSION`].
        version: u32,
        /// What was loaded.
        card: Box<ModelCard>,
    },
    /// The model cannot be loaded; the worker ends.
    LoadFailed(LoadError),
    /// Something happened to a job.
    Event {
        /// The job.
        job: u64,
        /// What.
        event: Event,
    },
    /// Answer to [`ToWorker::Cancel`] of a job that had no end yet; nothing more comes of it.
    Cancelled {
        /// The job.
        job: u64,
        /// What it used.
        usage: Usage,
    },
    /// Answer to [`ToWorker::Tokenize`].
    Tokens {
        /// Number of the question.
        call: u64,
        /// The tokens.
        tokens: Vec<i32>,
    },
    /// Answer to [`ToWorker::Detokenize`]. Bytes that are no UTF-8 are replaced.
    Text {
        /// Number of the question.
        call: u64,
        /// The text.
        text: String,
    },
    /// Answer to [`ToWorker::Embed`].
    Embedded {
        /// Number of the question.
        call: u64,
        /// The numbers, or why there are none.
        result: Result<Embedded, EmbedError>,
    },
    /// How busy the worker is.
    Stats(Stats),
    /// Which conversations lie in its caches.
    Held {
        /// Their links, the newest last.
        links: Vec<u64>,
    },
}

/// Appends `frame` to `out`.
pub fn encode<T: Serialize>(frame: &T, out: &mut Vec<u8>) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let done = serde_json::to_writer(&mut *out, frame);
    let body = out.len() - start - 4;
    let length = u32::try_from(body).ok().filter(|_| body <= FRAME_BYTES_MAX);
    match (done, length) {
        (Ok(()), Some(length)) => {
            out[start..start + 4].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        (Err(error), _) => {
            out.truncate(start);
            Err(io::Error::new(io::ErrorKind::InvalidData, error))
        }
        (Ok(()), None) => {
            out.truncate(start);
            Err(too_long(body))
        }
    }
}

/// Reads one frame; `None` at the end of the stream.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match from.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut body = vec![0; checked_length(length)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Reads one frame; `None` at the end of the stream. Not safe to cancel in the middle.
pub async fn read_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut body = vec![0; checked_length(length)?];
    from.read_exact(&mut body).await?;
    decode(&body).map(Some)
}

fn checked_length(length: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(too_long(length));
    }
    Ok(length)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn too_long(bytes: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a frame of {bytes} bytes is above the limit of {FRAME_BYTES_MAX}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let frames = [
            ToWorker::Cancel { job: u64::MAX },
            ToWorker::Generate {
                job: 1,
                spec: Box::new(GenerateSpec::from_template("héllo \u{1F600}\0")),
            },
            ToWorker::Shutdown,
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            encode(frame, &mut bytes).expect("small frames fit");
        }

        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(read(&mut from).expect("whole frames"), Some(frame));
        }
        assert_eq!(read::<ToWorker>(&mut from).expect("a clean end"), None);
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_memory_is_taken() {
        let mut from: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'{'];

        assert!(read::<ToWorker>(&mut from).is_err());
    }

    #[test]
    fn a_stream_cut_in_a_frame_is_an_error() {
        let mut bytes = Vec::new();
        encode(&ToWorker::Shutdown, &mut bytes).expect("small frames fit");
        for cut in 1..bytes.len() {
            assert!(
                read::<ToWorker>(&mut &bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }
}
