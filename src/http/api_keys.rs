//! `/v1/api-keys`: make, list and delete API keys.

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::error::{ApiError, only};
use crate::actors::control_plane::ControlPlane;

const MAX_NAME: usize = 100;

/// Body of `POST /v1/api-keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
}

#[derive(Serialize)]
struct CreatedView {
    id: String,
    name: String,
    /// Shown here and never again.
    key: String,
    created_at: DateTime<Utc>,
}

#[derive(Serialize)]
struct KeyView {
    id: String,
    name: String,
    /// The first characters, by which people tell keys apart.
    prefix: String,
    created_at: DateTime<Utc>,
    last_used_at: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct ListView {
    api_keys: Vec<KeyView>,
}

#[post("/api-keys")]
async fn create(
    _: Caller,
    control: web::Data<ControlPlane>,
    body: web::Json<CreateBody>,
) -> Result<HttpResponse, ApiError> {
    if body.name.is_empty() || body.name.chars().count() > MAX_NAME || body.name.contains('\0') {
        return Err(ApiError::invalid(format!("name is 1 to {MAX_NAME} characters")));
    }
    let key = control.create_key(&body.name).await?;
    let (id, name, created_at) = (key.kept.id, key.kept.name, key.kept.created_at);
    Ok(HttpResponse::Created().json(CreatedView { id, name, key: key.secret, created_at }))
}

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
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(create).service(list).service(remove);
    config.service(only("/api-keys", "GET, POST")).service(only("/api-keys/{id}", "DELETE"));
}
