//! A row of `snapshots` as the database library sees it.

use sea_orm::entity::prelude::*;
use sea_orm::{IntoActiveModel, Set};

use super::Snapshot;
use crate::domain::shape::Shape;
use crate::entity::columns::{Row, micros};
use crate::entity::error::StoreError;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "snapshots")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub host_id: String,
    pub build: String,
    pub sandbox_id: String,
    pub image: String,
    pub vcpus: i64,
    pub memory_mib: i64,
    pub hypervisor: String,
    pub memory_bytes: i64,
    pub disk_bytes: i64,
    pub shared_bytes: i64,
    pub memory_generations: i64,
    pub created_at: DateTimeUtc,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&Snapshot> for Model {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            name: snapshot.name.to_string(),
            host_id: snapshot.host_id.clone(),
            build: snapshot.build.clone(),
            sandbox_id: snapshot.sandbox_id.to_string(),
            image: snapshot.image.to_string(),
            vcpus: snapshot.shape.vcpus.into(),
            memory_mib: snapshot.shape.memory_mib.into(),
            hypervisor: snapshot.hypervisor.clone(),
            memory_bytes: size(snapshot.memory_bytes),
            disk_bytes: size(snapshot.disk_bytes),
            shared_bytes: size(snapshot.shared_bytes),
            memory_generations: snapshot.memory_generations.into(),
            created_at: micros(snapshot.created_at),
        }
    }
}

/// Bytes as a column. Linux counts a file's bytes in an `i64` as well, so no real size is cut.
fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Model {
    /// Every column set, for an insert.
    pub fn into_insert(self) -> ActiveModel {
        let name = Set(self.name.clone());
        ActiveModel { name, ..self.into_active_model().reset_all() }
    }
}

impl TryFrom<Model> for Snapshot {
    type Error = StoreError;

    fn try_from(model: Model) -> Result<Self, StoreError> {
        let row = Row { table: "snapshots", id: &model.name };
        Ok(Self {
            sandbox_id: row.parse("sandbox_id", &model.sandbox_id)?,
            image: row.parse("image", &model.image)?,
            shape: Shape {
                vcpus: row.unsigned("vcpus", model.vcpus)?,
                memory_mib: row.unsigned("memory_mib", model.memory_mib)?,
            },
            memory_bytes: row.unsigned("memory_bytes", model.memory_bytes)?,
            disk_bytes: row.unsigned("disk_bytes", model.disk_bytes)?,
            shared_bytes: row.unsigned("shared_bytes", model.shared_bytes)?,
            memory_generations: row.unsigned("memory_generations", model.memory_generations)?,
            name: row.parse("name", &model.name)?,
            host_id: model.host_id,
            build: model.build,
            hypervisor: model.hypervisor,
            created_at: model.created_at,
        })
    }
}
