//! One of several requests for one file: takes pieces until none is left, and asks again while that may help. Believes no range that it did
//! not ask for.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, Url};
use tokio::time::timeout;

use super::part::{Part, Piece};
use super::{FetchError, write_failed};
use crate::models::net::{Ask, Net, NetError, broken, cause, is_partial};
use crate::models::progress::Progress;

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1024 * 1024;

/// How a stream ended badly.
#[derive(Debug)]
pub(super) enum Given {
    /// The server knows no ranges, or lies about them.
    NoRanges,
    /// It cannot go on.
    Error(FetchError),
}

impl From<NetError> for Given {
    fn from(error: NetError) -> Self {
        Self::Error(FetchError::Net(error))
    }
}

/// Fetches pieces until none is free.
pub(super) async fn take(
    net: &Net,
    url: &Url,
    part: &Part,
    progress: &Progress,
) -> Result<(), Given> {
    while let Some(piece) = part.take() {
        whole_piece(net, url, part, piece, progress).await?;
    }
    Ok(())
}

async fn whole_piece(
    net: &Net,
    url: &Url,
    part: &Part,
    first: Piece,
    progress: &Progress,
) -> Result<(), Given> {
    let mut tries = 0;
    let mut piece = first;
    loop {
        let before = part.done();
        let error = match request(net, url, part, piece, progress).await {
            Ok(()) => NetError::Broken {
                host: super::super::net::host(url),
                reason: "it ended too early".to_owned(),
            },
            Err(Given::Error(FetchError::Net(error))) if error.is_passing() => error,
            Err(other) => return Err(other),
        };
        let Some(rest) = part.rest(piece.index) else {
            return Ok(());
        };
        piece = rest;
        // Each try that brings something is a first one.
        tries = if part.done() > before { 0 } else { tries + 1 };
        if tries >= net.patience.tries {
            return Err(error.into());
        }
        net.rest(&error, tries).await;
    }
}

async fn request(
    net: &Net,
    url: &Url,
    part: &Part,
    piece: Piece,
    progress: &Progress,
) -> Result<(), Given> {
    let mut piece = piece;
    let pieces = part.streams() > 1;
    let range = match piece.end {
        Some(end) if pieces => Some((piece.from, end.saturating_sub(1))),
        _ => None,
    };
    if range.is_none() && piece.from > 0 {
        // Without ranges a broken answer begins anew.
        let lost = piece.from;
        part.restart(piece.index);
        progress.set(progress.done().saturating_sub(lost), progress.total());
        piece.from = 0;
    }
    let ask = Ask {
        range,
        ..Ask::default()
    };
    let (answer, _first) = match net.send(url, ask).await {
        // 416: the file is shorter than it was said to be.
        Err(NetError::Odd { reason, .. }) if range.is_some() && reason == "HTTP 416" => {
            return Err(Given::NoRanges);
        }
        other => other?,
    };
    if let Some((from, _to)) = range
        && !gives(&answer, from, part.bytes())
    {
        return Err(Given::NoRanges);
    }
    body(net.patience.stall, url, answer, part, piece, progress).await
}

/// Whether an answer begins where it was asked to, in a file of the right size.
fn gives(answer: &Response, from: u64, bytes: Option<u64>) -> bool {
    if !is_partial(answer.status()) {
        return false;
    }
    let text = answer
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|text| text.to_str().ok());
    let parts = text
        .and_then(|text| text.trim().strip_prefix("bytes "))
        .and_then(|text| {
            let (range, total) = text.split_once('/')?;
            let (first, _last) = range.split_once('-')?;
            Some((
                first.trim().parse::<u64>().ok()?,
                total.trim().parse::<u64>().ok(),
            ))
        });
    parts.is_some_and(|(first, total)| first == from && (total.is_none() || total == bytes))
}

#[expect(
    clippy::too_many_arguments,
    reason = "the plain inputs of one loop; a struct would only rename them"
)]
async fn body(
    stall: Duration,
    url: &Url,
    answer: Response,
    part: &Part,
    mut piece: Piece,
    progress: &Progress,
) -> Result<(), Given> {
    let mut stream = answer.bytes_stream();
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let next = timeout(stall, stream.next()).await;
        let ended = match next {
            Ok(Some(Ok(bytes))) => {
                buffer.extend_from_slice(&bytes);
                None
            }
            Ok(None) => Some(Ok(())),
            Ok(Some(Err(error))) => Some(Err(broken(url, cause(&error)))),
            Err(_elapsed) => Some(Err(broken(
                url,
                format!("nothing came for {} s", stall.as_secs()),
            ))),
        };
        let full = fit(&mut buffer, piece);
        if buffer.len() >= BUFFER_BYTES || ended.is_some() || full {
            let bytes = std::mem::replace(&mut buffer, Vec::with_capacity(BUFFER_BYTES));
            let len = u64::try_from(bytes.len()).unwrap_or(0);
            part.write(piece, bytes)
                .await
                .map_err(|source| Given::Error(write_failed(part.target(), source, part.done())))?;
            progress.add(len);
            piece.from += len;
        }
        if full {
            return Ok(());
        }
        if let Some(ended) = ended {
            if ended.is_ok() && piece.end.is_none() {
                part.ended(piece.index);
            }
            return Ok(ended?);
        }
    }
}

/// Cuts what goes beyond the piece; whether the piece is full with it.
fn fit(buffer: &mut Vec<u8>, piece: Piece) -> bool {
    let Some(end) = piece.end else { return false };
    let room = usize::try_from(end.saturating_sub(piece.from)).unwrap_or(usize::MAX);
    buffer.truncate(room);
    buffer.len() >= room
}
