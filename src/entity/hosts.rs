//! The table `hosts`: the machines that run sandboxes.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Query, SelectStatement};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QueryTrait};

use super::columns::{Row, micros};
use super::database::Database;
use super::disk_reserve::Room;
use super::error::StoreError;
use super::sandboxes;
use crate::domain::shape::Shape;
use crate::domain::status::HostEpoch;
use row::{Column, Entity, Model};

/// Whether a host takes sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostState {
    /// It runs sandboxes and takes new ones.
    Ready,
    /// It runs sandboxes and takes no new ones.
    Draining,
    /// It has not been heard of for too long.
    Lost,
}

/// A machine that runs sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its id, which it keeps.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Whether it takes sandboxes.
    pub state: HostState,
    /// The hypervisor it uses.
    pub hypervisor: String,
    /// vCPUs and memory it has for sandboxes.
    pub capacity: Shape,
    /// Version of Nestbox that it runs.
    pub version: String,
    /// When it was last heard of.
    pub last_heartbeat_at: Option<DateTime<Utc>>,
    /// When it joined.
    pub created_at: DateTime<Utc>,
}

/// What came of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heartbeat {
    /// It was noted.
    Noted,
    /// A later one was noted before; nothing was written.
    Late,
}

/// The hosts in a database.
#[derive(Clone, Copy)]
pub struct Hosts<'a> {
    database: &'a Database,
}

impl<'a> Hosts<'a> {
    pub(super) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    /// Adds a host or, when its id is known, takes over what is new about it. `created_at` stays. Gives
    /// the epoch that its daemon speaks with from now on, and no earlier run of it any more.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn register(&self, host: &Host) -> Result<HostEpoch, StoreError> {
        let model = Model {
            id: host.id.clone(),
            name: host.name.clone(),
            state: host.state.as_str().to_owned(),
            hypervisor: host.hypervisor.clone(),
            vcpus: host.capacity.vcpus.into(),
            memory_mib: host.capacity.memory_mib.into(),
            version: host.version.clone(),
            last_heartbeat_at: host.last_heartbeat_at.map(micros),
            created_at: micros(host.created_at),
            epoch: 1,
        };
        let upsert = Entity::insert(model.into_insert())
            .on_conflict(
                OnConflict::column(Column::Id)
                    .update_columns([
                        Column::Name,
                        Column::State,
                        Column::Hypervisor,
                        Column::Vcpus,
                        Column::MemoryMib,
                        Column::Version,
                        Column::LastHeartbeatAt,
                    ])
                    .value(Column::Epoch, Expr::col((Entity, Column::Epoch)).add(1))
                    .to_owned(),
            )
            .build(self.database.backend());
        self.database.write(Room::Spare, "register a host", upsert).await?;
        let find = || Entity::find_by_id(host.id.as_str()).one(self.database.readers());
        let found = self.database.retries().run("find a host", find).await?;
        Ok(HostEpoch(found.map_or(0, |found| found.epoch)))
    }

    /// Notes that a host was heard of at `at`; never goes back in time. A host that is not there
    /// is `Late` too.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`].
    pub async fn heartbeat(&self, id: &str, at: DateTime<Utc>) -> Result<Heartbeat, StoreError> {
        let at = micros(at);
        let update = Entity::update_many()
            .col_expr(Column::LastHeartbeatAt, Expr::value(at))
            .filter(Column::Id.eq(id))
            .filter(Column::LastHeartbeatAt.is_null().or(Column::LastHeartbeatAt.lt(at)))
            .build(self.database.backend());
        let updated = self.database.write(Room::Free, "note a host's heartbeat", update).await?;
        Ok(if updated == 0 { Heartbeat::Late } else { Heartbeat::Noted })
    }

    /// Lists all hosts, oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Query`], [`StoreError::CorruptRow`].
    pub async fn list(&self) -> Result<Vec<Host>, StoreError> {
        let select = Entity::find().order_by_asc(Column::CreatedAt).order_by_asc(Column::Id);
        let models = self
            .database
            .retries()
            .run("list hosts", || select.clone().all(self.database.readers()))
            .await?;
        models.into_iter().map(Host::try_from).collect()
    }
}

/// The epoch of the host that a row of `sandboxes` names, as a part of a statement about such rows.
pub(super) fn epoch_of_row() -> SelectStatement {
    let mut select = Query::select();
    select.column(Column::Epoch).from(Entity).and_where(
        Expr::col((Entity, Column::Id)).equals((sandboxes::Entity, sandboxes::Column::HostId)),
    );
    select
}

impl HostState {
    const ALL: [HostState; 3] = [Self::Ready, Self::Draining, Self::Lost];

    /// The state as it is written in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }
}

/// The text names no state of a host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a state of a host")]
pub struct InvalidHostState;

impl FromStr for HostState {
    type Err = InvalidHostState;

    fn from_str(text: &str) -> Result<Self, InvalidHostState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(InvalidHostState)
    }
}

impl TryFrom<Model> for Host {
    type Error = StoreError;

    fn try_from(model: Model) -> Result<Self, StoreError> {
        let row = Row { table: "hosts", id: &model.id };
        Ok(Self {
            state: row.parse("state", &model.state)?,
            capacity: Shape {
                vcpus: row.unsigned("vcpus", model.vcpus)?,
                memory_mib: row.unsigned("memory_mib", model.memory_mib)?,
            },
            id: model.id,
            name: model.name,
            hypervisor: model.hypervisor,
            version: model.version,
            last_heartbeat_at: model.last_heartbeat_at,
            created_at: model.created_at,
        })
    }
}

/// A row as the database library sees it.
mod row {
    use sea_orm::entity::prelude::*;
    use sea_orm::{IntoActiveModel, Set};

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "hosts")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub name: String,
        pub state: String,
        pub hypervisor: String,
        pub vcpus: i64,
        pub memory_mib: i64,
        pub version: String,
        pub last_heartbeat_at: Option<DateTimeUtc>,
        pub created_at: DateTimeUtc,
        pub epoch: i64,
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
