//! The REST API: one file per resource, each with its routes, bodies and views.
//!
//! Architecture invariant: a handler knows the control plane's handle and nothing below it.

mod api_keys;
mod auth;
mod body;
mod body_guard;
mod browser;
mod connections;
mod error;
mod events;
mod exec;
mod exec_stream;
mod expect;
mod files;
mod fork;
mod head;
mod health;
mod json_stream;
mod lease;
mod network;
mod observe;
mod openapi;
mod own_names;
mod page;
mod pause;
mod ports;
mod processes;
mod pty;
mod query;
mod sandboxes;
mod server;
mod session;
mod snapshots;
mod trace;
mod usage;
mod websocket;

use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::{App, web};

use self::error::{ApiError, Code};
use self::openapi::Routes;
use crate::actors::control::ControlPlane;

pub use auth::API_KEY_HEADER;
pub use connections::{Budget, Connections};
pub use exec::OUTPUT_LIMIT;
pub use own_names::OwnNames;
pub use ports::{Ports, TOKEN_HEADER};
pub use server::{Listeners, create_server};
pub use websocket::{Heartbeat, MESSAGE_LIMIT, Sockets};

/// The largest JSON body, in bytes.
pub const JSON_LIMIT: usize = 2 << 20;

/// What the paths of the API begin with.
const PREFIX: &str = "/v1";

/// What the application is made with, beside the control plane.
#[derive(Debug, Clone)]
pub struct Front {
    /// What all WebSockets share.
    pub sockets: Sockets,
    /// How servers in sandboxes are reached.
    pub ports: Ports,
    /// Under which names the daemon answers.
    pub names: OwnNames,
    /// How many connections there may be.
    pub connections: Connections,
}

/// Builds the application: the daemon serves it, and tests call the same one.
pub fn create_app(
    control: ControlPlane,
    front: Front,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    let Front { sockets, ports, names, connections } = front;
    let servers = ports::server_routes(&ports.domain);
    let [open, keyed] = tables();
    App::new()
        .app_data(web::Data::new(control))
        .app_data(web::Data::new(sockets))
        .app_data(web::Data::new(ports))
        .app_data(web::Data::new(names))
        .app_data(web::Data::new(connections))
        .app_data(json_config())
        .app_data(path_config())
        .app_data(query_config())
        .configure(servers)
        .configure(open.serve())
        .service(web::scope(PREFIX).wrap(from_fn(auth::authenticate)).configure(keyed.serve()))
        .wrap(from_fn(head::answer))
        .wrap(from_fn(own_names::refuse_others))
        .wrap(from_fn(observe::observe))
}

/// All routes: those that come without a key, and those of the API. Both the application and its
/// description are made of them.
fn tables() -> [Routes; 2] {
    let (mut open, mut keyed) = (Routes::open(), Routes::keyed(PREFIX));
    for routes in [health::routes, browser::routes, openapi::routes, ports::proxy_routes] {
        routes(&mut open);
    }
    for routes in [
        sandboxes::routes,
        pause::routes,
        fork::routes,
        lease::routes,
        network::routes,
        snapshots::routes,
        exec_stream::routes,
        exec::routes,
        processes::routes,
        pty::routes,
        files::routes,
        usage::routes,
        events::routes,
        ports::routes,
        api_keys::routes,
    ] {
        routes(&mut keyed);
    }
    [open, keyed]
}

fn json_config() -> web::JsonConfig {
    use actix_web::error::JsonPayloadError;
    web::JsonConfig::default().limit(JSON_LIMIT).error_handler(|error, _| {
        let error = match error {
            JsonPayloadError::OverflowKnownLength { .. } | JsonPayloadError::Overflow { .. } => {
                let message = format!("a JSON body is at most {JSON_LIMIT} bytes");
                ApiError::new(Code::TooLarge, message)
            }
            JsonPayloadError::ContentType => {
                ApiError::invalid("the body must be JSON, with Content-Type: application/json")
            }
            JsonPayloadError::Deserialize(error) if error.is_eof() => {
                ApiError::invalid("the body ends within its JSON, or there is none: send an object")
            }
            JsonPayloadError::Deserialize(error) => ApiError::invalid(error.to_string()),
            other => ApiError::invalid(other.to_string()),
        };
        error.into()
    })
}

fn path_config() -> web::PathConfig {
    // What cannot be an id names nothing; it is said to be malformed rather than missing.
    web::PathConfig::default().error_handler(|error, _| {
        use actix_web::error::PathError;
        // What is wrong, without what was about to be done with it.
        let message = match error {
            PathError::Deserialize(reason) => reason.to_string(),
            other => other.to_string(),
        };
        ApiError::invalid(message).into()
    })
}

fn query_config() -> web::QueryConfig {
    web::QueryConfig::default().error_handler(|error, _| {
        use actix_web::error::QueryPayloadError;
        let message = match error {
            QueryPayloadError::Deserialize(reason) => reason.to_string(),
            other => other.to_string(),
        };
        ApiError::invalid(message).into()
    })
}
