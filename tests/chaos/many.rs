//! Five hundred streams at once through one proxy, each on a connection of its own: no error, and a stated price in memory for each.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tests::client::Client;
use tests::node::{Node, slow};
use tests::proxy::Proxy;

use crate::town::footprint;
use crate::{say, setting};

const STREAMS: usize = 500;
const NODES: usize = 8;
const SLOTS: u32 = 64;
/// Between two tokens of one stream: 2,500 events a second in all.
const STEP_MS: u64 = 200;
/// Resident memory of one stream: buffers of TLS, HTTP and two in the tunnel.
const STREAM_KIB_MAX: u64 = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes the whole machine: tests/chaos.sh runs it"]
async fn five_hundred_streams_at_once_end_whole_and_cost_little_memory() {
    let lasts = Duration::from_secs(setting("HEARTH_STREAMS_SECS", 10));
    let mut proxy = Proxy::generous()
        .server("connections_per_ip_max = 4000")
        // Eight machines and five hundred readers share two processors: one that gets none of them for a while is not lost.
        .routing("silence_patience_ms = 5000")
        .start()
        .await;
    let letters = usize::try_from(lasts.as_millis()).expect("small") / 200;
    let answer = slow(letters.div_ceil(5), STEP_MS);
    let _homes: Vec<Node> = (0..NODES)
        .map(|at| {
            Node::named(&format!("home-{at}"))
                .tier_from("fast", &answer, SLOTS)
                .join(&proxy)
        })
        .collect();
    let key = proxy.key("crowd").1;
    let (url, certificate) = (proxy.url(), proxy.certificate());
    let person = || {
        Client::patient(&url, &certificate, lasts * 4 + Duration::from_mins(1)).with_bearer(&key)
    };
    proxy.serves(&person(), &["fast"]).await;
    tests::wait::until("every home serves", Duration::from_secs(30), || async {
        (proxy.metric("hearth_nodes_ready").await >= 8.0).then_some(())
    })
    .await;
    let pid = proxy.process().pid();
    let before = footprint(pid);

    let began = Instant::now();
    let streams: FuturesUnordered<_> = (0..STREAMS)
        .map(|_| tokio::spawn(stream(person(), letters)))
        .collect();
    let peak = tokio::spawn(peak(pid, lasts));
    let ended: Vec<Result<Duration, String>> = streams
        .map(|one| one.expect("a client does not panic"))
        .collect()
        .await;
    let took = began.elapsed();
    let peak = peak.await.expect("a look does not panic");
    let errors: Vec<&String> = ended.iter().filter_map(|one| one.as_ref().err()).collect();
    let mut gaps: Vec<Duration> = ended
        .iter()
        .filter_map(|one| one.as_ref().ok().copied())
        .collect();
    gaps.sort_unstable();
    let each = (peak.rss_kib - before.rss_kib) / STREAMS as u64;
    say(&format!(
        "{STREAMS} streams for {:.1} s: {} errors, {each} KiB of the proxy's memory each ({} MiB before, {} MiB at the peak), longest pause p50 {:?} max {:?}",
        took.as_secs_f64(),
        errors.len(),
        before.rss_kib / 1024,
        peak.rss_kib / 1024,
        gaps.get(gaps.len() / 2),
        gaps.last(),
    ));
    assert!(errors.is_empty(), "{:?}", errors.first());
    assert!(
        peak.files >= STREAMS,
        "only {} files were open at once",
        peak.files
    );
    assert!(each <= STREAM_KIB_MAX, "{each} KiB a stream");
}

/// One stream to its end: its longest pause.
async fn stream(client: Client, letters: usize) -> Result<Duration, String> {
    let body = json!({
        "model": "fast",
        "messages": [{"role": "user", "content": "Talk."}],
        "max_tokens": letters,
        "stream": true,
    });
    let Some(mut stream) = client.try_stream(body).await else {
        return Err("no answer".to_owned());
    };
    if stream.status != 200 {
        let status = stream.status;
        return Err(format!("{status}: {}", stream.rest().await));
    }
    let (mut events, mut last, mut longest) = (Vec::new(), None::<Instant>, Duration::ZERO);
    while let Some(event) = stream.data().await {
        let now = Instant::now();
        longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
        events.push(event);
    }
    stream.unread(events);
    let transcript = stream.collect().await;
    let is_whole = transcript.done && transcript.finish_reason().is_some();
    if is_whole {
        Ok(longest)
    } else {
        Err(format!("broken: {:?}", transcript.error()))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    rss_kib: u64,
    files: usize,
}

/// The most that the process held, and sockets it had, over the time of the streams.
async fn peak(pid: u32, lasts: Duration) -> Peak {
    let (began, mut peak) = (Instant::now(), Peak::default());
    while began.elapsed() < lasts {
        let now = footprint(pid);
        peak.rss_kib = peak.rss_kib.max(now.rss_kib);
        peak.files = peak.files.max(now.files);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    peak
}
