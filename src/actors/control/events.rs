//! What happened: listed, and followed while it happens.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::{ControlError, ControlPlane};
use crate::entity::Database;
use crate::entity::events::{EventFilter, EventId, Limit, Listed, News, Page};

/// Events that are read for a follower at once.
const AT_ONCE: Limit = Limit::new(100).expect("not zero");

/// A follower looks at most this often: many events at a time are read together.
const BREATH: Duration = Duration::from_millis(25);

/// What another process writes to the same database is found this late at most.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// One page of events.
#[derive(Debug)]
pub struct EventPage {
    /// The events, and where the next page begins.
    pub listed: Listed,
    /// Whether some of those that were asked for may be missing, because they are not kept any more.
    pub lost: bool,
}

/// Gives what happens after some event, in order, each once. Reads it from the database at the pace
/// of whoever follows, so that a slow one holds up nobody and fills no memory.
pub struct EventFeed {
    database: Database,
    filter: EventFilter,
    after: EventId,
    news: watch::Receiver<()>,
    last_look: Option<Instant>,
}

impl EventFeed {
    /// What was given, or was not wanted, goes up to this event.
    pub fn after(&self) -> EventId {
        self.after
    }

    /// Waits for events. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`]; it may be asked again.
    pub async fn next(&mut self) -> Result<News, ControlError> {
        loop {
            if let Some(last_look) = self.last_look {
                sleep_until(last_look + BREATH).await;
            }
            // Before the look: what comes after it wakes us again.
            self.news.mark_unchanged();
            let news = self.database.events().after(&self.filter, self.after, AT_ONCE).await?;
            self.last_look = Some(Instant::now());
            self.after = news.seen;
            if !news.events.is_empty() || news.lost {
                return Ok(news);
            }
            tokio::select! {
                // Its sender is in the database, which this holds.
                _ = self.news.changed() => {}
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

impl ControlPlane {
    /// One page of what happened.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoEvent`] if it begins after an event that has not happened yet.
    pub async fn events(
        &self,
        filter: &EventFilter,
        page: Page,
        limit: Limit,
    ) -> Result<EventPage, ControlError> {
        let events = self.database.events();
        match page {
            Page::Newest | Page::Before(_) => {
                Ok(EventPage { listed: events.list(filter, page, limit).await?, lost: false })
            }
            Page::After(id) => {
                self.has_happened(id).await?;
                let listed = events.list(filter, page, limit).await?;
                // After the list: what is deleted meanwhile is not missed without a word.
                Ok(EventPage { listed, lost: events.has_lost(id).await? })
            }
        }
    }

    /// Follows what happens after an event, or from now on.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoEvent`] if that event has not happened yet.
    pub async fn follow_events(
        &self,
        filter: EventFilter,
        after: Option<EventId>,
    ) -> Result<EventFeed, ControlError> {
        let news = self.database.news();
        let after = match after {
            Some(after) => {
                self.has_happened(after).await?;
                after
            }
            None => self.database.events().newest().await?,
        };
        Ok(EventFeed { database: self.database.clone(), filter, after, news, last_look: None })
    }

    /// An id that was never given out is of another database: nothing would be found after it for
    /// long, and then something else.
    async fn has_happened(&self, id: EventId) -> Result<(), ControlError> {
        let newest = self.database.events().newest().await?;
        if id > newest { Err(ControlError::NoEvent { id, newest }) } else { Ok(()) }
    }
}
