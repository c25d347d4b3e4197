//! The one table of routes: what is put into it is served and described, and nothing is only one of
//! both. A handler without `#[utoipa::path]` does not compile into it.
//!
//! What an annotation need not say is added here: the section, the key, the failures that every
//! request can have, and the answer to methods that a path does not take.

use std::collections::BTreeMap;

use actix_web::dev::HttpServiceFactory;
use actix_web::web::ServiceConfig;
use serde_json::json;
// Hidden, yet it is how a binding outside of the crate learns an annotation's schemas.
use utoipa::__dev::SchemaReferences;
use utoipa::openapi::path::{HttpMethod, Operation, ParameterIn, Paths};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{OpenApi, RefOr, SecurityRequirement};
use utoipa::{Path, ToSchema};

use super::{API_KEY_SCHEME, failures};
use crate::http::error::only;

type Schemas = Vec<(String, RefOr<Schema>)>;

/// Registers one handler.
type Service = Box<dyn FnOnce(&mut ServiceConfig)>;

/// Parts of the API, in the order in which people want to read about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The life of sandboxes.
    Sandboxes,
    /// Commands, processes and terminals.
    Commands,
    /// Files.
    Files,
    /// What a sandbox may reach, and how it is reached.
    Network,
    /// Named snapshots.
    Snapshots,
    /// What happened.
    Events,
    /// API keys.
    Keys,
    /// The daemon itself.
    Daemon,
}

impl Section {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Sandboxes,
        Self::Commands,
        Self::Files,
        Self::Network,
        Self::Snapshots,
        Self::Events,
        Self::Keys,
        Self::Daemon,
    ];

    /// Its name as a tag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandboxes => "sandboxes",
            Self::Commands => "commands",
            Self::Files => "files",
            Self::Network => "network",
            Self::Snapshots => "snapshots",
            Self::Events => "events",
            Self::Keys => "api-keys",
            Self::Daemon => "daemon",
        }
    }

    /// What is in it.
    pub fn description(self) -> &'static str {
        match self {
            Self::Sandboxes => "Make, look at, pause, resume, fork and destroy sandboxes.",
            Self::Commands => "Run commands and terminals in a sandbox, waited for or followed.",
            Self::Files => "Read, write and watch files of a sandbox, in flat memory.",
            Self::Network => "What a sandbox may reach, and how servers in it are reached.",
            Self::Snapshots => "Keep sandboxes under a name, to make others from them.",
            Self::Events => "What happened to sandboxes and snapshots, in order.",
            Self::Keys => "Who may ask.",
            Self::Daemon => "For those who watch the daemon, and this document.",
        }
    }
}

/// What the messages of a WebSocket are.
pub struct Messages {
    client: Option<String>,
    server: Option<String>,
    schemas: Schemas,
}

impl Messages {
    /// Both sides speak JSON: the client `C`, the daemon `S`.
    pub fn of<C: ToSchema, S: ToSchema>() -> Self {
        let mut messages = Self::from_server::<S>();
        messages.schemas.push((C::name().into_owned(), C::schema()));
        C::schemas(&mut messages.schemas);
        Self { client: Some(C::name().into_owned()), ..messages }
    }

    /// Only the daemon speaks: `S`, in JSON.
    pub fn from_server<S: ToSchema>() -> Self {
        let mut schemas = vec![(S::name().into_owned(), S::schema())];
        S::schemas(&mut schemas);
        Self { client: None, server: Some(S::name().into_owned()), schemas }
    }
}

/// Routes below one prefix.
pub struct Routes {
    prefix: &'static str,
    /// Whether a request needs a key unless its annotation says otherwise.
    keyed: bool,
    section: Section,
    services: Vec<Service>,
    /// Of each path, as the router knows it.
    methods: BTreeMap<String, Vec<HttpMethod>>,
    paths: Paths,
    schemas: BTreeMap<String, RefOr<Schema>>,
}

impl Routes {
    /// Those that come without a key, from the root on.
    pub fn open() -> Self {
        Self::new("", false)
    }

    /// Those below `prefix`, which need a key.
    pub fn keyed(prefix: &'static str) -> Self {
        Self::new(prefix, true)
    }

    fn new(prefix: &'static str, keyed: bool) -> Self {
        Self {
            prefix,
            keyed,
            section: Section::Daemon,
            services: Vec::new(),
            methods: BTreeMap::new(),
            paths: Paths::new(),
            schemas: BTreeMap::new(),
        }
    }

    /// What follows belongs to this section.
    pub fn section(&mut self, section: Section) -> &mut Self {
        self.section = section;
        self
    }

    /// Adds a handler where its macro says.
    pub fn add<H>(&mut self, handler: H) -> &mut Self
    where
        H: HttpServiceFactory + Path + SchemaReferences + 'static,
    {
        self.methods.entry(H::path()).or_default().extend(H::methods());
        self.describe::<H>(&H::path(), None);
        self.page(handler)
    }

    /// Adds a handler that answers with a WebSocket.
    pub fn add_websocket<H>(&mut self, handler: H, messages: Messages) -> &mut Self
    where
        H: HttpServiceFactory + Path + SchemaReferences + 'static,
    {
        let reference = |name: &String| json!({"$ref": format!("#/components/schemas/{name}")});
        let (client, server) = (messages.client.as_ref(), messages.server.as_ref());
        let sides = [("client", client.map(reference)), ("server", server.map(reference))];
        let sides = sides.into_iter().filter_map(|(side, schema)| Some((side, schema?)));
        let extension = json!(sides.collect::<BTreeMap<_, _>>());
        self.keep(messages.schemas);
        self.add(handler);
        let path = format!("{}{}", self.prefix, H::path());
        let item = self.paths.paths.get_mut(&path).expect("it was just added");
        let operation = item.get.as_mut().expect("a WebSocket begins with GET");
        operation.extensions = Some([("x-websocket-messages", extension)].into_iter().collect());
        self
    }

    /// Says that the handler added last is at this path too, as an operation of another name.
    pub fn also<H: Path + SchemaReferences>(&mut self, path: &str, id: &str) -> &mut Self {
        self.methods.entry(path.to_owned()).or_default().extend(H::methods());
        self.describe::<H>(path, Some(id));
        self
    }

    /// Describes what is served by other means than a handler's macro.
    pub fn describe<H: Path + SchemaReferences>(
        &mut self,
        path: &str,
        id: Option<&str>,
    ) -> &mut Self {
        let mut schemas = Schemas::new();
        H::schemas(&mut schemas);
        self.keep(schemas);
        let full = format!("{}{path}", self.prefix);
        let methods = H::methods();
        let several = methods.len() > 1;
        for method in methods {
            let mut operation = self.complete(&full, H::operation());
            if let Some(id) = id {
                operation.operation_id = Some(id.to_owned());
            }
            if several {
                let id = operation.operation_id.unwrap_or_default();
                operation.operation_id = Some(format!("{id}_{}", text(&method).to_lowercase()));
            }
            self.paths.add_path_operation(&full, vec![method], operation);
        }
        self
    }

    /// Adds a page or a file for browsers: no part of the API, and not in the document.
    pub fn page(&mut self, handler: impl HttpServiceFactory + 'static) -> &mut Self {
        self.services.push(Box::new(move |config| {
            config.service(handler);
        }));
        self
    }

    /// Registers all routes, and behind them the answer to other methods.
    pub fn serve(self) -> impl FnOnce(&mut ServiceConfig) {
        move |config| {
            for service in self.services {
                service(config);
            }
            for (path, methods) in self.methods {
                let methods: Vec<&str> = methods.iter().map(text).collect();
                config.service(only(&path, &methods.join(", ")));
            }
        }
    }

    /// Writes all routes into the document.
    pub fn write(self, document: &mut OpenApi) {
        document.paths.merge(self.paths);
        let components = document.components.get_or_insert_default();
        for (name, schema) in self.schemas {
            let before = components.schemas.insert(name.clone(), schema.clone());
            assert!(before.is_none_or(|other| other == schema), "two schemas are called {name}");
        }
    }

    /// An operation with what its annotation need not say.
    fn complete(&self, path: &str, mut operation: Operation) -> Operation {
        operation.tags = Some(vec![self.section.name().to_owned()]);
        if self.keyed && operation.security.is_none() {
            operation.security = Some(vec![SecurityRequirement::new(API_KEY_SCHEME, [""; 0])]);
        }
        if let Some(parameters) = &mut operation.parameters {
            // The same handler may be at a path that says less.
            parameters.retain(|parameter| match parameter {
                RefOr::T(parameter) => {
                    !matches!(parameter.parameter_in, ParameterIn::Path)
                        || path.contains(&format!("{{{}}}", parameter.name))
                }
                RefOr::Ref(_) => true,
            });
        }
        for (status, response) in failures::common(&operation) {
            operation.responses.responses.entry(status).or_insert(response);
        }
        operation
    }

    fn keep(&mut self, schemas: Schemas) {
        for (name, schema) in schemas {
            let before = self.schemas.insert(name.clone(), schema.clone());
            assert!(before.is_none_or(|other| other == schema), "two schemas are called {name}");
        }
    }
}

/// A method as it is written in requests.
fn text(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "GET",
        HttpMethod::Post => "POST",
        HttpMethod::Put => "PUT",
        HttpMethod::Delete => "DELETE",
        HttpMethod::Options => "OPTIONS",
        HttpMethod::Head => "HEAD",
        HttpMethod::Patch => "PATCH",
        HttpMethod::Trace => "TRACE",
    }
}
