//! Which `Host` names are the daemon's own.
//!
//! Whoever owns a name can have it lead to this machine after a browser has loaded a page from it (DNS
//! rebinding): to that browser the daemon is then part of the page's own site. So nothing is answered
//! under names that are not ours. An address cannot be rebound, and is always ours to whoever reached
//! us by it, whatever stands in between.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::middleware::Next;
use actix_web::web;

use super::connections::Door;
use super::error::{ApiError, Code};
use super::ports::{Ports, names_server};

/// Leads to the machine that it is asked on (RFC 6761, 6.3).
const LOOPBACK: &str = "localhost";

/// The names of one daemon.
#[derive(Debug, Clone)]
pub struct OwnNames(Arc<BTreeSet<String>>);

impl OwnNames {
    /// `localhost`, and these.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let names = names.into_iter().chain([LOOPBACK.to_owned()]);
        let names = names.map(|name| name.trim_matches('.').to_ascii_lowercase());
        Self(Arc::new(names.filter(|name| !name.is_empty()).collect()))
    }

    /// Whether a `Host` means this daemon.
    fn have(&self, host: &str) -> bool {
        let Some(name) = name_of(host) else { return false };
        let name = name.strip_suffix('.').unwrap_or(name);
        is_address(name) || self.0.contains(&name.to_ascii_lowercase())
    }
}

/// A host without its port; none if what stands for the port is none.
fn name_of(host: &str) -> Option<&str> {
    let end = host.find(']').map_or(0, |at| at + 1);
    let Some(colon) = host[end..].find(':') else { return Some(host) };
    let (name, port) = host.split_at(end + colon);
    port[1..].bytes().all(|byte| byte.is_ascii_digit()).then_some(name)
}

fn is_address(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The middleware: lets requests pass that mean this daemon, or a server in a sandbox of it.
///
/// # Errors
///
/// Those of what comes after it; its own are answers.
pub async fn refuse_others(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    match foreign(&request) {
        None => Ok(next.call(request).await?.map_into_boxed_body()),
        Some(error) => Ok(request.error_response(error)),
    }
}

fn foreign(request: &ServiceRequest) -> Option<ApiError> {
    let names = request.app_data::<web::Data<OwnNames>>().expect("every app is made with names");
    let ports = request.app_data::<web::Data<Ports>>().expect("every app is made with ports");
    // No browser speaks through it.
    if Door::of(request.request()) == Door::Local {
        return None;
    }
    let hosts = request.headers().get_all(header::HOST);
    let mut hosts: Vec<&str> = hosts.map(|host| host.to_str().unwrap_or("?")).collect();
    // Who stands in between may have looked at another one (RFC 9112, 3.2).
    if hosts.len() > 1 {
        return Some(ApiError::invalid("a request has one Host"));
    }
    // A request line with a whole URL says it once more. One that says it nowhere is no browser's.
    hosts.extend(request.uri().authority().map(|authority| authority.as_str()));
    let server = names_server(request.headers(), &ports.domain);
    let stranger = hosts.into_iter().find(|host| !server && !names.have(host))?;
    let shown: String = stranger.chars().filter(|c| !c.is_control()).take(100).collect();
    let message = format!(
        "this daemon is not called {shown:?}: use one of its addresses or names, or start it with \
         --host-name (NESTBOX_HOST_NAMES) if this is one"
    );
    Some(ApiError::new(Code::Misdirected, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_own_names_are_ours_with_any_port() {
        let names = OwnNames::new(["Nest.Example.".to_owned(), "box".to_owned(), String::new()]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "192.0.2.7:1",
            "[::1]",
            "[2001:db8::1]:8080",
            "localhost",
            "LocalHost:9",
            "localhost.",
            "nest.example",
            "NEST.example:8080",
            "box:80",
            "box:",
        ] {
            assert!(names.have(host), "{host}");
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        let names = OwnNames::new(["nest.example".to_owned()]);
        for host in [
            "",
            ":80",
            "evil.example",
            "nest.example.evil.example",
            "x.nest.example",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "127.0.0.1:80:80",
            "127.1",
            "0x7f000001",
            "[::1",
            "[::1]x",
            "[evil]",
            "localhost:80@evil",
            "::1",
        ] {
            assert!(!names.have(host), "{host}");
        }
    }
}
