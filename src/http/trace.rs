//! `?trace=true`: an answer that also says where the time went.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::actors::control_plane::{Span, Trace};

/// The query of a request that can be traced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traced {
    #[serde(default)]
    trace: bool,
}

impl Traced {
    /// The answer, with the trace if that was asked for.
    pub fn view<T: Serialize>(&self, view: T, trace: &Trace) -> impl Serialize {
        let trace = self.trace.then(|| trace.spans().iter().map(SpanView::from).collect());
        TracedView { view, trace }
    }
}

#[derive(Serialize)]
struct TracedView<T> {
    #[serde(flatten)]
    view: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Vec<SpanView>>,
}

#[derive(Serialize)]
struct SpanView {
    span: &'static str,
    /// From the beginning of the operation.
    start_ms: f64,
    took_ms: f64,
}

impl From<&Span> for SpanView {
    fn from(span: &Span) -> Self {
        let ms = |duration: Duration| duration.as_micros() as f64 / 1e3;
        Self { span: span.name, start_ms: ms(span.start), took_ms: ms(span.took) }
    }
}
