//! Who may reach a server in a sandbox.
//!
//! By its name: anybody if its port is public, else who has the sandbox's token: in a header, or in
//! a cookie that the token in a query sets once, so that a browser can follow links. By its path,
//! which is one of the daemon's own pages to a browser: only who has the token, or an API key, in a
//! header, for that is what a page of somebody else's cannot send.

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, Uri};
use actix_web::{HttpRequest, HttpResponse};

use super::Target;
use crate::actors::control::ControlPlane;
use crate::domain::id::{InvalidId, SandboxId};
use crate::domain::port::{GuestPort, InvalidPort};
use crate::http::auth::API_KEY_HEADER;
use crate::http::connections::Visit;
use crate::http::error::{ApiError, Code};

/// The header that carries a sandbox's token.
pub const TOKEN_HEADER: &str = "X-Sandbox-Token";

/// Name of the cookie, and of the parameter of a query, that carry it.
pub const TOKEN_NAME: &str = "nestbox_token";

/// Says to a server which site has led to a request.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Whether a request goes on to the server.
pub enum Admission {
    /// It does.
    Enter,
    /// This is the answer.
    Answer(HttpResponse),
}

/// Looks whether a request may go to the server that its host names.
///
/// # Errors
///
/// 401 with what to do; 404.
pub async fn by_host(
    control: &ControlPlane,
    target: &Target,
    request: &HttpRequest,
) -> Result<Admission, ApiError> {
    let sandbox = control.get(&target.id).await?;
    let asked = Query::of(request.uri());
    if !asked.tokens.is_empty() && [Method::GET, Method::HEAD].contains(request.method()) {
        let right = asked.tokens.iter().find(|token| control.opens_ports(&sandbox, &[**token]));
        return match right {
            Some(token) => Ok(Admission::Answer(keep_token(request, token, &asked))),
            None => Err(refused("the token is not the one of this sandbox")),
        };
    }
    if sandbox.public_ports.contains(&target.port) {
        return Ok(Admission::Enter);
    }
    if control.opens_ports(&sandbox, &header_tokens(request.headers())) {
        Visit::is_known(request);
        return Ok(Admission::Enter);
    }
    let cookies: Vec<&str> = cookies(request.headers()).filter_map(token_of).collect();
    if cookies.is_empty() || !control.opens_ports(&sandbox, &cookies) {
        return Err(refused(&format!(
            "port {} of this sandbox is not public: send its token in the header {TOKEN_HEADER}, \
             or open its URL once with ?{TOKEN_NAME}=TOKEN in a browser",
            target.port
        )));
    }
    if is_foreign(request.headers()) {
        return Err(refused(&format!(
            "the cookie is for this site's own pages, and another one has led here: open the URL \
             itself, add ?{TOKEN_NAME}=TOKEN to the link, or send the token in a header"
        )));
    }
    Visit::is_known(request);
    Ok(Admission::Enter)
}

/// Looks whether a request may go to the server that its path names, and which one that is.
///
/// # Errors
///
/// 401 with what to do; 400 for what is no port; 404.
pub async fn by_path(control: &ControlPlane, request: &HttpRequest) -> Result<Target, ApiError> {
    let tokens = header_tokens(request.headers());
    let key = request.headers().get(API_KEY_HEADER).map(|key| key.to_str().unwrap_or_default());
    match key {
        Some(key) if control.authenticate(key).await?.is_none() => {
            return Err(refused("the API key is not valid"));
        }
        None if tokens.is_empty() => {
            return Err(refused(&format!(
                "an API key is needed in the header {API_KEY_HEADER}, or the sandbox's token in \
                 {TOKEN_HEADER}"
            )));
        }
        Some(_) | None => {}
    }
    let named = |name| request.match_info().get(name).unwrap_or_default();
    let id: SandboxId = named("id").parse().map_err(|error: InvalidId| invalid(&error))?;
    let port: GuestPort = named("port").parse().map_err(|error: InvalidPort| invalid(&error))?;
    if key.is_none() && !control.opens_ports(&control.get(&id).await?, &tokens) {
        return Err(refused("the token is not the one of this sandbox"));
    }
    Visit::is_known(request);
    Ok(Target { id, port })
}

fn invalid(error: &dyn std::error::Error) -> ApiError {
    ApiError::invalid(error.to_string())
}

fn refused(message: &str) -> ApiError {
    ApiError::new(Code::Unauthorized, message)
}

fn header_tokens(headers: &HeaderMap) -> Vec<&str> {
    headers.get_all(TOKEN_HEADER).filter_map(|token| token.to_str().ok()).collect()
}

/// Whether the request was made by a page of another origin, or one that such a page has led to. All
/// sandboxes below a domain are one site to a browser: a page of one of them could otherwise have it
/// do things in another.
fn is_foreign(headers: &HeaderMap) -> bool {
    is_led_here(headers) || has_other_origin(headers)
}

/// What a browser says of where a request began (Fetch Metadata, 2.4): it does of every one, those for
/// a WebSocket included, unless the connection is neither by TLS nor to `localhost`.
fn is_led_here(headers: &HeaderMap) -> bool {
    let own = |site: &HeaderValue| ["same-origin", "none"].iter().any(|own| site == own);
    !headers.get_all(SEC_FETCH_SITE).all(own)
}

/// The origin is said with everything but a plain GET.
fn has_other_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let from = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    match (from, host) {
        (Some((_, from)), Some(host)) => !from.eq_ignore_ascii_case(host),
        _ => true,
    }
}

/// The cookies of a request, each as `name=value`.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::COOKIE).filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';').map(str::trim)).filter(|pair| !pair.is_empty())
}

/// The token, if this is the pair that carries it.
pub fn token_of(pair: &str) -> Option<&str> {
    let (name, value) = pair.split_once('=')?;
    (name.trim() == TOKEN_NAME).then_some(value.trim())
}

/// A query without tokens, and the tokens. What is not ours is left as it was written.
pub struct Query<'a> {
    pub tokens: Vec<&'a str>,
    rest: Vec<&'a str>,
}

impl<'a> Query<'a> {
    pub fn of(uri: &'a Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&');
        let (tokens, rest): (Vec<_>, Vec<_>) = pairs.partition(|pair| token_of(pair).is_some());
        Self { tokens: tokens.into_iter().filter_map(token_of).collect(), rest }
    }

    /// The path with what is left of the query.
    pub fn after(&self, path: &str) -> String {
        match self.rest.join("&") {
            rest if rest.is_empty() => path.to_owned(),
            rest => format!("{path}?{rest}"),
        }
    }
}

/// Sends a browser to the same URL without the token, which it has in a cookie then.
///
/// If another site has led here, a redirect would still be that site's doing to the browser, and so
/// its cookie be refused. So the page that comes instead leads on by itself: what it asks for is asked
/// by our own origin.
fn keep_token(request: &HttpRequest, token: &str, asked: &Query<'_>) -> HttpResponse {
    // More slashes than one would be the beginning of another host's name.
    let path = request.uri().path().trim_start_matches(['/', '\\']);
    let secure = match request.connection_info().scheme() {
        "https" => "; Secure",
        _ => "",
    };
    // Without a domain: for this name alone.
    let cookie = format!("{TOKEN_NAME}={token}; Path=/; HttpOnly; SameSite=Lax{secure}");
    let target = asked.after(&format!("/{path}"));
    let mut answer = match is_led_here(request.headers()) {
        true => HttpResponse::Ok(),
        false => HttpResponse::SeeOther(),
    };
    answer
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::SET_COOKIE, cookie));
    match is_led_here(request.headers()) {
        true => answer
            .insert_header((header::CONTENT_SECURITY_POLICY, LEADS_ON))
            .content_type("text/html; charset=utf-8")
            .body(leads_on(&target)),
        false => answer.insert_header((header::LOCATION, target)).finish(),
    }
}

/// A page that does nothing but to lead to another one here.
const LEADS_ON: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

fn leads_on(target: &str) -> String {
    let mut safe = String::new();
    for character in target.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>Nestbox</title>\
         <meta http-equiv=\"refresh\" content=\"0; url={safe}\">\
         <p><a href=\"{safe}\">Go on</a>"
    )
}
