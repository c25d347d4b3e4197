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

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, get, guard, web};
use serde::Serialize;

use self::access::Admission;
use self::forward::{Door, forward};
use super::auth::Caller;
use super::error::{ApiError, only};
use super::websocket::Sockets;
use crate::actors::control_plane::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::port::GuestPort;

pub use access::TOKEN_HEADER;
pub use forward::Proxied;

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
#[derive(Serialize)]
struct PortsView {
    /// Opens those that are not public.
    token: String,
    /// Where each port is, with `{port}` for its number; none without a domain.
    url: Option<String>,
    /// The public ones.
    ports: Vec<PortView>,
}

#[derive(Serialize)]
struct PortView {
    port: GuestPort,
    url: Option<String>,
    public: bool,
}

#[get("/sandboxes/{id}/ports")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    ports: web::Data<Ports>,
    id: web::Path<SandboxId>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let sandbox = control.get(&id).await?;
    let token = control.ports_token(&id).await?;
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
    refuse_tunnels(&request)?;
    if let Admission::Answer(answer) = access::by_host(&control, &target, &request).await? {
        return Ok(answer);
    }
    let door = Door { target: &target, prefix: None };
    forward(&control, &ports, &sockets, door, &request, payload).await
}

/// Answers for `/v1/sandboxes/{id}/ports/{port}/...`.
async fn by_path(
    control: web::Data<ControlPlane>,
    ports: web::Data<Ports>,
    sockets: web::Data<Sockets>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    refuse_tunnels(&request)?;
    let target = access::by_path(&control, &request).await?;
    let prefix = format!("/v1/sandboxes/{}/ports/{}", target.id, target.port);
    let door = Door { target: &target, prefix: Some(&prefix) };
    forward(&control, &ports, &sockets, door, &request, payload).await
}

/// A client that asks for a tunnel to anywhere, or for its own request back with all its secrets.
fn refuse_tunnels(request: &HttpRequest) -> Result<(), ApiError> {
    match request.method() {
        &Method::CONNECT | &Method::TRACE => Err(ApiError::foreign(StatusCode::METHOD_NOT_ALLOWED)),
        _ => Ok(()),
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
        let below = "/v1/sandboxes/{id}/ports/{port}";
        let paths = [below.to_owned(), format!("{below}/{{path:.*}}")];
        config.service(web::resource(paths).to(by_path));
    }
}

/// The routes below `/v1`.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(list).service(only("/sandboxes/{id}/ports", "GET"));
    config.configure(tunnel::routes);
}
