//! `/test`: the browser page. Its files are those in `static/`, built into the program.
//!
//! No key is needed to load them: they hold no secret, and the page asks for the key itself. They
//! load nothing from elsewhere, and the policy that comes with them has browsers see to that.

use std::collections::HashMap;
use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, EntityTag, Header, IfNoneMatch};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, routes, web};
use sha2::{Digest, Sha256};

use super::error::{ApiError, only};
use super::openapi::Routes;

/// The page itself; the others are what it loads.
const PAGE: &str = "index.html";

/// Nothing but the page's own files, and connections to whoever has served it; no markup made of
/// text, no frames around it. Colours that a program in the terminal mixes are `style` attributes.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    style-src-attr 'unsafe-inline'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Of each file its path below `static/` and what is in it.
macro_rules! files {
    ($($path:literal,)*) => {
        &[$(($path, include_bytes!(concat!("../../static/", $path)) as &[u8]),)*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "css/base.css",
    "css/layout.css",
    "css/narrow.css",
    "css/parts.css",
    "icon.svg",
    "index.html",
    "js/actions.js",
    "js/api.js",
    "js/ask.js",
    "js/bytes.js",
    "js/command.js",
    "js/create.js",
    "js/details.js",
    "js/dom.js",
    "js/files.js",
    "js/gate.js",
    "js/key.js",
    "js/list.js",
    "js/main.js",
    "js/metrics.js",
    "js/notice.js",
    "js/panel.js",
    "js/route.js",
    "js/screen.js",
    "js/snapshots.js",
    "js/store.js",
    "js/tabs.js",
    "js/terminal-styles.js",
    "js/terminal.js",
    "js/timings.js",
    "js/transfer.js",
    "js/words.js",
    "vendor/README.md",
    "vendor/xterm/LICENSE-addon-fit",
    "vendor/xterm/LICENSE-xterm",
    "vendor/xterm/addon-fit.mjs",
    "vendor/xterm/xterm.css",
    "vendor/xterm/xterm.mjs",
];

/// A file as it is served.
struct Asset {
    content: &'static [u8],
    content_type: &'static str,
    /// Changes with the content.
    tag: EntityTag,
}

static ASSETS: LazyLock<HashMap<&str, Asset>> = LazyLock::new(|| {
    let asset = |(path, content): &(&'static str, &'static [u8])| {
        let digest = Sha256::digest(content);
        let tag = hex::encode(&digest[..16]);
        let tag = EntityTag::new_strong(tag);
        (*path, Asset { content, content_type: content_type(path), tag })
    };
    FILES.iter().map(asset).collect()
});

/// By the end of its name; browsers take no script and no style sheet under a wrong one.
fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[routes]
#[get("/test")]
#[head("/test")]
async fn page(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    serve(&request, PAGE)
}

#[routes]
#[get("/test/{path:.*}")]
#[head("/test/{path:.*}")]
async fn file(request: HttpRequest, path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    serve(&request, &path)
}

fn serve(request: &HttpRequest, path: &str) -> Result<HttpResponse, ApiError> {
    let asset = ASSETS.get(path).ok_or_else(|| ApiError::foreign(StatusCode::NOT_FOUND))?;
    let mut response = match has(request, &asset.tag) {
        true => HttpResponse::NotModified(),
        false => HttpResponse::Ok(),
    };
    guard(&mut response, POLICY).insert_header(header::ETag(asset.tag.clone()));
    if has(request, &asset.tag) {
        return Ok(response.finish());
    }
    // Of the answer to HEAD the server leaves the body out, and keeps its length.
    Ok(response.content_type(asset.content_type).body(asset.content))
}

/// What comes with every file for browsers: what it may do there, and that it is kept, but asked for
/// each time, since another version of the program has other files.
pub fn guard<'a>(
    response: &'a mut HttpResponseBuilder,
    policy: &'static str,
) -> &'a mut HttpResponseBuilder {
    response
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, policy))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::CROSS_ORIGIN_OPENER_POLICY, "same-origin"))
}

/// Whether the client has this version already.
fn has(request: &HttpRequest, tag: &EntityTag) -> bool {
    match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    }
}

/// The routes of this file: pages, which the API's description leaves out.
pub fn routes(routes: &mut Routes) {
    routes.page(page).page(file);
    routes.page(only("/test", "GET, HEAD")).page(only("/test/{path:.*}", "GET, HEAD"));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn below(dir: &Path, root: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let paths = entries.flat_map(|path| match path.is_dir() {
            true => below(&path, root),
            false => vec![path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()],
        });
        paths.collect()
    }

    #[test]
    fn every_file_of_the_page_is_built_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("static");
        let mut there = below(&root, &root);
        there.sort();
        let built_in: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(there, built_in);
    }
}
