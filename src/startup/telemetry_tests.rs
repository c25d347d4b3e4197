//! Tests of what a collector gets, and of what is said of one.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use tracing_subscriber::Registry;

use super::*;
use crate::domain::id::SandboxId;
use crate::domain::trace::Trace;

/// Spans with their parents, and lines of a log.
#[derive(Debug, Default, Clone)]
struct Seen {
    spans: Arc<Mutex<Vec<SpanData>>>,
    log: Arc<Mutex<Vec<u8>>>,
}

impl SpanExporter for Seen {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        self.spans.lock().unwrap().append(&mut batch);
        Ok(())
    }
}

impl Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seen {
    /// Does something under a log of what `filter` lets through, with traces.
    fn during(filter: &str, work: impl FnOnce()) -> Self {
        let seen = Self::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(seen.clone()).build();
        let writer = seen.clone();
        let log = tracing_subscriber::fmt::layer::<Registry>().with_ansi(false);
        let log = log.with_writer(move || writer.clone()).with_filter(EnvFilter::new(filter));
        let layers = vec![log.boxed(), traces(&provider).boxed()];
        let subscriber = tracing_subscriber::registry().with(layers);
        tracing::subscriber::with_default(subscriber, work);
        seen
    }

    fn log(&self) -> String {
        String::from_utf8(self.log.lock().unwrap().clone()).unwrap()
    }

    /// Each span as `parent > name`.
    fn spans(&self) -> Vec<String> {
        let spans = self.spans.lock().unwrap();
        let name = |id| {
            let found = spans.iter().find(|span| span.span_context.span_id() == id);
            found.map_or("", |span| &*span.name)
        };
        spans.iter().map(|span| format!("{} > {}", name(span.parent_span_id), span.name)).collect()
    }
}

#[test]
fn the_steps_of_an_operation_are_below_it_whatever_the_log_shows() {
    let id = SandboxId::random();
    for filter in ["off", "info", "debug"] {
        let seen = Seen::during(filter, || {
            let request = tracing::info_span!("request", request_id = "1");
            let _entered = request.enter();
            let trace = Trace::default();
            trace.blocking("record", || ());
            // Not with `block_on`: the provider waits in that executor itself.
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(trace.of_operation("create", &id).span("boot", async {}));
        });
        let want = ["request > record", "create > boot", "request > create", " > request"];
        assert_eq!(seen.spans(), want, "{filter}");
        let spans = seen.spans.lock().unwrap();
        let told = spans[2].attributes.iter().find(|told| told.key.as_str() == "sandbox_id");
        assert_eq!(told.unwrap().value.as_str(), id.as_str());
    }
}

#[test]
fn a_step_of_nothing_and_what_others_do_is_not_told() {
    let seen = Seen::during("info", || {
        Trace::default().blocking("record", || ());
        drop(tracing::info_span!(target: "hyper::client", "connection"));
    });
    assert_eq!(seen.spans(), [""; 0]);
}

#[test]
fn the_steps_are_not_in_the_log() {
    let seen = Seen::during("info", || {
        let operation = Trace::default().of_operation("create", &SandboxId::random());
        operation.blocking("boot", || tracing::info!("it boots"));
    });
    assert!(seen.log().contains("it boots"), "{}", seen.log());
    assert!(!seen.log().contains("otel.name"), "{}", seen.log());
}

#[test]
fn that_a_collector_is_away_is_said_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let collector = Collector::at(&format!("http://{address}/")).unwrap();
    let seen = Seen::during("info", || {
        for _ in 0..3 {
            block_on(collector.export(Vec::new())).unwrap();
        }
    });
    assert_eq!(seen.log().matches("does not take traces").count(), 1, "{}", seen.log());

    let listener = TcpListener::bind(address).unwrap();
    let taking = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut piece = [0; 1024];
        let size = connection.read(&mut piece).unwrap();
        assert!(piece[..size].starts_with(b"POST /v1/traces HTTP/1.1"));
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        connection.write_all(answer).unwrap();
    });
    let seen = Seen::during("info", || block_on(collector.export(Vec::new())).unwrap());
    taking.join().unwrap();
    assert_eq!(seen.log().matches("takes traces again").count(), 1, "{}", seen.log());
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_refused_with_one_that_can() {
    for endpoint in ["", "127.0.0.1:4318", "https://collector.example", "http://"] {
        let error = Collector::at(endpoint).expect_err(endpoint).to_string();
        assert!(error.contains("http://127.0.0.1:4318"), "{error}");
    }
}

#[test]
fn a_collector_is_told_whose_traces_these_are() {
    let resource = provider("http://127.0.0.1:1").unwrap();
    let told = format!("{resource:?}");
    for name in ["service.name", "service.version", "host.name"] {
        assert!(told.contains(name), "{name}: {told}");
    }
}

/// The environment is of the whole process, so this test starts itself once more in another one.
#[test]
fn a_collector_is_reached_past_the_proxies_of_the_environment() {
    const COLLECTOR: &str = "NESTBOX_TEST_COLLECTOR";
    if let Ok(url) = std::env::var(COLLECTOR) {
        block_on(Collector::at(&url).unwrap().export(Vec::new())).unwrap();
        return;
    }
    let name =
        "startup::telemetry::tests::a_collector_is_reached_past_the_proxies_of_the_environment";
    let [proxy, collector] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", name])
        .env(COLLECTOR, url(&collector))
        .stdout(std::process::Stdio::null());
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(variable, url(&proxy));
    }
    let mut child = child.spawn().unwrap();
    let (asked, order) = std::sync::mpsc::channel();
    for (who, listener) in [("proxy", proxy), ("collector", collector)] {
        let asked = asked.clone();
        std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            assert!(connection.read(&mut [0; 1024]).unwrap() > 0);
            connection.write_all(answer).unwrap();
            asked.send(who).unwrap();
        });
    }
    assert_eq!(order.recv_timeout(std::time::Duration::from_secs(30)), Ok("collector"));
    assert!(child.wait().unwrap().success());
    assert!(order.try_recv().is_err(), "the proxy got nothing");
}
