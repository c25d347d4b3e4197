//! `/v1/api-keys`: make, list and delete API keys.

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::Json;
use super::error::ApiError;
use super::openapi::failures::Names;
use super::openapi::{Routes, Section};
use crate::actors::control::ControlPlane;

const MAX_NAME: usize = 100;

/// Body of `POST /v1/api-keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateApiKey, examples(json!({"name": "ci"})))]
struct CreateBody {
    /// For people, to tell keys apart.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

/// A new API key.
#[derive(Serialize, ToSchema)]
#[schema(as = NewApiKey, examples(json!({
    "id": "b7e1c90d2f",
    "name": "ci",
    "key": "nb_...",
    "created_at": "2026-11-25T22:46:45.120394Z",
})))]
struct CreatedView {
    /// By which it can be deleted.
    id: String,
    /// For people.
    name: String,
    /// What is sent with requests: shown here and never again.
    key: String,
    /// When it was made.
    created_at: DateTime<Utc>,
}

/// An API key, without what makes it one.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey, examples(json!({
    "id": "b7e1c90d2f",
    "name": "ci",
    "prefix": "nb_4fQx",
    "created_at": "2026-11-25T22:46:45.120394Z",
    "last_used_at": null,
})))]
struct KeyView {
    /// By which it can be deleted.
    id: String,
    /// For people.
    name: String,
    /// The first characters, by which people tell keys apart.
    prefix: String,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was last used, to some minutes; never if absent.
    last_used_at: Option<DateTime<Utc>>,
}

/// All API keys.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKeyList)]
struct ListView {
    /// Each with its beginning only.
    api_keys: Vec<KeyView>,
}

/// Makes an API key.
#[utoipa::path(
    operation_id = "createApiKey",
    responses((status = 201, description = "The key, this once.", body = CreatedView)),
)]
#[post("/api-keys")]
async fn create(
    _: Caller,
    control: web::Data<ControlPlane>,
    Json(body): Json<CreateBody>,
) -> Result<HttpResponse, ApiError> {
    if body.name.is_empty() || body.name.chars().count() > MAX_NAME || body.name.contains('\0') {
        return Err(ApiError::invalid(format!("name is 1 to {MAX_NAME} characters")));
    }
    let key = control.create_key(&body.name).await?;
    let (id, name, created_at) = (key.kept.id, key.kept.name, key.kept.created_at);
    Ok(HttpResponse::Created().json(CreatedView { id, name, key: key.secret, created_at }))
}

/// Lists API keys.
#[utoipa::path(
    operation_id = "listApiKeys",
    responses((status = 200, description = "All of them.", body = ListView)),
)]
#[get("/api-keys")]
async fn list(_: Caller, control: web::Data<ControlPlane>) -> Result<HttpResponse, ApiError> {
    let keys = control.keys().await?;
    let api_keys = keys
        .into_iter()
        .map(|key| KeyView {
            id: key.id,
            name: key.name,
            prefix: key.prefix,
            created_at: key.created_at,
            last_used_at: key.last_used_at,
        })
        .collect();
    Ok(HttpResponse::Ok().json(ListView { api_keys }))
}

/// Deletes an API key; the last one stays.
#[utoipa::path(
    operation_id = "deleteApiKey",
    params(("id" = String, Path, description = "The key's id, not the key.")),
    responses((status = 204, description = "It opens nothing any more."), Names),
)]
#[delete("/api-keys/{id}")]
async fn remove(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    control.delete_key(&id).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Keys).add(list).add(create).add(remove);
}
