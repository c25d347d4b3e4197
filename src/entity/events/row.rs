//! A row of `events` as the database library sees it.

use sea_orm::entity::prelude::*;

use super::{Event, EventId};
use crate::entity::columns::Row;
use crate::entity::error::StoreError;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "events")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub at: DateTimeUtc,
    #[sea_orm(column_name = "type")]
    pub kind: String,
    pub sandbox_id: Option<String>,
    pub snapshot: Option<String>,
    pub state: Option<String>,
    pub previous: Option<String>,
    pub reason: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl TryFrom<Model> for Event {
    type Error = StoreError;

    fn try_from(model: Model) -> Result<Self, StoreError> {
        let id = model.id.to_string();
        let row = Row { table: "events", id: &id };
        let state =
            |column, text: Option<String>| text.map(|text| row.parse(column, &text)).transpose();
        Ok(Self {
            id: EventId(model.id),
            at: model.at,
            kind: row.parse("type", &model.kind)?,
            sandbox_id: model.sandbox_id.map(|id| row.parse("sandbox_id", &id)).transpose()?,
            snapshot: model.snapshot.map(|name| row.parse("snapshot", &name)).transpose()?,
            state: state("state", model.state)?,
            previous: state("previous", model.previous)?,
            reason: model.reason,
        })
    }
}
