//! `/docs`: the document for people, who can try it out there. Swagger UI, built into the program:
//! nothing is loaded from elsewhere.

use std::io::{self, Read};
use std::sync::{Arc, LazyLock};

use actix_web::http::StatusCode;
use actix_web::http::header::{self, AcceptEncoding, Encoding, Header};
use actix_web::{HttpRequest, HttpResponse, get, web};
use flate2::read::GzDecoder;
use utoipa_swagger_ui::{Config, serve};

use super::Routes;
use crate::http::browser::guard;
use crate::http::error::{ApiError, Code, only};

/// Nothing but its own files, and connections to whoever has served them. Its icons are `data:`
/// URLs, and its layout is in `style` attributes.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    style-src-attr 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    // Relative, as it may be reached below another path. No validator: that one is on the internet.
    let config = Config::new(["../openapi.json"]).validator_url("none");
    Arc::new(config.use_base_layout().default_models_expand_depth(0))
});

#[get("/docs")]
async fn docs() -> HttpResponse {
    // Its files are named relative to a directory.
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "docs/")).finish()
}

#[get("/docs/{path:.*}")]
async fn file(path: web::Path<String>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let found = serve(&path, CONFIG.clone())
        .map_err(|error| ApiError::new(Code::Internal, error.to_string()))?;
    let file = found.ok_or_else(|| ApiError::foreign(StatusCode::NOT_FOUND))?;
    let mut response = HttpResponse::Ok();
    let mut body = file.bytes.into_owned();
    if file.gzpipped {
        response.insert_header((header::VARY, "accept-encoding"));
        let accepted = AcceptEncoding::parse(&request).ok();
        let best = accepted.and_then(|names| names.negotiate([Encoding::gzip()].iter()));
        if best == Some(Encoding::gzip()) {
            response.insert_header(header::ContentEncoding::Gzip);
        } else {
            body = unpacked(&body).map_err(|e| ApiError::new(Code::Internal, e.to_string()))?;
        }
    }
    Ok(guard(&mut response, POLICY).content_type(file.content_type).body(body))
}

/// A file of this program's for who takes none that is compressed.
fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The routes of this file: pages, which the document does not describe.
pub fn routes(routes: &mut Routes) {
    routes.page(docs).page(file).page(only("/docs", "GET")).page(only("/docs/{path:.*}", "GET"));
}
