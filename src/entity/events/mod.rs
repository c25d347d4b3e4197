//! The table `events`: what happened to sandboxes and snapshots, in order.
//!
//! An event is written in the transaction that makes happen what it tells (see [`record`]), so that
//! there is never one without the other, whatever crashes when. Readers go by the event's id: ids
//! grow, none is given out twice, and an event becomes visible only after all with smaller ids. So
//! whoever has read up to an id has missed nothing before it, unless retention took it: [`Events`]
//! says so.

mod queries;
mod record;
mod row;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;

pub use queries::Events;
pub(super) use record::Recording;

/// An event's place in the order of all events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub(super) i64);

/// The text is no event's id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not the id of an event")]
pub struct InvalidEventId;

impl EventId {
    /// The place before all events.
    pub const BEGINNING: Self = Self(0);
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        // Only what is written by `Display`: no sign, no zeros before.
        let id: i64 = text.parse().map_err(|_| InvalidEventId)?;
        if id >= 0 && id.to_string() == text { Ok(Self(id)) } else { Err(InvalidEventId) }
    }
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A sandbox came to another state, or to its first one.
    SandboxState,
    /// A snapshot was taken; another one of its name may have been replaced, which is an event too.
    SnapshotCreated,
    /// A snapshot is gone.
    SnapshotDeleted,
}

/// The text names no kind of event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no type of event is called {0:?}")]
pub struct UnknownKind(pub String);

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::SandboxState, Self::SnapshotCreated, Self::SnapshotDeleted];

    /// The kind's name on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SandboxState => "sandbox.state",
            Self::SnapshotCreated => "snapshot.created",
            Self::SnapshotDeleted => "snapshot.deleted",
        }
    }
}

impl FromStr for EventKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order of all events.
    pub id: EventId,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What kind of thing.
    pub kind: EventKind,
    /// The sandbox it happened to, or that the snapshot was taken of.
    pub sandbox_id: Option<SandboxId>,
    /// The snapshot it happened to.
    pub snapshot: Option<TemplateName>,
    /// The state the sandbox came to.
    pub state: Option<SandboxState>,
    /// The state it was in before; none for its first.
    pub previous: Option<SandboxState>,
    /// Why, for a person.
    pub reason: Option<String>,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Those that have to do with this sandbox.
    pub sandbox_id: Option<SandboxId>,
    /// Those of this kind.
    pub kind: Option<EventKind>,
}

/// Where a page of events begins, and which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The newest first, from the newest on.
    Newest,
    /// The newest first, of those before this one.
    Before(EventId),
    /// The oldest first, of those after this one.
    After(EventId),
}

/// Some events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The events, in the order that the page asked for.
    pub events: Vec<Event>,
    /// Where the next page begins, if there is one now.
    pub next: Option<Page>,
}

/// What came after some event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// The events, the oldest first.
    pub events: Vec<Event>,
    /// All up to this one have been looked at, those included that were not wanted.
    pub seen: EventId,
    /// Whether some that came before these may be missing, because they are not kept any more.
    pub lost: bool,
}

/// How many events there may be at a time.
pub type Limit = NonZeroU32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_is_one() {
        for id in [0, 1, 90, i64::MAX] {
            assert_eq!(EventId(id).to_string().parse(), Ok(EventId(id)));
        }
        for text in ["", "-1", "+1", "01", " 1", "1 ", "1.0", "a", "9223372036854775808", "1\0"] {
            assert_eq!(text.parse::<EventId>(), Err(InvalidEventId), "{text:?}");
        }
    }

    #[test]
    fn a_kind_reads_back() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("sandbox".parse::<EventKind>(), Err(UnknownKind("sandbox".to_owned())));
    }
}
