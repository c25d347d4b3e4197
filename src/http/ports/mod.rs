//! Servers in sandboxes, from outside: `http://{port}-{id}.{domain}/`, and
//! `/v1/sandboxes/{id}/ports/{port}/` where no name leads here.
//!
//! ```text
//! client --request--> access --> headers --> forward --PortStream--> server in the guest
//!        <--answer--- body, or bytes both ways after an upgrade <---
//! ```
//!
//! Architecture invariant: nothing that opens anything here, such as a key, a token or the cookie
//! with one, reaches a guest; and no connection to a guest is kept for another request.

mod access;
mod forward;
mod headers;
mod host;
mod tunnel;
mod upgrade;

use std::time::Duration;

use actix_web::dev::{RequestHead, Url};
use actix_web::http::Method;
use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, get, guard, web};
use serde::Serialize;
use utoipa::ToSchema;

use self::access::Admission;
use self::forward::{Door, forward};
use super::auth::Caller;
use super::error::{ApiError, not_allowed};
use super::openapi::failures::{Connecting, State};
use super::openapi::{Routes, Section};
use super::websocket::Sockets;
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::port::GuestPort;

pub use access::TOKEN_HEADER;
pub use forward::Proxied;
pub(super) use host::names_server;

/// Where servers in sandboxes are reached without names.
const PROXY: &str = "/v1/sandboxes/{id}/ports/{port}";

/// Methods that are passed on, and others of which nobody has heard.
const ALLOWED: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// How servers in sandboxes are reached.
#[derive(Debug, Clone)]
pub struct Ports {
    /// Under which domain each of them has a name; none of them has one if empty.
    pub domain: String,
    /// How long one may take to take a connection.
    pub connect_limit: Duration,
    /// How long one may take to begin its answer, while its client sends nothing.
    pub answer_limit: Duration,
}

impl Ports {
    /// With names under `domain`, and usual limits.
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.trim_matches('.').to_ascii_lowercase(),
            connect_limit: Duration::from_secs(10),
            answer_limit: Duration::from_secs(120),
        }
    }
}

/// A server in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub id: SandboxId,
    pub port: GuestPort,
}

/// What of a sandbox can be reached.
#[derive(Serialize, ToSchema)]
#[schema(as = Ports, examples(json!({
    "token": "c1f5...",
    "url": "http://{port}-k3v9x1p0qzt7m2c8rw5b.localhost:8080/",
    "ports": [{
        "port": 8000,
        "url": "http://8000-k3v9x1p0qzt7m2c8rw5b.localhost:8080/",
        "public": true,
    }],
})))]
struct PortsView {
    /// Opens those that are not public.
    token: String,
    /// Where each port is, with `{port}` for its number; none without a domain.
    url: Option<String>,
    /// The public ones.
    ports: Vec<PortView>,
}

/// A port.
#[derive(Serialize, ToSchema)]
#[schema(as = Port, examples(json!({
    "port": 8000,
    "url": "http://8000-k3v9x1p0qzt7m2c8rw5b.localhost:8080/",
    "public": true,
})))]
struct PortView {
    /// Its number.
    port: GuestPort,
    /// Where it is; absent without a domain.
    url: Option<String>,
    /// Whether anybody may reach it.
    public: bool,
}

/// Shows how servers in a sandbox are reached.
#[utoipa::path(
    operation_id = "listPorts",
    params(SandboxId),
    responses((status = 200, description = "Where they are.", body = PortsView), State),
)]
#[get("/sandboxes/{id}/ports")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    ports: web::Data<Ports>,
    id: web::Path<SandboxId>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let sandbox = control.get(&id).await?;
    let token = control.ports_token(&id);
    let url = |port: &str| host::url(&request, &ports.domain, &id, port);
    let view =
        |port: &GuestPort| PortView { port: *port, url: url(&port.to_string()), public: true };
    let ports = sandbox.public_ports.iter().map(view).collect();
    Ok(HttpResponse::Ok().json(PortsView { token, url: url("{port}"), ports }))
}

/// Answers for `{port}-{id}.{domain}`.
async fn by_host(
    control: web::Data<ControlPlane>,
    ports: web::Data<Ports>,
    sockets: web::Data<Sockets>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let named = host::target(request.headers(), &ports.domain);
    let target = named.expect("the route's guard has seen it")?;
    if let Some(refusal) = refuse_tunnels(&request) {
        return Ok(refusal);
    }
    if let Admission::Answer(answer) = access::by_host(&control, &target, &request).await? {
        return Ok(answer);
    }
    let door = Door { target: &target, prefix: None };
    forward(&control, &ports, &sockets, door, &request, payload).await
}

/// Passes a request on to a server in a sandbox, and its answer back.
///
/// Any method will do. Takes an API key or the sandbox's token. The same servers are at
/// `{port}-{id}.{domain}`, which is what browsers need.
#[utoipa::path(
    method(get, head, post, put, patch, delete, options),
    path = "/v1/sandboxes/{id}/ports/{port}/{path}",
    operation_id = "passOn",
    security(("api_key" = []), ("sandbox_token" = [])),
    params(
        SandboxId,
        GuestPort,
        ("path" = String, Path, description = "What the server is asked for; may have slashes."),
    ),
    responses(
        (status = "default", description = "Whatever the server in the sandbox answers."),
        Connecting,
    ),
)]
async fn by_path(
    control: web::Data<ControlPlane>,
    ports: web::Data<Ports>,
    sockets: web::Data<Sockets>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    if let Some(refusal) = refuse_tunnels(&request) {
        return Ok(refusal);
    }
    let target = access::by_path(&control, &request).await?;
    let prefix = format!("/v1/sandboxes/{}/ports/{}", target.id, target.port);
    let door = Door { target: &target, prefix: Some(&prefix) };
    forward(&control, &ports, &sockets, door, &request, payload).await
}

/// A client that asks for a tunnel to anywhere, or for its own request back with all its secrets.
fn refuse_tunnels(request: &HttpRequest) -> Option<HttpResponse> {
    match request.method() {
        &Method::CONNECT | &Method::TRACE => Some(not_allowed(ALLOWED)),
        _ => None,
    }
}

/// The routes of servers, which come before all others: their names have paths of their own, and
/// they are opened by other means than an API key.
pub fn server_routes(domain: &str) -> impl FnOnce(&mut web::ServiceConfig) + use<> {
    let domain = domain.to_owned();
    move |config| {
        let named = guard::fn_guard(move |context| {
            host::target(context.head().headers(), &domain).is_some()
        });
        config.service(web::resource("{path:.*}").guard(named).to(by_host));
        let paths = [PROXY.to_owned(), format!("{PROXY}/{{path:.*}}")];
        config.service(web::resource(paths).to(by_path));
    }
}

/// Whether a request is for a server in a sandbox: by its host, or by a path that is
/// `/v1/sandboxes/{id}/ports/{port}` or below, as the routes of [`server_routes`] read it.
pub(super) fn leads_to_server(head: &RequestHead, domain: &str) -> bool {
    names_server(head.headers(), domain) || is_path_of_server(Url::new(head.uri.clone()).path())
}

fn is_path_of_server(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    let begins = parts.by_ref().take(2).eq(["v1", "sandboxes"]);
    begins && parts.nth(1) == Some("ports") && parts.next().is_some()
}

/// Describes the routes by path, which [`server_routes`] has registered.
pub fn proxy_routes(routes: &mut Routes) {
    routes.section(Section::Network).describe::<__path_by_path>(PROXY, Some("passOnToRoot"));
    routes.describe::<__path_by_path>(&format!("{PROXY}/{{path}}"), None);
}

/// The routes below `/v1`.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Network).add(list);
    tunnel::routes(routes);
}
