//! Headers on their way through: what is for the next hop only stays here, and so do our secrets.

use actix_web::HttpRequest;
use actix_web::http::{Version, header as here};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::access::{TOKEN_HEADER, cookies, token_of};
use crate::http::auth::API_KEY_HEADER;
use crate::http::expect::GoOn;
use crate::http::websocket::KEY_PREFIX;

/// For the next hop only (RFC 9110, 7.6.1), beside those that `Connection` names. A body's length
/// and coding are said anew by whoever sends it on.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
];
const UPGRADE: &str = "upgrade";

/// How much of a body a request has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyLength {
    None,
    /// So many bytes, as the header says.
    Known(HeaderValue),
    /// In chunks.
    Unknown,
}

impl BodyLength {
    /// That of a request. Who reads requests has refused those that say both, or either twice.
    pub fn of(headers: &here::HeaderMap) -> Self {
        if headers.contains_key(here::TRANSFER_ENCODING) {
            return Self::Unknown;
        }
        match headers.get(here::CONTENT_LENGTH).map(here::HeaderValue::as_bytes) {
            None => Self::None,
            Some(length) => HeaderValue::from_bytes(length).map_or(Self::None, Self::Known),
        }
    }
}

/// Whether a request asks for a WebSocket.
pub fn asks_for_websocket(headers: &here::HeaderMap) -> bool {
    let upgrade = headers.get(here::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.trim().eq_ignore_ascii_case("websocket"))
}

/// The headers that a server in a sandbox gets.
pub fn inwards(request: &HttpRequest, length: &BodyLength, prefix: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let from = request.headers();
    let named = connection_options(from.get_all(here::CONNECTION).map(|value| value.as_bytes()));
    let is_expectation_theirs = is_expectation_theirs(request);
    for (name, value) in from {
        let name = name.as_str();
        let over = name == here::EXPECT && !is_expectation_theirs;
        if is_for_this_hop(name, &named) || is_secret(name) || over {
            continue;
        }
        append(&mut headers, name, value.as_bytes());
    }
    let kept: Vec<&str> = cookies(from).filter(|pair| token_of(pair).is_none()).collect();
    if !kept.is_empty() {
        append(&mut headers, "cookie", kept.join("; ").as_bytes());
    }
    let protocols = offered(from);
    if !protocols.is_empty() {
        append(&mut headers, "sec-websocket-protocol", protocols.join(", ").as_bytes());
    }
    forwarded(&mut headers, request, prefix);
    match length {
        BodyLength::Known(length) => drop(headers.insert(header::CONTENT_LENGTH, length.clone())),
        BodyLength::Unknown => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        BodyLength::None => {}
    }
    if asks_for_websocket(from) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    headers
}

/// Whether what a request expects is for the server to meet. An expectation in HTTP/1.0 is to be ignored
/// (RFC 9110, 10.1.1), and who was told to go on already does not wait to be told.
fn is_expectation_theirs(request: &HttpRequest) -> bool {
    let waits = request.head().expect();
    request.version() > Version::HTTP_10 && (!waits || GoOn::of(request).is_some())
}

/// Whether a body has a transfer coding beside `chunked`: it would have to be undone here, or named to the
/// client, and neither is done.
pub fn has_other_coding(from: &HeaderMap) -> bool {
    let mut codings = from.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next();
    let other = first.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    other || codings.next().is_some()
}

/// The headers that a client gets.
pub fn outwards(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let options = from.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes);
    let named = connection_options(options);
    from.iter().filter(move |(name, _)| !is_for_this_hop(name.as_str(), &named))
}

/// Says whom the server is really talking to. Who was asked, and how, a proxy before us knows better.
fn forwarded(headers: &mut HeaderMap, request: &HttpRequest, prefix: Option<&str>) {
    // Another way to say the same, which we do not speak: two might say two things.
    headers.remove(header::FORWARDED);
    let before = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let peer = request.peer_addr().map(|peer| peer.ip().to_string());
    let all: Vec<String> = before.map(str::to_owned).chain(peer).collect();
    set(headers, "x-forwarded-for", &all.join(", "));
    let connection = request.connection_info();
    for (name, value) in
        [("x-forwarded-proto", connection.scheme()), ("x-forwarded-host", connection.host())]
    {
        if !headers.contains_key(name) {
            set(headers, name, value);
        }
    }
    match prefix {
        Some(prefix) => set(headers, "x-forwarded-prefix", prefix),
        None => drop(headers.remove("x-forwarded-prefix")),
    }
}

/// The subprotocols that a client offers to the server, and not to us.
fn offered(from: &here::HeaderMap) -> Vec<&str> {
    let lines = from.get_all(here::SEC_WEBSOCKET_PROTOCOL).filter_map(|line| line.to_str().ok());
    let protocols = lines.flat_map(|line| line.split(',').map(str::trim));
    protocols.filter(|protocol| !protocol.is_empty() && !protocol.starts_with(KEY_PREFIX)).collect()
}

fn connection_options<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let text = values.map(|value| String::from_utf8_lossy(value).to_ascii_lowercase());
    text.flat_map(|text| text.split(',').map(|option| option.trim().to_owned()).collect::<Vec<_>>())
        .collect()
}

fn is_for_this_hop(name: &str, named: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || name == UPGRADE || named.iter().any(|option| option == name)
}

/// What is put together again without our secrets counts as one.
fn is_secret(name: &str) -> bool {
    [TOKEN_HEADER, API_KEY_HEADER, "cookie", "sec-websocket-protocol"]
        .iter()
        .any(|secret| name.eq_ignore_ascii_case(secret))
}

fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    // What one parser took for a header the other one does too: both follow the same grammar.
    if let (Ok(name), Ok(value)) =
        (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
    {
        headers.append(name, value);
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn seen(request: TestRequest) -> HeaderMap {
        let request = request.peer_addr("192.0.2.1:99".parse().unwrap()).to_http_request();
        inwards(&request, &BodyLength::None, None)
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn what_is_for_the_next_hop_stays_here() {
        let mut request = TestRequest::default()
            .insert_header(("connection", "close, X-Mine"))
            .append_header(("connection", "keep-alive"))
            .insert_header(("x-mine", "1"))
            .insert_header(("upgrade", "h2c"))
            .insert_header(("accept", "*/*"));
        for name in HOP_BY_HOP.iter().filter(|name| **name != "connection") {
            request = request.insert_header((*name, "x"));
        }
        let headers = seen(request);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let ours = ["accept", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, ours);
    }

    #[test]
    fn secrets_stay_here_and_what_stands_beside_them_does_not() {
        let headers = seen(
            TestRequest::default()
                .insert_header(("x-api-key", "nb_secret"))
                .insert_header(("x-sandbox-token", "secret"))
                .insert_header(("authorization", "Basic theirs"))
                .insert_header(("cookie", "a=1; nestbox_token=secret; b=\"2\""))
                .append_header(("cookie", "nestbox_token=secret"))
                .insert_header(("sec-websocket-protocol", "chat, nestbox.key.nb_secret,v2")),
        );
        assert!(!format!("{headers:?}").contains("secret"), "{headers:?}");
        assert_eq!(text(&headers, "authorization"), ["Basic theirs"]);
        assert_eq!(text(&headers, "cookie"), ["a=1; b=\"2\""]);
        assert_eq!(text(&headers, "sec-websocket-protocol"), ["chat, v2"]);
        let headers = seen(TestRequest::default().insert_header(("cookie", "nestbox_token=x")));
        assert!(!headers.contains_key("cookie"));
    }

    #[test]
    fn a_server_learns_whom_it_talks_to() {
        let headers = seen(TestRequest::default().insert_header(("host", "8000-x.nest:80")));
        assert_eq!(text(&headers, "x-forwarded-for"), ["192.0.2.1"]);
        assert_eq!(text(&headers, "x-forwarded-host"), ["8000-x.nest:80"]);
        assert_eq!(text(&headers, "x-forwarded-proto"), ["http"]);
        assert_eq!(text(&headers, "host"), ["8000-x.nest:80"]);

        let headers = seen(
            TestRequest::default()
                .insert_header(("x-forwarded-for", "203.0.113.9"))
                .insert_header(("x-forwarded-proto", "https"))
                .insert_header(("forwarded", "for=203.0.113.8")),
        );
        assert_eq!(text(&headers, "x-forwarded-for"), ["203.0.113.9, 192.0.2.1"]);
        assert_eq!(text(&headers, "x-forwarded-proto"), ["https"]);
        assert!(!headers.contains_key("forwarded"));
    }
}
