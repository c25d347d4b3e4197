//! The API's own description: OpenAPI 3.1, made of the handlers' annotations.
//!
//! - `routes`: the table into which every handler is put
//! - `failures`: what can go wrong, as responses
//! - `vocabulary`: values of the domain, as schemas
//! - `ui`: pages that show the document to people
//!
//! Architecture invariant: no route of the API is registered but through [`Routes`], so that the
//! document cannot lag behind.

pub mod failures;
mod routes;
mod ui;
mod vocabulary;

use std::sync::LazyLock;

use actix_web::{HttpResponse, get};
use bytes::Bytes;
use utoipa::openapi::info::{InfoBuilder, LicenseBuilder};
use utoipa::openapi::path::Paths;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{Components, OpenApi};

use super::auth::API_KEY_HEADER;
use super::ports::TOKEN_HEADER;

pub use routes::{Messages, Routes, Section};

/// Name of the security scheme that most of the API has.
pub const API_KEY_SCHEME: &str = "api_key";

/// Name of the other one, which opens servers in one sandbox.
const TOKEN_SCHEME: &str = "sandbox_token";

const ABOUT: &str = "\
Sandboxes for untrusted code, each in a microVM of its own.

JSON over HTTP. Unknown fields and parameters are errors. An error is \
`{\"error\": {\"code\", \"message\"}}`, with a `request_id` if it is the daemon's or the sandbox's \
fault. Every answer has an `X-Request-Id`, under which the daemon's log tells more.

WebSockets are described as `GET` that answers 101, and what is said over them under \
`x-websocket-messages`: text messages with one JSON object each.";

/// The document in both forms, written once.
struct Document {
    json: Bytes,
    yaml: Bytes,
}

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let document = document();
    let json = document.to_pretty_json().expect("a document has only string keys");
    let yaml = document.to_yaml().expect("a document has only string keys");
    Document { json: json.into(), yaml: yaml.into() }
});

/// Describes the API.
#[utoipa::path(
    operation_id = "getDocumentJson",
    responses((status = 200, description = "This document.", body = Object)),
)]
#[get("/openapi.json")]
async fn document_json() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT.json.clone())
}

/// Describes the API, in YAML.
#[utoipa::path(
    operation_id = "getDocumentYaml",
    responses((
        status = 200,
        description = "This document.",
        body = Object,
        content_type = "application/yaml",
    )),
)]
#[get("/openapi.yaml")]
async fn document_yaml() -> HttpResponse {
    HttpResponse::Ok().content_type("application/yaml").body(DOCUMENT.yaml.clone())
}

/// The routes of this folder.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Daemon).add(document_json).add(document_yaml);
    ui::routes(routes);
}

fn document() -> OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0"));
    let info = InfoBuilder::new()
        .title("Nestbox")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(license.build()));
    let mut document = OpenApi::new(info.build(), Paths::new());
    let tag = |section: Section| {
        TagBuilder::new().name(section.name()).description(Some(section.description())).build()
    };
    document.tags = Some(Section::ALL.map(tag).into());
    let mut components = Components::new();
    let header = |name: &str, text: &str| {
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, text)))
    };
    let key = header(API_KEY_HEADER, "An API key. A new daemon prints its first one.");
    components.add_security_scheme(API_KEY_SCHEME, key);
    let token = header(TOKEN_HEADER, "The token of a sandbox: it opens the servers in it.");
    components.add_security_scheme(TOKEN_SCHEME, token);
    components.responses = failures::components();
    components.schemas = failures::schemas();
    document.components = Some(components);
    for table in super::tables() {
        table.write(&mut document);
    }
    document
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod tests;
