//! Events as the API shows them, and the messages of a stream.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::query::cursor;
use crate::actors::control_plane::EventPage;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::SandboxState;
use crate::entity::events::{Event, EventId};

/// An event.
#[derive(Serialize)]
struct EventView {
    /// Where to go on: `after` this one.
    id: String,
    at: DateTime<Utc>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<SandboxId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<TemplateName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<SandboxState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<SandboxState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        let Event { id, at, kind, sandbox_id, snapshot, state, previous, reason } = event;
        let (id, kind) = (id.to_string(), kind.as_str());
        Self { id, at, kind, sandbox_id, snapshot, state, previous, reason }
    }
}

#[derive(Serialize)]
struct ListView {
    events: Vec<EventView>,
    next_cursor: Option<String>,
    /// Whether some that were asked for may be missing, because they are not kept any more.
    lost: bool,
}

/// What a stream says besides events.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Notice {
    /// First of all: what comes after this event follows.
    Start { after: String },
    /// Some of what would come here may be missing, because it is not kept any more.
    Lost,
}

/// One page.
pub fn list(page: EventPage) -> impl Serialize {
    let EventPage { listed, lost } = page;
    ListView {
        events: listed.events.into_iter().map(EventView::from).collect(),
        next_cursor: listed.next.and_then(cursor),
        lost,
    }
}

/// Says that something happened.
pub fn event(event: Event) -> String {
    text(&EventView::from(event))
}

/// Says where a stream begins.
pub fn start(after: EventId) -> String {
    text(&Notice::Start { after: after.to_string() })
}

/// Says that something may be missing.
pub fn lost() -> String {
    text(&Notice::Lost)
}

fn text(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("a message has only string keys")
}
