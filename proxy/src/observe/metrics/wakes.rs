//! The series about what sleeps: what was started, stopped and woken, and what runs that costs money.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Metrics;
use super::labels::{ServerLabel, WakeLabels};

/// What sleeps.
#[derive(Debug, Default)]
pub(super) struct WakeSeries {
    wakes: Family<WakeLabels, Counter>,
    running: Family<ServerLabel, Gauge>,
    stop_failures: Family<ServerLabel, Gauge>,
}

impl WakeSeries {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "wakes",
            "Servers outside started and stopped, machines woken, by how it ended",
            self.wakes.clone(),
        );
        registry.register(
            "burst_running",
            "Servers that cost money by the hour: 1 while one was started and not seen to be gone",
            self.running.clone(),
        );
        registry.register(
            "burst_stop_failures",
            "Tries to stop it that did not work, since it was last needed: above 0 it costs money for nothing",
            self.stop_failures.clone(),
        );
    }
}

impl Metrics {
    /// A server outside was started or stopped, or a machine woken.
    pub fn wake(&self, node: &str, act: &'static str, outcome: &'static str) {
        let node = node.to_owned();
        let labels = WakeLabels { node, act, outcome };
        self.wakes.wakes.get_or_create(&labels).inc();
    }

    /// Whether a server runs that costs money, and how often it could not be stopped.
    pub fn burst(&self, node: &str, running: bool, stop_failures: u32) {
        let label = ServerLabel {
            node: node.to_owned(),
        };
        let series = &self.wakes;
        series.running.get_or_create(&label).set(i64::from(running));
        series
            .stop_failures
            .get_or_create(&label)
            .set(i64::from(stop_failures));
    }
}
