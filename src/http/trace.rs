//! `?trace=true`: an answer that also says where the time went.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::trace::{Span, Trace};

/// The query of a request that can be traced.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Traced {
    /// Whether the answer says where the time went.
    #[serde(default)]
    trace: bool,
}

impl Traced {
    /// The answer, with the trace if that was asked for.
    pub fn view<T: Serialize>(&self, view: T, trace: &Trace) -> impl Serialize {
        let trace = self.trace.then(|| trace.spans().iter().map(SpanView::from).collect());
        WithTrace { view, trace }
    }
}

/// An answer that may say where the time went.
#[derive(Serialize, ToSchema)]
pub struct WithTrace<T> {
    #[serde(flatten)]
    view: T,
    /// Steps on the way, in the order of their beginnings; with `trace=true` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Vec<SpanView>>,
}

/// One step on the way to an answer.
#[derive(Serialize, ToSchema)]
#[schema(as = Span, examples(json!({"span": "restore", "start_ms": 1.2, "took_ms": 48.7})))]
struct SpanView {
    /// What was done.
    span: &'static str,
    /// When it began, in ms from the beginning of the operation.
    start_ms: f64,
    /// How long it took, in ms.
    took_ms: f64,
}

impl From<&Span> for SpanView {
    fn from(span: &Span) -> Self {
        let ms = |duration: Duration| duration.as_micros() as f64 / 1e3;
        Self { span: span.name, start_ms: ms(span.start), took_ms: ms(span.took) }
    }
}
