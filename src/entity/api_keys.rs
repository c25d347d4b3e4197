//! The table `api_keys`: who may use the API. Only a digest of a key is kept, never the key.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QueryTrait};

use super::columns::{micros, no_nul};
use super::database::Database;
use super::disk_reserve::Room;
use super::error::StoreError;
use row::{Column, Entity, Model};

/// A key's `last_used_at` is written at most once in this time, not with every request.
const LAST_USE_RESOLUTION: TimeDelta = TimeDelta::seconds(60);

/// An API key without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id, which is no secret.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// Digest of the key, by which a request's key is looked up.
    pub digest: String,
    /// The first characters of the key, by which people tell keys apart.
    pub prefix: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// What came of deleting a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was there and is not any more.
    Removed,
    /// There was none.
    NotFound,
    /// It is the last one, and stays: nobody could get in any more.
    Last,
}

/// The API keys in a database.
#[derive(Clone, Copy)]
pub struct ApiKeys<'a> {
    database: &'a Database,
}

/// When each key's last use was last written by this process.
#[derive(Default)]
pub(super) struct LastUses(Mutex<HashMap<String, DateTime<Utc>>>);

impl<'a> ApiKeys<'a> {
    pub(super) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Adds a key.
    ///
    /// # Errors
    ///
    /// [`StoreError::NulCharacter`]; [`StoreError::Busy`], [`StoreError::Query`], also when the id
    /// or the digest was used before.
    pub async fn insert(&self, key: &ApiKey) -> Result<(), StoreError> {
        no_nul("name", &key.name)?;
        let model = Model {
            id: key.id.clone(),
            name: key.name.clone(),
            digest: key.digest.clone(),
            prefix: key.prefix.clone(),
            created_at: micros(key.created_at),
            last_used_at: key.last_used_at.map(micros),
        };
        let insert = Entity::insert(model.into_insert()).build(self.database.backend());
        self.database.write(Room::Free, "insert an api key", insert).await.map(drop)
    }

    /// Finds the key with this digest.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn find_by_digest(&self, digest: &str) -> Result<Option<ApiKey>, StoreError> {
        let select = Entity::find().filter(Column::Digest.eq(digest));
        let found = self
            .database
            .retries()
            .run("find an api key", || select.clone().one(self.database.readers()))
            .await?;
        Ok(found.map(ApiKey::from))
    }

    /// Lists all keys, oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn list(&self) -> Result<Vec<ApiKey>, StoreError> {
        let select = Entity::find().order_by_asc(Column::CreatedAt).order_by_asc(Column::Id);
        let found = self
            .database
            .retries()
            .run("list api keys", || select.clone().all(self.database.readers()))
            .await?;
        Ok(found.into_iter().map(ApiKey::from).collect())
    }

    /// Deletes a key unless it is the last one; the next request with it is refused. Of two deleted at
    /// one time one stays, if there are no others.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn delete(&self, id: &str) -> Result<Removal, StoreError> {
        if no_nul("id", id).is_err() {
            return Ok(Removal::NotFound);
        }
        let mut others = Query::select();
        others.expr(Expr::value(1)).from(Entity).and_where(Column::Id.ne(id));
        let delete =
            Entity::delete_by_id(id).filter(Expr::exists(others)).build(self.database.backend());
        // One transaction after the other, also on PostgreSQL: each sees what the one before has left.
        let deleted =
            self.database.write_in_turn(Room::Spare, "delete an api key", [delete]).await?;
        if deleted[0] == 1 {
            self.database.last_uses().forget(id);
            return Ok(Removal::Removed);
        }
        let find = || Entity::find_by_id(id).one(self.database.readers());
        let found = self.database.retries().run("find an api key", find).await?;
        Ok(if found.is_some() { Removal::Last } else { Removal::NotFound })
    }

    /// Counts the keys.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn count(&self) -> Result<u64, StoreError> {
        let count = || Entity::find().count(self.database.readers());
        self.database.retries().run("count api keys", count).await
    }

    /// Notes that a key was used at `at`. Cheap with every request: it is written only when a
    /// minute has passed since this process wrote it last.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn touch_last_used(&self, id: &str, at: DateTime<Utc>) -> Result<(), StoreError> {
        if !self.database.last_uses().is_due(id, at) {
            return Ok(());
        }
        let at = micros(at);
        let update = Entity::update_many()
            .col_expr(Column::LastUsedAt, Expr::value(at))
            .filter(Column::Id.eq(id))
            .filter(Column::LastUsedAt.is_null().or(Column::LastUsedAt.lt(at)))
            .build(self.database.backend());
        self.database.write(Room::Free, "note an api key's use", update).await.map(drop)
    }
}

impl LastUses {
    /// Whether a use at `at` shall be written; if so, it counts as written.
    fn is_due(&self, id: &str, at: DateTime<Utc>) -> bool {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match written.get_mut(id) {
            Some(last) if at - *last < LAST_USE_RESOLUTION => false,
            Some(last) => {
                *last = at;
                true
            }
            None => {
                written.insert(id.to_owned(), at);
                true
            }
        }
    }

    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl From<Model> for ApiKey {
    fn from(model: Model) -> Self {
        Self {
            id: model.id,
            name: model.name,
            digest: model.digest,
            prefix: model.prefix,
            created_at: model.created_at,
            last_used_at: model.last_used_at,
        }
    }
}

/// A row as the database library sees it.
mod row {
    use sea_orm::entity::prelude::*;
    use sea_orm::{IntoActiveModel, Set};

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "api_keys")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub name: String,
        pub digest: String,
        pub prefix: String,
        pub created_at: DateTimeUtc,
        pub last_used_at: Option<DateTimeUtc>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}

    impl Model {
        pub fn into_insert(self) -> ActiveModel {
            let id = Set(self.id.clone());
            ActiveModel { id, ..self.into_active_model().reset_all() }
        }
    }
}
