//! Names of servers in sandboxes: `{port}-{id}.{domain}`.

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap};

use super::Target;
use crate::domain::id::SandboxId;
use crate::domain::port::GuestPort;
use crate::http::error::ApiError;

/// The server that a request names as its host. None if it names something else, which is the
/// daemon's own; an error if what stands for the port is none.
pub fn target(headers: &HeaderMap, domain: &str) -> Option<Result<Target, ApiError>> {
    named(headers.get(header::HOST)?.to_str().ok()?, domain)
}

/// Whether the one host of a request is the name of a server.
pub fn names_server(headers: &HeaderMap, domain: &str) -> bool {
    headers.get_all(header::HOST).count() == 1 && target(headers, domain).is_some()
}

fn named(host: &str, domain: &str) -> Option<Result<Target, ApiError>> {
    let host = host.to_ascii_lowercase();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => &host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = name.strip_suffix(domain)?.strip_suffix('.').filter(|_| !domain.is_empty())?;
    let (port, id) = label.rsplit_once('-')?;
    let id: SandboxId = id.parse().ok()?;
    let port: Result<GuestPort, _> = port.parse();
    Some(port.map(|port| Target { id, port }).map_err(|error| ApiError::invalid(error.to_string())))
}

/// Where a port is for whoever has sent this request; nowhere without a domain.
pub fn url(request: &HttpRequest, domain: &str, id: &SandboxId, port: &str) -> Option<String> {
    let connection = request.connection_info();
    // As they have reached us, which may be through a proxy with another port.
    let (scheme, host) = (connection.scheme(), connection.host());
    let own = host.rsplit_once(':').map(|(_, port)| port);
    let own = own.filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let own = own.map(|port| format!(":{port}")).unwrap_or_default();
    (!domain.is_empty()).then(|| format!("{scheme}://{port}-{id}.{domain}{own}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "abcdefghij0123456789";

    #[test]
    fn a_name_is_port_and_id_below_the_domain() {
        let right = Target { id: ID.parse().unwrap(), port: "8000".parse().unwrap() };
        for host in [
            format!("8000-{ID}.nest.example"),
            format!("8000-{ID}.nest.example:8080"),
            format!("8000-{ID}.nest.example."),
            format!("8000-{}.Nest.EXAMPLE:80", ID.to_ascii_uppercase()),
        ] {
            let found = named(&host, "nest.example").expect(&host).expect(&host);
            assert_eq!(found, right, "{host}");
        }
    }

    #[test]
    fn a_name_without_an_id_is_the_daemons_own() {
        for host in [
            "nest.example",
            "8000.nest.example",
            "8000-short.nest.example",
            &format!("8000-{ID}.nest.example.org"),
            &format!("8000-{ID}nest.example"),
            &format!("8000-{ID}.a.nest.example"),
            &format!("{ID}.nest.example"),
            "127.0.0.1:8080",
            "[::1]:8080",
            "",
        ] {
            assert!(named(host, "nest.example").is_none(), "{host}");
            assert!(named(host, "").is_none(), "{host}");
        }
    }

    #[test]
    fn a_name_with_an_id_and_a_bad_port_is_an_error() {
        for port in ["", "0", "65536", "49983", "http", "-1", "1-2"] {
            let host = format!("{port}-{ID}.nest.example");
            assert!(named(&host, "nest.example").expect(&host).is_err(), "{host}");
        }
    }
}
