//! What the daemon says of itself: its log, and traces for a collector if there is one.
//!
//! A collector is told by a thread of the SDK's, from a queue that drops what is too much: one that is
//! slow or away costs the daemon nothing but that memory. Metrics are not sent: a collector gets them
//! where everybody does, at `/metrics`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Config, LogFormat};

/// How long a collector may take for what it is sent at a time.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// How long the daemon's end waits for what has not been sent yet.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Where collectors take traces, below their URL (OTLP 1.9, "OTLP/HTTP Request").
const TRACES: &str = "/v1/traces";

/// The log, and the way to a collector.
pub struct Telemetry(Option<SdkTracerProvider>);

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
            .with_ansi(std::io::stderr().is_terminal());
        let log = match config.log_format {
            LogFormat::Text => log.boxed(),
            LogFormat::Json => log.json().boxed(),
        };
        let provider = config.otlp_endpoint.as_deref().map(provider).transpose()?;
        let traces = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer().with_tracer(provider.tracer("nestbox")).boxed()
        });
        tracing_subscriber::registry().with(log).with(traces).with(filter).init();
        Ok(Self(provider))
    }

    /// Sends what has not been sent yet, if the collector takes it.
    pub fn end(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(LAST_WORDS)
        {
            tracing::warn!(%error, "the collector did not take the last traces");
        }
    }
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider> {
    let Some(host) = endpoint.strip_prefix("http://").filter(|host| !host.is_empty()) else {
        bail!(
            "{endpoint:?} is no collector that can be reached: give otlp_endpoint a URL such as \
             http://127.0.0.1:4318; for one behind TLS let a collector on this machine pass on"
        );
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("http://{}{TRACES}", host.trim_end_matches('/')))
        .with_timeout(EXPORT_LIMIT)
        .build()
        .with_context(|| format!("traces cannot be sent to {endpoint:?}"))?;
    let resource = Resource::builder()
        .with_service_name("nestbox")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_cannot_be_reached_is_refused_with_one_that_can() {
        for endpoint in ["", "127.0.0.1:4318", "https://collector.example", "http://"] {
            let error = provider(endpoint).expect_err(endpoint).to_string();
            assert!(error.contains("http://127.0.0.1:4318"), "{error}");
        }
    }
}
