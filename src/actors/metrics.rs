//! What is counted and timed, in Prometheus's terms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::domain::usage::HostLoad;
use crate::vmm::process::process_usage::Descriptors;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
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
    create_seconds: Histogram,
    create_failures: Counter,
    operation_seconds: Family<OperationLabel, Histogram, fn() -> Histogram>,
    operation_failures: Family<OperationLabel, Counter>,
    command_seconds: Histogram,
    requests: Family<StatusLabel, Counter>,
    request_seconds: Histogram,
    websocket_sessions: Gauge,
    sandbox_cpu_seconds: Counter<f64, AtomicU64>,
    looked_at: LookedAt,
}

/// What is looked at when somebody asks, rather than counted.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// What the hosts carry.
    pub load: HostLoad,
    /// How often a mailbox was full.
    pub mailbox_refusals: u64,
    /// How often another process had locked the database.
    pub busy_retries: u64,
}

/// The same as it is shown.
#[derive(Default)]
struct LookedAt {
    sandboxes: Family<StateLabel, Gauge>,
    memory_bytes: Gauge,
    slots_ready: Gauge,
    vmms_ready: Gauge,
    standbys_ready: Gauge,
    mailbox_refusals: Counter,
    busy_retries: Counter,
    open_fds: Gauge,
    max_fds: Gauge,
    connections: Family<KindLabel, Gauge>,
    connections_cut: Counter,
}

/// Connections to the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Open ones on which a key or a token was shown.
    pub known: usize,
    /// Other open ones.
    pub strangers: usize,
    /// Those that were hung up on because there were too many.
    pub cut: u64,
}

/// A WebSocket that is open until this is dropped.
pub struct OpenSocket(Gauge);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl LookedAt {
    fn register(&self, registry: &mut Registry) {
        registry.register("sandboxes", "Sandboxes that live here", self.sandboxes.clone());
        registry.register(
            "sandbox_memory_bytes",
            "Memory that the VMs of sandboxes have for themselves, as of the last sample",
            self.memory_bytes.clone(),
        );
        registry.register(
            "slots_ready",
            "Network slots that the next creates get without waiting",
            self.slots_ready.clone(),
        );
        registry.register(
            "vmms_ready",
            "Processes of the hypervisor that wait for a snapshot",
            self.vmms_ready.clone(),
        );
        registry.register(
            "standbys_ready",
            "Sandboxes that were made before anybody asked for them",
            self.standbys_ready.clone(),
        );
        registry.register(
            "mailbox_refusals",
            "Messages that found an actor's mailbox full",
            self.mailbox_refusals.clone(),
        );
        registry.register(
            "database_busy_retries",
            "Statements that were tried again because another process had locked the database",
            self.busy_retries.clone(),
        );
        registry.register("open_fds", "Descriptors that are open", self.open_fds.clone());
        registry.register("max_fds", "Descriptors that may be open", self.max_fds.clone());
        registry.register(
            "http_connections",
            "Connections to the API, by whether a key was shown on them",
            self.connections.clone(),
        );
        registry.register(
            "http_connections_cut",
            "Connections that were hung up on because there were too many",
            self.connections_cut.clone(),
        );
    }

    fn show(&self, readings: &Readings) {
        self.sandboxes.clear();
        let HostLoad { population, memory_bytes, readiness } = &readings.load;
        for (state, count) in population {
            self.sandboxes
                .get_or_create(&StateLabel { state: state.as_str() })
                .set(gauge(*count as u64));
        }
        self.memory_bytes.set(gauge(*memory_bytes));
        self.slots_ready.set(gauge(readiness.slots as u64));
        self.vmms_ready.set(gauge(readiness.vmms as u64));
        self.standbys_ready.set(gauge(readiness.standbys as u64));
        self.mailbox_refusals.inner().store(readings.mailbox_refusals, Ordering::Relaxed);
        self.busy_retries.inner().store(readings.busy_retries, Ordering::Relaxed);
        if let Some(descriptors) = Descriptors::now() {
            self.open_fds.set(gauge(descriptors.open));
            self.max_fds.set(gauge(descriptors.most));
        }
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Default for Metrics {
    fn default() -> Self {
        // From 1 ms to a minute and a half.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let mut registry = Registry::with_prefix("nestbox");
        let metrics = Self {
            create_seconds: seconds(),
            create_failures: Counter::default(),
            operation_seconds: Family::new_with_constructor(seconds),
            operation_failures: Family::default(),
            command_seconds: seconds(),
            requests: Family::default(),
            request_seconds: seconds(),
            websocket_sessions: Gauge::default(),
            sandbox_cpu_seconds: Counter::default(),
            looked_at: LookedAt::default(),
            registry: Registry::default(),
        };
        metrics.looked_at.register(&mut registry);
        registry.register(
            "sandbox_cpu_seconds",
            "Processor time that the VMs of sandboxes have used while they ran",
            metrics.sandbox_cpu_seconds.clone(),
        );
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
        registry.register(
            "websocket_sessions",
            "WebSockets that are open",
            metrics.websocket_sessions.clone(),
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

    pub(super) fn cpu_used(&self, time: Duration) {
        self.sandbox_cpu_seconds.inc_by(time.as_secs_f64());
    }

    /// Counts a WebSocket that has been opened.
    pub fn socket_opened(&self) -> OpenSocket {
        self.websocket_sessions.inc();
        OpenSocket(self.websocket_sessions.clone())
    }

    /// Notes how many connections there are now.
    pub fn connections_seen(&self, counts: ConnectionCounts) {
        for (kind, count) in [("known", counts.known), ("stranger", counts.strangers)] {
            let label = KindLabel { kind };
            self.looked_at.connections.get_or_create(&label).set(gauge(count as u64));
        }
        self.looked_at.connections_cut.inner().store(counts.cut, Ordering::Relaxed);
    }

    /// Everything in Prometheus's text format.
    pub fn encode(&self, readings: &Readings) -> String {
        self.looked_at.show(readings);
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing into a string does not fail");
        out
    }
}
