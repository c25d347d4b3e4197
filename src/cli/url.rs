//! The URL of a daemon as people write it.

use std::net::IpAddr;

use reqwest::Url;

/// The text is not the URL of a daemon.
#[derive(Debug, thiserror::Error)]
pub(super) enum UrlError {
    #[error("{url:?} is not the url of a daemon, such as http://127.0.0.1:8080")]
    Bad { url: String },
    #[error("{url:?}: a daemon speaks http or https, not {scheme}")]
    Scheme { url: String, scheme: String },
    #[error(
        "{url:?} does not say how to speak to the daemon: write https://{url}, or http://{url}, \
         which sends the api key unencrypted"
    )]
    NoScheme { url: String },
}

/// Reads a URL: without its scheme it is one of http, if it leads to this machine. A final `/v1` is
/// part of the API's paths; the result ends without it, and without a slash, a query or a fragment.
///
/// # Errors
///
/// [`UrlError`], which says what to write.
pub(super) fn parse(text: &str) -> Result<Url, UrlError> {
    let text = text.trim();
    let bad = || UrlError::Bad { url: text.to_owned() };
    let schemeless = !text.contains("://");
    let whole = match schemeless {
        // What follows "http://" is taken for a host, however many slashes are before it.
        true if text.starts_with('/') || text.contains('@') => return Err(bad()),
        true => format!("http://{text}"),
        false => text.to_owned(),
    };
    let mut url = Url::parse(&whole).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme().to_owned();
        return Err(UrlError::Scheme { url: text.to_owned(), scheme });
    }
    if schemeless && !is_loopback(&url) {
        return Err(UrlError::NoScheme { url: text.to_owned() });
    }
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_owned();
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// Whether a URL leads to this machine: no proxy belongs in between then.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    match address(host) {
        Some(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        None => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// The address that a URL has in the place of a name.
pub(super) fn address(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        for (url, want) in [
            ("http://127.0.0.1:8080", true),
            ("http://127.9.9.9", true),
            ("http://127.1", true),
            ("http://[::1]:8080", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://0.0.0.0:1", true),
            ("http://LOCALHOST", true),
            ("http://localhost.:1", true),
            ("http://nest.localhost", true),
            ("http://192.0.2.1", false),
            ("http://localhost.example", false),
            ("http://nest.example", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), want, "{url}");
        }
    }

    #[test]
    fn a_url_is_understood_as_it_is_meant() {
        for (text, want) in [
            ("http://127.0.0.1:80", "http://127.0.0.1/"),
            (" https://nest.example\n", "https://nest.example/"),
            ("https://nest.example:8443//", "https://nest.example:8443/"),
            ("https://nest.example/v1", "https://nest.example/"),
            ("https://nest.example/box/v1/", "https://nest.example/box"),
            ("http://host/nest/box/?x=1#y", "http://host/nest/box"),
            ("HTTP://host", "http://host/"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("localhost:8080/", "http://localhost:8080/"),
            ("localhost", "http://localhost/"),
            ("[::1]:8080", "http://[::1]:8080/"),
        ] {
            assert_eq!(parse(text).unwrap().as_str(), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_what_to_write() {
        for text in ["", "/var/lib", "mailto:bird@nest", "http://", "://x", "host:port", "a b"] {
            assert!(matches!(parse(text), Err(UrlError::Bad { .. })), "{text}: {:?}", parse(text));
        }
        for text in ["ws://nest.example", "ftp://nest.example", "unix:///run/nestbox.sock"] {
            assert!(matches!(parse(text), Err(UrlError::Scheme { .. })), "{text}");
        }
        let error = parse("nest.example:8080").unwrap_err().to_string();
        assert!(error.contains("write https://nest.example:8080, or"), "{error}");
    }
}
