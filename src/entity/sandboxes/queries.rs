//! Every statement on `sandboxes`.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, SelectStatement, SimpleExpr};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    QueryTrait,
};

use super::row::{Column, Entity, Model, policy};
use super::{Change, Filter, Idempotency, Insert, NewSandbox, Page, Publish, Sandbox, Window};
use crate::domain::egress::PolicyRevision;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::status::HostEpoch;
use crate::entity::columns::{micros, no_nul};
use crate::entity::cursor::{self, Cursor};
use crate::entity::database::Database;
use crate::entity::disk_reserve::Room;
use crate::entity::error::StoreError;
use crate::entity::hosts;

/// Ids in one statement at most: far below what either database takes as parameters.
const CHUNK: usize = 500;

/// The sandboxes in a database.
#[derive(Clone, Copy)]
pub struct Sandboxes<'a> {
    database: &'a Database,
}

impl<'a> Sandboxes<'a> {
    pub(in crate::entity) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Adds a sandbox in state `pending` and generation 0, unless its API key has used its
    /// idempotency key before. Of any number of such inserts at one time, one adds a sandbox.
    ///
    /// # Errors
    ///
    /// [`StoreError::NulCharacter`]; [`StoreError::Busy`], [`StoreError::Query`], also when the
    /// host is not in `hosts` or the id was used before.
    pub async fn insert(&self, new: &NewSandbox) -> Result<Insert, StoreError> {
        let model = Model::try_from(new)?;
        let insert = Entity::insert(model.clone().into_insert())
            .on_conflict(
                OnConflict::columns([Column::ApiKeyId, Column::IdempotencyKey])
                    .do_nothing()
                    .to_owned(),
            )
            .build(self.database.backend());
        let recording = self.database.recording(model.created_at);
        // Finds no row if none was inserted: the id is new.
        let event = recording.beginning(SandboxState::Pending, is(&new.id));
        loop {
            let statements = [insert.clone(), event.clone()];
            if self.database.write_events(Room::Free, "insert a sandbox", statements).await?[0] == 1
            {
                return Ok(Insert::Created(Box::new(model.try_into()?)));
            }
            // Without a name for the request there is no row in our way.
            let Some(idempotency) = &new.idempotency else { continue };
            // None when that row was deleted meanwhile: then there is room.
            if let Some(earlier) = self.find_repeated(&new.api_key_id, idempotency).await? {
                return Ok(earlier);
            }
        }
    }

    /// What came of an earlier request of the same name: [`Insert::AlreadyExists`] or
    /// [`Insert::Conflict`]; none if there was none.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn find_repeated(
        &self,
        api_key_id: &str,
        idempotency: &Idempotency,
    ) -> Result<Option<Insert>, StoreError> {
        // No row has such a name.
        if no_nul("idempotency_key", &idempotency.key).is_err() {
            return Ok(None);
        }
        let select = Entity::find()
            .filter(Column::ApiKeyId.eq(api_key_id))
            .filter(Column::IdempotencyKey.eq(idempotency.key.as_str()));
        let find = || select.clone().one(self.database.readers());
        let found = self.database.retries().run("find a sandbox", find).await?;
        let Some(earlier) = found.map(Sandbox::try_from).transpose()? else { return Ok(None) };
        Ok(Some(match earlier.idempotency.as_ref() == Some(idempotency) {
            true => Insert::AlreadyExists(Box::new(earlier)),
            false => Insert::Conflict(earlier.id),
        }))
    }

    /// Finds one sandbox.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn find(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let select = || Entity::find_by_id(id.as_str()).one(self.database.readers());
        let found = self.database.retries().run("find a sandbox", select).await?;
        found.map(Sandbox::try_from).transpose()
    }

    /// Lists sandboxes, newest first. Following [`Page::next`] to the end shows each sandbox that
    /// was there all the time once, whatever was added or deleted meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn list(&self, filter: &Filter, window: &Window) -> Result<Page, StoreError> {
        let Some(condition) = self.condition(filter) else {
            return Ok(Page { sandboxes: Vec::new(), next: None });
        };
        let select = Entity::find()
            .filter(condition)
            .apply_if(window.after.as_ref(), |select, cursor| {
                select.filter(cursor.rows_after(Column::CreatedAt, Column::Id))
            })
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Id)
            .limit(cursor::rows_for(window.limit));
        let models = self
            .database
            .retries()
            .run("list sandboxes", || select.clone().all(self.database.readers()))
            .await?;
        let mut sandboxes: Vec<Sandbox> =
            models.into_iter().map(Sandbox::try_from).collect::<Result<_, _>>()?;
        let next = cursor::cut(&mut sandboxes, window.limit, |last| Cursor {
            created_at: last.created_at,
            id: last.id.clone(),
        });
        Ok(Page { sandboxes, next })
    }

    /// The filter as SQL; none when it can match no row.
    fn condition(&self, filter: &Filter) -> Option<Condition> {
        let mut condition = Condition::all();
        if !filter.states.is_empty() {
            let states = filter.states.iter().map(|state| state.as_str());
            condition = condition.add(Column::State.is_in(states));
        }
        for (key, value) in &filter.metadata {
            if no_nul("metadata", key).and(no_nul("metadata", value)).is_err() {
                return None;
            }
            condition = condition.add(metadata_has(self.database.backend(), key, value));
        }
        Some(condition)
    }

    /// Writes a change if the stored generation is smaller than `generation`: of several changes
    /// published in any order, at any time, the one with the greatest generation stays. What a host
    /// says is written only if it has not been started again since it had `epoch`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn publish(
        &self,
        id: &SandboxId,
        generation: i64,
        epoch: Option<HostEpoch>,
        change: &Change,
    ) -> Result<Publish, StoreError> {
        let at = micros(change.at);
        let older = || {
            let older = Condition::all().add(Column::Generation.lt(generation));
            older.add_option(epoch.map(|epoch| subquery(hosts::epoch_of_row()).lte(epoch.0)))
        };
        let stopped_at = change.state.is_final().then_some(at);
        let update = Entity::update_many()
            .col_expr(Column::State, Expr::value(change.state.as_str()))
            .col_expr(Column::Reason, Expr::value(change.reason.as_deref().map(without_nul)))
            .col_expr(Column::Slot, Expr::value(change.slot.map(i64::from)))
            .col_expr(Column::Generation, Expr::value(generation))
            .col_expr(Column::UpdatedAt, Expr::value(at))
            .col_expr(Column::StoppedAt, Expr::value(stopped_at))
            .filter(Column::Id.eq(id.as_str()))
            .filter(older())
            .build(self.database.backend());
        let recording = self.database.recording(change.at);
        let reason = change.reason.as_deref().map(without_nul);
        let which = is(id).add(older());
        let event = recording.change(change.state, reason.as_deref(), which);
        let written =
            self.database.write_events(Room::Spare, "publish a sandbox's state", [event, update]);
        if written.await?[1] == 1 {
            return Ok(Publish::Written);
        }
        let Some(found) = self.find(id).await? else { return Ok(Publish::NotFound) };
        // It was written before, and the answer was lost; or its end is known, and stays as it is.
        let same = found.generation == generation && found.state == change.state;
        let ended = found.state.is_final() && change.state.is_final();
        Ok(match found.generation < generation {
            _ if same => Publish::Written,
            false if ended => Publish::Written,
            true => Publish::Fenced,
            false => Publish::Stale(found.generation),
        })
    }

    /// Notes activity in a sandbox: `last_active_at` never goes back, and `expires_at` follows the
    /// latest activity. A sandbox that is not there is left so.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn touch(
        &self,
        id: &SandboxId,
        last_active_at: DateTime<Utc>,
        expires_at: Option<DateTime<Utc>>,
    ) -> Result<(), StoreError> {
        let last_active_at = micros(last_active_at);
        let update = Entity::update_many()
            .col_expr(Column::LastActiveAt, Expr::value(last_active_at))
            .col_expr(Column::ExpiresAt, Expr::value(expires_at.map(micros)))
            .filter(Column::Id.eq(id.as_str()))
            .filter(Column::LastActiveAt.lte(last_active_at))
            .build(self.database.backend());
        self.database.write(Room::Free, "note a sandbox's activity", update).await.map(drop)
    }

    /// Marks every sandbox of a host as stopped that is not in `keep`, for the start of a host that
    /// has just found out what runs on it. Gives the ids of those it marked. Their generation goes
    /// up by one. Sandboxes in `error` keep the better reason they have.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`]; some may be marked
    /// then, and a second call marks the rest.
    pub async fn stop_all_except(
        &self,
        host_id: &str,
        keep: &HashSet<SandboxId>,
        reason: &str,
        at: DateTime<Utc>,
    ) -> Result<Vec<SandboxId>, StoreError> {
        let at = micros(at);
        let gone: Vec<SandboxId> =
            self.live_ids(host_id).await?.into_iter().filter(|id| !keep.contains(id)).collect();
        for chunk in gone.chunks(CHUNK) {
            let update = Entity::update_many()
                .col_expr(Column::State, Expr::value(SandboxState::Stopped.as_str()))
                .col_expr(Column::Reason, Expr::value(without_nul(reason)))
                .col_expr(Column::Slot, Expr::value(None::<i64>))
                .col_expr(Column::Generation, Expr::col(Column::Generation).add(1))
                .col_expr(Column::UpdatedAt, Expr::value(at))
                .col_expr(Column::StoppedAt, Expr::value(at))
                .filter(Column::Id.is_in(chunk.iter().map(SandboxId::as_str)))
                .filter(not_over())
                .build(self.database.backend());
            let ids = chunk.iter().map(SandboxId::as_str);
            let which = Condition::all().add(Column::Id.is_in(ids)).add(not_over());
            let reason = without_nul(reason);
            let recording = self.database.recording(at);
            let event = recording.change(SandboxState::Stopped, Some(&reason), which);
            self.database
                .write_events(Room::Spare, "mark sandboxes as stopped", [event, update])
                .await?;
        }
        Ok(gone)
    }

    async fn live_ids(&self, host_id: &str) -> Result<Vec<SandboxId>, StoreError> {
        let select = Entity::find()
            .filter(Column::HostId.eq(host_id))
            .filter(not_over())
            .order_by_asc(Column::Id);
        let models = self
            .database
            .retries()
            .run("list a host's sandboxes", || select.clone().all(self.database.readers()))
            .await?;
        models.into_iter().map(|model| Sandbox::try_from(model).map(|found| found.id)).collect()
    }

    /// Forgets a sandbox that no host has taken on: it never was. Who follows the events has heard of
    /// it, and hears why it stopped.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn discard(
        &self,
        id: &SandboxId,
        reason: &str,
        at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let pending = || is(id).add(Column::State.eq(SandboxState::Pending.as_str()));
        let delete = Entity::delete_many().filter(pending()).build(self.database.backend());
        let recording = self.database.recording(at);
        let reason = without_nul(reason);
        let event = recording.change(SandboxState::Stopped, Some(&reason), pending());
        self.database
            .write_events(Room::Spare, "discard a sandbox", [event, delete])
            .await
            .map(drop)
    }

    /// Notes what a sandbox may reach, unless a later change of that is noted. A sandbox that is not
    /// there is left so.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn set_network(
        &self,
        id: &SandboxId,
        network: &PolicyRevision,
    ) -> Result<(), StoreError> {
        let earlier = is(id).add(Column::NetworkRevision.lt(network.revision));
        self.write_network(network, earlier).await
    }

    /// Notes what a sandbox may reach, whatever is noted: for a host that has just started.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn correct_network(
        &self,
        id: &SandboxId,
        network: &PolicyRevision,
    ) -> Result<(), StoreError> {
        self.write_network(network, is(id)).await
    }

    async fn write_network(
        &self,
        network: &PolicyRevision,
        which: Condition,
    ) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::Network, Expr::value(policy(&network.policy)))
            .col_expr(Column::NetworkRevision, Expr::value(network.revision))
            .filter(which)
            .build(self.database.backend());
        self.database.write(Room::Spare, "note what a sandbox may reach", update).await.map(drop)
    }

    /// Lets a caller's name for a request be used again: what it stood for could not be made.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn free_idempotency_key(&self, id: &SandboxId) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::IdempotencyKey, Expr::value(None::<String>))
            .filter(Column::Id.eq(id.as_str()))
            .build(self.database.backend());
        self.database.write(Room::Spare, "free an idempotency key", update).await.map(drop)
    }

    /// Deletes the sandboxes that came to a final state before `before`; gives their number.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn delete_over_before(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::State.is_in(final_states()))
            .filter(Column::StoppedAt.lt(micros(before)))
            .build(self.database.backend());
        self.database.write(Room::Spare, "delete sandboxes that are long gone", delete).await
    }
}

fn subquery(select: SelectStatement) -> Expr {
    Expr::SubQuery(None, Box::new(select.into()))
}

/// The row of one sandbox.
fn is(id: &SandboxId) -> Condition {
    Condition::all().add(Column::Id.eq(id.as_str()))
}

/// Rows of sandboxes that may still hold something on their host.
fn not_over() -> SimpleExpr {
    Column::State.is_not_in(final_states())
}

fn final_states() -> impl Iterator<Item = &'static str> {
    SandboxState::ALL.into_iter().filter(|state| state.is_final()).map(SandboxState::as_str)
}

/// Rows that have the label. The key is bound as a value and never becomes a JSON path, in which
/// quotes, dots and `$` would mean something.
fn metadata_has(backend: DbBackend, key: &str, value: &str) -> SimpleExpr {
    let sql = match backend {
        DbBackend::Postgres => r#""sandboxes"."metadata" ->> $1 = $2"#,
        _ => {
            r#"EXISTS (SELECT 1 FROM json_each("sandboxes"."metadata") AS label WHERE label.key = ? AND label.value = ?)"#
        }
    };
    Expr::cust_with_values(sql, [key, value])
}

/// A reason may quote what a guest printed; PostgreSQL keeps no NUL.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
