//! What can go wrong, as the document tells it: one response for each status, with all its codes.
//!
//! A handler's annotation names a kind of failures among its responses. What every request can fail
//! with is added where it is registered, see [`common`].

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use crate::http::error::{Body, Code};

/// Kinds of failures, each with its codes.
macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident: $($code:ident)|+;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                references(&[$(Code::$code),+])
            }
        }
    )+};
}

failures! {
    /// Of what brings a sandbox into being: it may be made from what is not there.
    Making: NotFound | InvalidState | Conflict | AgentError | NoSpace;
    /// Of what changes the life of a sandbox.
    Life: InvalidState | AgentError | NoSpace;
    /// Of what is looked up in the host's books about a sandbox that must be there.
    State: InvalidState;
    /// Of what takes or gives back a name.
    Names: Conflict;
    /// Of work that the guest's agent does.
    Work: InvalidState | Conflict | GuestExhausted | AgentError | NoSpace;
    /// Of reading a part of a file.
    Reading: InvalidState | Conflict | AgentError | NoSpace | RangeNotSatisfiable;
    /// Of work whose answer has a bound.
    Listing: InvalidState | Conflict | AgentError | NoSpace | TooLarge;
    /// Of connections to a server in a sandbox.
    Connecting: InvalidState | AgentError | Timeout;
}

/// What a request can fail with whatever it does, as far as the operation tells.
pub fn common(operation: &Operation) -> BTreeMap<String, RefOr<Response>> {
    let mut codes = vec![Code::Internal];
    if operation.security.is_some() {
        codes.extend([Code::Unauthorized, Code::HostUnavailable]);
    }
    if operation.request_body.is_some() || operation.parameters.is_some() {
        codes.push(Code::InvalidRequest);
    }
    let in_path = |parameter: &RefOr<Parameter>| matches!(parameter, RefOr::T(known) if matches!(known.parameter_in, ParameterIn::Path));
    if operation.parameters.iter().flatten().any(in_path) {
        codes.push(Code::NotFound);
    }
    if let Some(RefOr::T(body)) = &operation.request_body
        && body.content.contains_key("application/json")
    {
        codes.push(Code::TooLarge);
    }
    references(&codes)
}

/// The responses themselves, by the names under which operations refer to them.
pub fn components() -> BTreeMap<String, RefOr<Response>> {
    let alone = Code::ALL.iter().map(std::slice::from_ref);
    let together = [Code::InvalidState, Code::Conflict, Code::GuestExhausted];
    let all = alone.chain([&together[..2], &together[..]]);
    all.map(|codes| (name(codes), response(codes).into())).collect()
}

/// The schemas that those responses refer to.
pub fn schemas() -> BTreeMap<String, RefOr<Schema>> {
    let mut schemas = vec![(Body::name().into_owned(), Body::schema())];
    Body::schemas(&mut schemas);
    schemas.into_iter().collect()
}

/// A reference for each status that one of the codes has.
fn references(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status().as_u16()).or_default().push(*code);
    }
    let reference = |codes: &[Code]| RefOr::Ref(Ref::from_response_name(name(codes)));
    by_status.iter().map(|(status, codes)| (status.to_string(), reference(codes))).collect()
}

/// Such as `InvalidStateOrConflict`.
fn name(codes: &[Code]) -> String {
    let names: Vec<String> = codes.iter().map(|code| format!("{code:?}")).collect();
    names.join("Or")
}

fn response(codes: &[Code]) -> Response {
    let mut content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Body::name())));
    let mut lines = Vec::new();
    for code in codes {
        lines.push(format!("`{}`: {}", code.as_str(), code.explanation()));
        let mut error = json!({"code": code.as_str(), "message": code.example()});
        if code.status().is_server_error() {
            error["request_id"] = json!("5f1c2a9be04d7731");
        }
        let example = ExampleBuilder::new().value(Some(json!({"error": error}))).build();
        content = content.examples_from_iter([(code.as_str(), example)]);
    }
    let mut response = ResponseBuilder::new()
        .description(lines.join("\n\n"))
        .content("application/json", content.build());
    let header = |kind: Type, text: &str| {
        let schema = ObjectBuilder::new().schema_type(kind).build();
        HeaderBuilder::new().schema(Some(schema)).description(Some(text)).build()
    };
    for code in codes {
        response = match code {
            Code::HostUnavailable => {
                let text = "Seconds after which another try makes sense.";
                response.header("Retry-After", header(Type::Integer, text))
            }
            Code::RangeNotSatisfiable => {
                let text = "`bytes */LENGTH`: how long the file is.";
                response.header("Content-Range", header(Type::String, text))
            }
            Code::InvalidRequest
            | Code::Unauthorized
            | Code::NotFound
            | Code::MethodNotAllowed
            | Code::InvalidState
            | Code::Conflict
            | Code::GuestExhausted
            | Code::TooLarge
            | Code::Misdirected
            | Code::Internal
            | Code::AgentError
            | Code::Timeout
            | Code::NoSpace => response,
        };
    }
    response.build()
}
