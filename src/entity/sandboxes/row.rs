//! A row of `sandboxes` as the database library sees it.

use sea_orm::entity::prelude::*;
use sea_orm::{IntoActiveModel, Set};

use super::{Idempotency, NewSandbox, Sandbox};
use crate::domain::egress::Policy;
use crate::domain::lifecycle::SandboxState;
use crate::domain::shape::Shape;
use crate::entity::columns::{Row, json_map, micros, no_nul};
use crate::entity::error::StoreError;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "sandboxes")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub host_id: String,
    pub template: String,
    pub vcpus: i64,
    pub memory_mib: i64,
    pub timeout_sec: Option<i64>,
    #[sea_orm(column_type = "JsonBinary")]
    pub envs: Json,
    #[sea_orm(column_type = "JsonBinary")]
    pub metadata: Json,
    #[sea_orm(column_type = "JsonBinary")]
    pub public_ports: Json,
    #[sea_orm(column_type = "JsonBinary")]
    pub network: Json,
    pub network_revision: i64,
    #[sea_orm(column_type = "JsonBinary")]
    pub rates: Json,
    pub ports_token_digest: Option<String>,
    pub state: String,
    pub reason: Option<String>,
    pub generation: i64,
    pub slot: Option<i64>,
    pub hypervisor: String,
    pub api_key_id: String,
    pub idempotency_key: Option<String>,
    pub request_digest: Option<String>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub last_active_at: DateTimeUtc,
    pub expires_at: Option<DateTimeUtc>,
    pub stopped_at: Option<DateTimeUtc>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl TryFrom<&NewSandbox> for Model {
    type Error = StoreError;

    fn try_from(new: &NewSandbox) -> Result<Self, StoreError> {
        let created_at = micros(new.created_at);
        let idempotency = new.idempotency.as_ref();
        if let Some(idempotency) = idempotency {
            no_nul("idempotency_key", &idempotency.key)?;
        }
        Ok(Self {
            id: new.id.to_string(),
            host_id: new.host_id.clone(),
            template: new.template.to_string(),
            vcpus: new.shape.vcpus.into(),
            memory_mib: new.shape.memory_mib.into(),
            timeout_sec: new.timeout_sec.map(i64::from),
            envs: json_map("envs", &new.envs)?,
            metadata: json_map("metadata", &new.metadata)?,
            public_ports: new.public_ports.iter().map(|port| Json::from(port.get())).collect(),
            network: policy(&new.network),
            network_revision: 0,
            rates: serde_json::to_value(new.rates).expect("rates are plain data"),
            ports_token_digest: None,
            state: SandboxState::Pending.as_str().to_owned(),
            reason: None,
            generation: 0,
            slot: None,
            hypervisor: new.hypervisor.clone(),
            api_key_id: new.api_key_id.clone(),
            idempotency_key: idempotency.map(|it| it.key.clone()),
            request_digest: idempotency.map(|it| it.request_digest.clone()),
            created_at,
            updated_at: created_at,
            last_active_at: created_at,
            expires_at: new.expires_at.map(micros),
            stopped_at: None,
        })
    }
}

/// A policy as a JSON column.
pub(super) fn policy(policy: &Policy) -> Json {
    serde_json::to_value(policy).expect("a policy has only string keys")
}

impl Model {
    /// Every column set, for an insert.
    pub fn into_insert(self) -> ActiveModel {
        let id = Set(self.id.clone());
        ActiveModel { id, ..self.into_active_model().reset_all() }
    }
}

impl TryFrom<Model> for Sandbox {
    type Error = StoreError;

    fn try_from(model: Model) -> Result<Self, StoreError> {
        let row = Row { table: "sandboxes", id: &model.id };
        let unsigned =
            |column, value: Option<i64>| value.map(|value| row.unsigned(column, value)).transpose();
        Ok(Self {
            template: row.parse("template", &model.template)?,
            shape: Shape {
                vcpus: row.unsigned("vcpus", model.vcpus)?,
                memory_mib: row.unsigned("memory_mib", model.memory_mib)?,
            },
            timeout_sec: unsigned("timeout_sec", model.timeout_sec)?,
            envs: row.text_map("envs", model.envs)?,
            metadata: row.text_map("metadata", model.metadata)?,
            public_ports: row.json("public_ports", model.public_ports)?,
            network: row.json("network", model.network)?,
            network_revision: model.network_revision,
            rates: row.json("rates", model.rates)?,
            ports_token_digest: model.ports_token_digest,
            state: row.parse("state", &model.state)?,
            slot: unsigned("slot", model.slot)?,
            idempotency: model
                .idempotency_key
                .zip(model.request_digest)
                .map(|(key, request_digest)| Idempotency { key, request_digest }),
            id: row.parse("id", &model.id)?,
            host_id: model.host_id,
            reason: model.reason,
            generation: model.generation,
            hypervisor: model.hypervisor,
            api_key_id: model.api_key_id,
            created_at: model.created_at,
            updated_at: model.updated_at,
            last_active_at: model.last_active_at,
            expires_at: model.expires_at,
            stopped_at: model.stopped_at,
        })
    }
}
