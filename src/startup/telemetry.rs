//! What the daemon says of itself: its log, and traces for a collector if there is one.
//!
//! A collector is told by a thread of the SDK's, from a queue that drops what is too much: one that is
//! slow or away costs the daemon nothing but that memory. Metrics are not sent: a collector gets them
//! where everybody does, at `/metrics`, and a second set of them would only have to agree with those.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::Level;
use tracing_subscriber::filter::{FilterExt, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::log_repeats::Repeats;
use crate::config::{Config, LogFormat};

/// How long a collector may take for what it is sent at a time.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// How long the daemon's end waits for what has not been sent yet.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Where collectors take traces, below their URL (OTLP 1.9, "OTLP/HTTP Request").
const TRACES: &str = "/v1/traces";

/// The log, and the way to a collector.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    repeats: Repeats,
}

impl Telemetry {
    /// Begins. Must be called outside of any runtime: the client of the collector has its own.
    ///
    /// # Errors
    ///
    /// The setting that makes no sense, and what would.
    pub fn begin(config: &Config) -> Result<Self> {
        let filter = EnvFilter::try_new(&config.log)
            .with_context(|| format!("{:?} is no filter for the log", config.log))?;
        let log = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            // It would say so on stderr, and panic if that is what was closed.
            .log_internal_errors(false)
            .with_ansi(std::io::stderr().is_terminal());
        let log = match config.log_format {
            LogFormat::Text => log.boxed(),
            LogFormat::Json => log.json().boxed(),
        };
        let provider = config.otlp_endpoint.as_deref().map(provider).transpose()?;
        let repeats = Repeats::default();
        let mut layers = vec![log.with_filter(filter.and(repeats.clone())).boxed()];
        layers.extend(provider.as_ref().map(|provider| traces(provider).boxed()));
        tracing_subscriber::registry().with(layers).init();
        repeats.tell_in_the_background().context("cannot start a thread")?;
        Ok(Self { provider, repeats })
    }

    /// Sends what has not been sent yet, if the collector takes it.
    pub fn end(self) {
        self.repeats.end();
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(LAST_WORDS)
        {
            tracing::warn!(%error, "the collector did not take the last traces");
        }
    }
}

/// Makes spans of ours known to the provider, whatever the log shows. Others' are left out: those of
/// its own client would lead to more of them without end.
fn traces<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("nestbox"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target("nestbox", Level::DEBUG))
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider> {
    let resource = Resource::builder()
        .with_service_name("nestbox")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("host.name", super::host_name()?))
        .build();
    let exporter = Collector::at(endpoint)?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Sends to a collector, and says once that it does not take what it is sent, not each time.
#[derive(Debug)]
struct Collector {
    exporter: opentelemetry_otlp::SpanExporter,
    /// Whether it has not taken the last traces.
    away: AtomicBool,
}

impl Collector {
    fn at(endpoint: &str) -> Result<Self> {
        let Some(host) = endpoint.strip_prefix("http://").filter(|host| !host.is_empty()) else {
            bail!(
                "{endpoint:?} is no collector that can be reached: give otlp_endpoint a URL such as \
                 http://127.0.0.1:4318; for one behind TLS let a collector on this machine pass on"
            );
        };
        // Spans tell what is done here: no proxy of the environment belongs in between, and no other
        // place than this one gets them.
        let client = reqwest::blocking::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(EXPORT_LIMIT)
            .build()
            .context("cannot set up the client of the collector")?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("http://{}{TRACES}", host.trim_end_matches('/')))
            .with_timeout(EXPORT_LIMIT)
            .build()
            .with_context(|| format!("traces cannot be sent to {endpoint:?}"))?;
        Ok(Self { exporter, away: AtomicBool::new(false) })
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        match self.exporter.export(batch).await {
            Ok(()) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!("the collector takes traces again");
                }
            }
            Err(error) => {
                if !self.away.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the collector does not take traces: they are dropped");
                }
            }
        }
        // It has been said: the SDK would say it each time.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
#[path = "telemetry_tests.rs"]
mod tests;
