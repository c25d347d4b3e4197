//! Events as the API shows them, and the messages of a stream.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::query::cursor;
use crate::actors::control::EventPage;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::entity::events::{Event, EventId, EventKind};

/// An event.
#[derive(Serialize, ToSchema)]
#[schema(as = Event, examples(json!({
    "id": "1041",
    "at": "2026-11-25T22:46:45.120394Z",
    "type": "sandbox.state",
    "sandbox_id": "k3v9x1p0qzt7m2c8rw5b",
    "state": "paused",
    "previous": "pausing",
})))]
pub struct EventView {
    /// Where to go on: `after` this one.
    id: String,
    /// When it happened.
    at: DateTime<Utc>,
    /// What kind of thing has happened.
    #[serde(rename = "type")]
    #[schema(value_type = EventKind)]
    kind: &'static str,
    /// Which sandbox it is about, or which one a snapshot is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<SandboxId>,
    /// Which snapshot it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<TemplateName>,
    /// The sandbox's state from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<SandboxState>,
    /// Its state before; absent in its first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<SandboxState>,
    /// Why, where that needs to be said.
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

/// A page of events.
#[derive(Serialize, ToSchema)]
#[schema(as = EventList)]
pub struct ListView {
    /// In the order that was asked for.
    events: Vec<EventView>,
    /// Where the next page begins; absent on the last one.
    #[schema(example = "YmVmb3JlLjEwNDE")]
    next_cursor: Option<String>,
    /// Whether some that were asked for may be missing, because they are not kept any more.
    #[schema(example = false)]
    lost: bool,
}

/// What a stream says besides events.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = EventNotice, examples(json!({"type": "start", "after": "1041"})))]
pub enum Notice {
    /// First of all: what comes after this event follows.
    Start {
        /// Id of the event; 0 if there was none yet.
        after: String,
    },
    /// Some of what would come here may be missing, because it is not kept any more.
    Lost,
}

/// What a stream says.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = EventMessage)]
pub enum Message {
    /// About the stream itself.
    Notice(Notice),
    /// Something has happened.
    Event(EventView),
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
    text(&Message::Event(event.into()))
}

/// Says where a stream begins.
pub fn start(after: EventId) -> String {
    text(&Message::Notice(Notice::Start { after: after.to_string() }))
}

/// Says that something may be missing.
pub fn lost() -> String {
    text(&Message::Notice(Notice::Lost))
}

fn text(message: &Message) -> String {
    serde_json::to_string(message).expect("a message has only string keys")
}
