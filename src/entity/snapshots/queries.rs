//! Every statement on `snapshots`.

use std::num::NonZeroU32;

use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ColumnTrait, EntityTrait, Iterable, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};

use super::row::{Column, Entity, Model};
use super::{Page, Snapshot};
use crate::domain::name::TemplateName;
use crate::entity::cursor::{self, Cursor};
use crate::entity::database::Database;
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

    /// Adds a snapshot or, when its name is known, replaces all of it, whichever host has it. Of
    /// several at one time one stays, whole.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`]; [`StoreError::Query`], also when the host is not in `hosts`.
    pub async fn put(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let all_but_name = Column::iter().filter(|column| !matches!(column, Column::Name));
        let upsert = Entity::insert(Model::from(snapshot).into_insert())
            .on_conflict(OnConflict::column(Column::Name).update_columns(all_but_name).to_owned())
            .build(self.database.backend());
        self.database.write("put a snapshot", upsert).await.map(drop)
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
    pub async fn remove(&self, name: &TemplateName, build: &str) -> Result<bool, StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::Name.eq(name.as_str()))
            .filter(Column::Build.eq(build))
            .build(self.database.backend());
        Ok(self.database.write("remove a snapshot", delete).await? == 1)
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
    ) -> Result<Vec<TemplateName>, StoreError> {
        let backend = self.database.backend();
        let delete = Entity::delete_many().filter(Column::HostId.eq(host_id)).build(backend);
        // One statement a row: how many rows each one wrote tells which name was taken.
        let inserts = snapshots.iter().map(|snapshot| {
            let model = Model { host_id: host_id.to_owned(), ..Model::from(snapshot) };
            Entity::insert(model.into_insert())
                .on_conflict(OnConflict::column(Column::Name).do_nothing().to_owned())
                .build(backend)
        });
        let statements: Vec<_> = std::iter::once(delete).chain(inserts).collect();
        let written = self.database.write_all("replace a host's snapshots", &statements).await?;
        let taken = snapshots.iter().zip(&written[1..]).filter(|(_, written)| **written == 0);
        Ok(taken.map(|(snapshot, _)| snapshot.name.clone()).collect())
    }
}
