//! What is counted and timed, in Prometheus's terms.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

/// All metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    sandboxes: Family<StateLabel, Gauge>,
    create_seconds: Histogram,
    create_failures: Counter,
    operation_seconds: Family<OperationLabel, Histogram, fn() -> Histogram>,
    operation_failures: Family<OperationLabel, Counter>,
    command_seconds: Histogram,
    requests: Family<StatusLabel, Counter>,
    request_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        // From 1 ms to a minute and a half.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let mut registry = Registry::with_prefix("nestbox");
        let metrics = Self {
            sandboxes: Family::default(),
            create_seconds: seconds(),
            create_failures: Counter::default(),
            operation_seconds: Family::new_with_constructor(seconds),
            operation_failures: Family::default(),
            command_seconds: seconds(),
            requests: Family::default(),
            request_seconds: seconds(),
            registry: Registry::default(),
        };
        registry.register("sandboxes", "Sandboxes that live here", metrics.sandboxes.clone());
        registry.register(
            "sandbox_create_seconds",
            "Time from the request for a sandbox to its running",
            metrics.create_seconds.clone(),
        );
        registry.register(
            "sandbox_create_failures",
            "Sandboxes that could not be made",
            metrics.create_failures.clone(),
        );
        registry.register(
            "operation_seconds",
            "Time that pauses, resumes, forks and snapshots of sandboxes took",
            metrics.operation_seconds.clone(),
        );
        registry.register(
            "operation_failures",
            "Pauses, resumes, forks and snapshots that this host failed to do",
            metrics.operation_failures.clone(),
        );
        registry.register(
            "command_seconds",
            "Time that commands took in sandboxes",
            metrics.command_seconds.clone(),
        );
        registry.register("http_requests", "Answers by status", metrics.requests.clone());
        registry.register(
            "http_request_seconds",
            "Time from a request to its answer",
            metrics.request_seconds.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    pub(super) fn sandbox_created(&self, took: Duration) {
        self.create_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn sandbox_failed(&self) {
        self.create_failures.inc();
    }

    pub(super) fn operation_done(&self, operation: &'static str, took: Duration) {
        let label = OperationLabel { operation };
        self.operation_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    pub(super) fn operation_failed(&self, operation: &'static str) {
        self.operation_failures.get_or_create(&OperationLabel { operation }).inc();
    }

    pub(super) fn command_run(&self, took: Duration) {
        self.command_seconds.observe(took.as_secs_f64());
    }

    /// Counts an HTTP answer.
    pub fn answered(&self, status: u16, took: Duration) {
        self.requests.get_or_create(&StatusLabel { status }).inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// Everything in Prometheus's text format; `population` are the sandboxes by state.
    pub fn encode<'a>(
        &self,
        population: impl IntoIterator<Item = (&'a &'static str, &'a usize)>,
    ) -> String {
        self.sandboxes.clear();
        for (state, count) in population {
            self.sandboxes.get_or_create(&StateLabel { state }).set(*count as i64);
        }
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing into a string does not fail");
        out
    }
}
