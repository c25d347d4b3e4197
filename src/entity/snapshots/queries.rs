//! Every statement on `snapshots`.

use std::num::NonZeroU32;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    Statement,
};

use super::row::{Column, Entity, Model};
use super::{Page, Snapshot};
use crate::domain::name::TemplateName;
use crate::entity::cursor::{self, Cursor};
use crate::entity::database::Database;
use crate::entity::disk_reserve::Room;
use crate::entity::error::StoreError;

/// The named snapshots in a database.
#[derive(Clone, Copy)]
pub struct Snapshots<'a> {
    database: &'a Database,
}

impl<'a> Snapshots<'a> {
    pub(in crate::entity) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Adds a snapshot if its name has no row, or replaces all of the row of that name if it is of the
    /// build `known`; says whether the row was as it was said to be. Nothing is written if not.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`]; [`StoreError::Query`], also when the host is not in `hosts`.
    pub async fn put(&self, snapshot: &Snapshot, known: Option<&str>) -> Result<bool, StoreError> {
        let recording = self.database.recording(snapshot.created_at);
        let name = snapshot.name.as_str();
        let model = Model::from(snapshot).into_insert();
        let backend = self.database.backend();
        let statements = match known {
            None => {
                let insert = Entity::insert(model)
                    .on_conflict(OnConflict::column(Column::Name).do_nothing().to_owned());
                vec![recording.snapshot_created(snapshot, named(name)), insert.build(backend)]
            }
            Some(known) => {
                let is_known = || named(name).add(Column::Build.eq(known));
                let update = Entity::update_many().set(model).filter(is_known()).build(backend);
                match known == snapshot.build {
                    // No other files, so nothing has happened.
                    true => vec![update],
                    false => vec![
                        recording.snapshots_deleted(is_known()),
                        recording.snapshot_replaced(snapshot, is_known()),
                        update,
                    ],
                }
            }
        };
        let written = self.database.write_events(Room::Spare, "put a snapshot", statements).await?;
        Ok(written.last() == Some(&1))
    }

    /// Finds one snapshot.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn find(&self, name: &TemplateName) -> Result<Option<Snapshot>, StoreError> {
        let select = || Entity::find_by_id(name.as_str()).one(self.database.readers());
        let found = self.database.retries().run("find a snapshot", select).await?;
        found.map(Snapshot::try_from).transpose()
    }

    /// Lists at most `limit` snapshots, newest first, from where `after` says the last page ended.
    /// Following [`Page::next`] to the end shows each build that was there all the time once,
    /// whatever was put or removed meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn list(
        &self,
        limit: NonZeroU32,
        after: Option<&Cursor<TemplateName>>,
    ) -> Result<Page, StoreError> {
        let select = Entity::find()
            .apply_if(after, |select, cursor| {
                select.filter(cursor.rows_after(Column::CreatedAt, Column::Name))
            })
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Name)
            .limit(cursor::rows_for(limit));
        let models = self
            .database
            .retries()
            .run("list snapshots", || select.clone().all(self.database.readers()))
            .await?;
        let mut snapshots: Vec<Snapshot> =
            models.into_iter().map(Snapshot::try_from).collect::<Result<_, _>>()?;
        let next = cursor::cut(&mut snapshots, limit, |last| Cursor {
            created_at: last.created_at,
            id: last.name.clone(),
        });
        Ok(Page { snapshots, next })
    }

    /// Deletes a snapshot if it is still this build; says whether it was. A newer one of the same
    /// name, whose files are others, stays.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn remove(
        &self,
        name: &TemplateName,
        build: &str,
        at: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let which = || named(name.as_str()).add(Column::Build.eq(build));
        let delete = Entity::delete_many().filter(which()).build(self.database.backend());
        let event = self.database.recording(at).snapshots_deleted(which());
        Ok(self.database.write_events(Room::Spare, "remove a snapshot", [event, delete]).await?[1]
            == 1)
    }

    /// Makes the rows of a host exactly these, in one transaction, for the start of a host that has
    /// just found out what is on its disk. Each is written as being on that host; their names are
    /// distinct. A name that another host has by now stays that host's: such names are given back.
    ///
    /// What is put or removed for this host meanwhile may be lost.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`]; [`StoreError::Query`], also when the host is not in `hosts`. All rows
    /// are as they were then.
    pub async fn replace_all(
        &self,
        host_id: &str,
        snapshots: &[Snapshot],
        at: DateTime<Utc>,
    ) -> Result<Vec<TemplateName>, StoreError> {
        let backend = self.database.backend();
        let events = self.differences(host_id, snapshots, at).await?;
        let delete = Entity::delete_many().filter(Column::HostId.eq(host_id)).build(backend);
        // One statement a row: how many rows each one wrote tells which name was taken.
        let inserts = snapshots.iter().map(|snapshot| {
            let model = Model { host_id: host_id.to_owned(), ..Model::from(snapshot) };
            Entity::insert(model.into_insert())
                .on_conflict(OnConflict::column(Column::Name).do_nothing().to_owned())
                .build(backend)
        });
        let first = events.len() + 1;
        let statements = events.into_iter().chain(std::iter::once(delete)).chain(inserts);
        let written = self
            .database
            .write_events(Room::Spare, "replace a host's snapshots", statements)
            .await?;
        let taken = snapshots.iter().zip(&written[first..]).filter(|(_, written)| **written == 0);
        Ok(taken.map(|(snapshot, _)| snapshot.name.clone()).collect())
    }

    /// The events that make the rows of a host into `snapshots`: those that came or went while no
    /// daemon was there to say so, or of which one that crashed could not.
    async fn differences(
        &self,
        host_id: &str,
        snapshots: &[Snapshot],
        at: DateTime<Utc>,
    ) -> Result<Vec<Statement>, StoreError> {
        let select = Entity::find().filter(Column::HostId.eq(host_id)).order_by_asc(Column::Name);
        let rows = self
            .database
            .retries()
            .run("list a host's snapshots", || select.clone().all(self.database.readers()))
            .await?;
        let recording = self.database.recording(at);
        let is_there = |row: &Model| {
            snapshots.iter().any(|it| it.name.as_str() == row.name && it.build == row.build)
        };
        let gone = rows.iter().filter(|row| !is_there(row)).map(|row| {
            recording.snapshots_deleted(named(&row.name).add(Column::Build.eq(row.build.as_str())))
        });
        let is_known = |snapshot: &Snapshot| {
            rows.iter().any(|row| row.name == snapshot.name.as_str() && row.build == snapshot.build)
        };
        // One whose name another host has is not recorded.
        let come = snapshots.iter().filter(|snapshot| !is_known(snapshot)).map(|snapshot| {
            let others = named(snapshot.name.as_str()).add(Column::HostId.ne(host_id));
            recording.snapshot_created(snapshot, others)
        });
        Ok(gone.chain(come).collect())
    }
}

/// The row of one name.
fn named(name: &str) -> Condition {
    Condition::all().add(Column::Name.eq(name))
}
