//! Waiting on facts, with a deadline and a name. Never sleeps to let things happen.

use std::future::Future;
use std::time::{Duration, Instant};

/// Asks until the answer is there; panics with the name of the fact after the deadline.
pub async fn until<T, F, Fut>(fact: &str, deadline: Duration, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            started.elapsed() < deadline,
            "not within {deadline:?}: {fact}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
