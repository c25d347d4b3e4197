//! Values of the domain, as the document describes them. The domain itself knows of no document.

use std::borrow::Cow;

use serde_json::json;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Required};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::domain::egress::{Rule, Verdict};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::domain::port::GuestPort;
use crate::domain::process::{ProcessRef, Tag};
use crate::entity::events::EventKind;
use crate::http::error::Code as ErrorCode;

/// Texts with a form.
macro_rules! texts {
    ($($type:ident: $pattern:literal, $example:literal, $description:literal;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String);
                let text = text.pattern(Some($pattern)).examples([json!($example)]);
                text.description(Some($description)).into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                stringify!($type).into()
            }
        }
    )+};
}

texts! {
    SandboxId: "^[a-z][a-z0-9]{19}$", "k3v9x1p0qzt7m2c8rw5b", "Id of a sandbox.";
    TemplateName: "^[a-z0-9][a-z0-9._-]{0,62}$", "debian",
        "Name of what sandboxes are made from: an image, or a snapshot.";
    Tag: "^[A-Za-z][A-Za-z0-9._-]{0,62}$", "web", "Name of a process in the background.";
    ProcessRef: "^([1-9][0-9]{0,9}|[A-Za-z][A-Za-z0-9._-]{0,62})$", "web",
        "A process in the background, by its pid or its tag.";
    Rule: "^[0-9A-Za-z*._/:-]+$", "*.example.com",
        "An IPv4 address, a network such as `10.0.0.0/8`, a name such as `example.com`, or \
         `*.example.com` for all names below it. In `allow` a name may have a port: \
         `example.com:22` opens that one to whatever is spoken there.";
}

/// Choices among words.
macro_rules! choices {
    ($($type:ident: $words:expr, $description:literal;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String);
                text.enum_values(Some($words)).description(Some($description)).into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                stringify!($type).into()
            }
        }
    )+};
}

choices! {
    SandboxState: SandboxState::ALL.map(SandboxState::as_str), "Where a sandbox is in its life.";
    EventKind: EventKind::ALL.map(EventKind::as_str), "What kind of thing has happened.";
    ErrorCode: ErrorCode::ALL.map(ErrorCode::as_str), "What programs can tell errors apart by.";
    Verdict: ["allow", "deny"], "Whether something may be reached.";
}

impl PartialSchema for GuestPort {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)))
            .minimum(Some(1))
            .maximum(Some(u16::MAX))
            .examples([json!(8000)])
            .description(Some("Port of a server in a sandbox; not 49983, the guest agent's."))
            .into()
    }
}

impl ToSchema for GuestPort {
    fn name() -> Cow<'static, str> {
        "GuestPort".into()
    }
}

/// Segments of paths.
macro_rules! segments {
    ($($type:ident: $name:literal, $description:literal;)+) => {$(
        impl IntoParams for $type {
            fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                let segment = ParameterBuilder::new().name($name).parameter_in(ParameterIn::Path);
                let segment = segment.required(Required::True).description(Some($description));
                vec![segment.schema(Some(Self::schema())).build()]
            }
        }
    )+};
}

segments! {
    SandboxId: "id", "The sandbox.";
    TemplateName: "name", "The snapshot.";
    GuestPort: "port", "The port of the server in the sandbox.";
}
