//! Every statement on `events`, but for those that [`super::record`] gives to other tables.

use sea_orm::sea_query::{Expr, Func};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};

use super::row::{Column, Entity};
use super::{Event, EventFilter, EventId, Limit, Listed, News, Page};
use crate::entity::cursor::rows_for;
use crate::entity::database::Database;
use crate::entity::disk_reserve::Room;
use crate::entity::error::StoreError;

/// Events that one statement deletes at most, so that it holds up no other for long.
pub const PRUNED_AT_ONCE: i64 = 10_000;

/// The events in a database.
#[derive(Clone, Copy)]
pub struct Events<'a> {
    database: &'a Database,
}

/// Which end of the ids.
#[derive(Clone, Copy)]
enum End {
    Oldest,
    Newest,
}

impl<'a> Events<'a> {
    pub(in crate::entity) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Lists events. Following [`Listed::next`] shows each event once, whatever happens meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn list(
        &self,
        filter: &EventFilter,
        page: Page,
        limit: Limit,
    ) -> Result<Listed, StoreError> {
        let select = Entity::find().filter(condition(filter)).limit(rows_for(limit));
        let select = match page {
            Page::Newest => select.order_by_desc(Column::Id),
            Page::Before(id) => select.filter(Column::Id.lt(id.0)).order_by_desc(Column::Id),
            Page::After(id) => select.filter(Column::Id.gt(id.0)).order_by_asc(Column::Id),
        };
        let models = self
            .database
            .retries()
            .run("list events", || select.clone().all(self.database.readers()))
            .await?;
        let more = models.len() as u64 >= rows_for(limit);
        let shown = usize::try_from(limit.get()).unwrap_or(usize::MAX);
        let events = models.into_iter().take(shown).map(Event::try_from);
        let events: Vec<Event> = events.collect::<Result<_, _>>()?;
        let next = events.last().filter(|_| more).map(|last| match page {
            Page::Newest | Page::Before(_) => Page::Before(last.id),
            Page::After(_) => Page::After(last.id),
        });
        Ok(Listed { events, next })
    }

    /// What came after an event, at most `limit` of it. Beginning anew at [`News::seen`] each time
    /// misses nothing and gives nothing twice.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn after(
        &self,
        filter: &EventFilter,
        after: EventId,
        limit: Limit,
    ) -> Result<News, StoreError> {
        // First: what comes later is looked at the next time.
        let newest = self.newest().await?;
        let Listed { events, next } = self.list(filter, Page::After(after), limit).await?;
        let last = events.last().map_or(after, |event| event.id);
        let seen = match next {
            Some(_) => last,
            None => last.max(newest),
        };
        // Last: what is deleted meanwhile is not missed without a word.
        let lost = self.has_lost(after).await?;
        Ok(News { events, seen, lost })
    }

    /// The newest event, or the place before all.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn newest(&self) -> Result<EventId, StoreError> {
        Ok(self.end(End::Newest).await?.unwrap_or(EventId::BEGINNING))
    }

    /// Whether something that came after this event may not be kept any more.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn has_lost(&self, after: EventId) -> Result<bool, StoreError> {
        let oldest = self.end(End::Oldest).await?;
        Ok(oldest.is_some_and(|oldest| after.0 < oldest.0 - 1))
    }

    async fn end(&self, end: End) -> Result<Option<EventId>, StoreError> {
        let column = Expr::col(Column::Id);
        // One at a time: for both together SQLite reads all of the table.
        let id = match end {
            End::Oldest => Func::min(column),
            End::Newest => Func::max(column),
        };
        let select = || {
            let select = Entity::find().select_only().expr(id.clone());
            select.into_tuple::<Option<i64>>().one(self.database.readers())
        };
        let found = self.database.retries().run("find the end of the events", select).await?;
        Ok(found.flatten().map(EventId))
    }

    /// Deletes the oldest events beyond the newest `keep`, [`PRUNED_AT_ONCE`] at most; gives their
    /// number. The newest one stays in any case, so that it is known which was the last.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn prune(&self, keep: u32) -> Result<u64, StoreError> {
        let (oldest, newest) = (self.end(End::Oldest).await?, self.end(End::Newest).await?);
        let (Some(oldest), Some(newest)) = (oldest, newest) else { return Ok(0) };
        let beyond = newest.0 - i64::from(Ord::max(keep, 1));
        let last = Ord::min(beyond, oldest.0 + PRUNED_AT_ONCE - 1);
        if last < oldest.0 {
            return Ok(0);
        }
        let delete =
            Entity::delete_many().filter(Column::Id.lte(last)).build(self.database.backend());
        self.database.write(Room::Spare, "delete old events", delete).await
    }
}

fn condition(filter: &EventFilter) -> Condition {
    let mut condition = Condition::all();
    if let Some(id) = &filter.sandbox_id {
        condition = condition.add(Column::SandboxId.eq(id.as_str()));
    }
    if let Some(kind) = filter.kind {
        condition = condition.add(Column::Kind.eq(kind.as_str()));
    }
    condition
}
