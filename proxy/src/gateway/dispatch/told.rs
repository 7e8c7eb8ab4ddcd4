//! What a node says of its own part in the head of its answer: `server-timing: queue;dur=12, prefill;dur=80`. Believes numbers alone.

use http::HeaderMap;

/// Parts that are read of one header.
const PARTS_MAX: usize = 8;

/// Milliseconds of each part, as far as the node said them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Told {
    /// Waiting for a slot.
    pub queue: Option<f64>,
    /// Reading the prompt.
    pub prefill: Option<f64>,
    /// Waiting until the model was loaded.
    pub load: Option<f64>,
}

impl Told {
    /// Reads the head of a node's answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let timing = headers.get("server-timing").and_then(|it| it.to_str().ok());
        let mut told = Self::default();
        for part in timing.unwrap_or_default().split(',').take(PARTS_MAX) {
            let Some((name, ms)) = part.trim().split_once(";dur=") else {
                continue;
            };
            let ms = ms.parse().ok();
            let ms = ms.filter(|ms: &f64| ms.is_finite() && *ms >= 0.0);
            match name {
                "queue" => told.queue = ms,
                "prefill" => told.prefill = ms,
                "load" => told.load = ms,
                _ => {}
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(timing: &'static str) -> Told {
        let mut headers = HeaderMap::new();
        headers.insert("server-timing", HeaderValue::from_static(timing));
        Told::of(&headers)
    }

    #[test]
    fn parts_are_read_in_any_order_and_nonsense_is_nothing() {
        let queue = Told {
            queue: Some(7.0),
            ..Told::default()
        };
        assert_eq!(read("queue;dur=7"), queue);
        assert_eq!(
            read("prefill;dur=80.5, other;dur=1, queue;dur=7,load;dur=4000"),
            Told {
                prefill: Some(80.5),
                load: Some(4000.0),
                ..queue
            }
        );
        for nonsense in [
            "",
            "queue",
            "queue;dur=-1",
            "queue;dur=NaN",
            "queue;dur=x",
            "a;b;c",
        ] {
            assert_eq!(read(nonsense), Told::default(), "{nonsense}");
        }
        assert_eq!(Told::of(&HeaderMap::new()), Told::default());
    }
}
