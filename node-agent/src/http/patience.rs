//! A streamed answer that lets wait: its model is being loaded, or others are before it. For a while a refusal can still become a
//! status; then the head goes out, and comments say that somebody is at work, and how far.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use config::wire::sse;
use futures_util::stream;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::{sleep, timeout};

use super::Body;
use super::job::Made;
use super::progress::Listener;
use super::stream::{KEEP_ALIVE, Live, event_stream};
use crate::reply::Refused;

type Making = Pin<Box<dyn Future<Output = Result<Made, Refused>> + Send>>;

/// What the body does next.
enum Stage {
    Waiting(Making, Listener),
    Answering(Box<Live>),
    Forwarding(Body),
    Ended,
}

/// The answer with its head when it begins, or after so long.
pub(super) async fn answer(
    mut making: Making,
    (listener, head_after): (Listener, Duration),
) -> Result<Response<Body>, Refused> {
    if let Ok(made) = timeout(head_after, making.as_mut()).await {
        return made.map(Made::into_response);
    }
    let chunks = stream::unfold(Stage::Waiting(making, listener), |stage| async move {
        let (bytes, stage) = next(stage).await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), stage))
    });
    Ok(event_stream(StreamBody::new(chunks).boxed_unsync()))
}

async fn forward(mut body: Body) -> Option<(Bytes, Stage)> {
    loop {
        let Ok(frame) = body.frame().await?;
        if let Ok(bytes) = frame.into_data() {
            return Some((bytes, Stage::Forwarding(body)));
        }
    }
}

async fn next(stage: Stage) -> Option<(Bytes, Stage)> {
    let (mut making, mut listener) = match stage {
        Stage::Ended => return None,
        Stage::Answering(mut live) => {
            let bytes = live.next().await?;
            return Some((bytes, Stage::Answering(live)));
        }
        Stage::Forwarding(body) => return forward(body).await,
        Stage::Waiting(making, listener) => (making, listener),
    };
    let made = tokio::select! {
        made = making.as_mut() => made,
        progress = listener.next() => {
            let mut word = Vec::new();
            progress.write(&mut word);
            return Some((word.into(), Stage::Waiting(making, listener)));
        }
        () = sleep(KEEP_ALIVE) => {
            let silence = Bytes::from_static(sse::KEEP_ALIVE);
            return Some((silence, Stage::Waiting(making, listener)));
        }
    };
    match made {
        Ok(Made::Streaming(mut live)) => {
            let bytes = live.next().await?;
            Some((bytes, Stage::Answering(live)))
        }
        // Another server's answer comes with its own body.
        Ok(Made::Whole(response)) => forward(response.into_body()).await,
        Err(refused) => {
            let mut out = Vec::new();
            if let Err(error) = sse::write_json(&mut out, &refused.body()) {
                tracing::error!(%error, "an error event could not be written");
            }
            Some((out.into(), Stage::Ended))
        }
    }
}
