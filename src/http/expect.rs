//! `Expect: 100-continue`: who tells a client to send its body.
//!
//! For a route of the daemon's own the daemon does, at once. For a server in a sandbox that server does, and
//! nobody else: a `100` is passed on when it has come from there, and a server that refuses the body
//! has its answer passed on without the body having been sent.
//!
//! The library asks one service whether a client may go on, says so, and asks another one for the
//! answer. Here the first one begins to answer itself, and the second one goes on with that:
//!
//! ```text
//! request -> first: the application begins to answer --100 from the server--> the client is told to
//!                        |                                              go on -> then: the same goes on
//!                        +-- an answer without it, which the client gets
//! ```
//!
//! What a client sends without waiting is passed on meanwhile: how long it waits is its own affair.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::{HttpMessage, Request};
use actix_web::body::BoxBody;
use actix_web::dev::{
    AppConfig, Response, Service, ServiceFactory, ServiceResponse, fn_factory, fn_service,
};
use actix_web::{Error, HttpRequest};
use tokio::sync::{Notify, OnceCell};

use super::ports::leads_to_server;

/// Tells a client to send its body. In the extensions of each request that waits for that.
#[derive(Clone, Default)]
pub struct GoOn(Arc<Notify>);

impl GoOn {
    /// That of a request; none if its client does not wait, or was told.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Says it. More than once is the same as once.
    pub fn say(&self) {
        self.0.notify_one();
    }

    async fn said(&self) {
        self.0.notified().await;
    }
}

/// What is sent instead of what was asked for.
type Refusal = Response<BoxBody>;

type Answer = Result<ServiceResponse, Refusal>;

/// An answer that is on its way, instead of the request.
struct Begun(Pin<Box<dyn Future<Output = Answer>>>);

/// The application as two services, made once for both.
pub struct Application<F: ServiceFactory<Request>>(Rc<Inner<F>>);

struct Inner<F: ServiceFactory<Request>> {
    factory: F,
    made: OnceCell<Rc<F::Service>>,
}

impl<F> Application<F>
where
    F: ServiceFactory<
            Request,
            Config = AppConfig,
            Response = ServiceResponse,
            Error = Error,
            InitError = (),
        > + 'static,
{
    pub fn new(factory: F) -> Self {
        Self(Rc::new(Inner { factory, made: OnceCell::new() }))
    }

    /// Makes what is asked whether a client that expects it may send its body.
    pub fn first(
        &self,
        domain: &str,
    ) -> impl ServiceFactory<
        Request,
        Config = (),
        Response = Request,
        Error = Refusal,
        InitError = (),
    > + use<F> {
        let (inner, domain): (_, Rc<str>) = (self.0.clone(), domain.into());
        fn_factory(move || {
            let (inner, domain) = (inner.clone(), domain.clone());
            async move {
                let app = inner.made().await?;
                Ok(fn_service(move |request| begin(app.clone(), domain.clone(), request)))
            }
        })
    }

    /// Makes what is asked for answers, of clients too that were told to go on.
    pub fn then(
        &self,
    ) -> impl ServiceFactory<
        Request,
        Config = (),
        Response = ServiceResponse,
        Error = Refusal,
        InitError = (),
        Service: Service<Request, Future: 'static>,
    > + use<F> {
        let inner = self.0.clone();
        fn_factory(move || {
            let inner = inner.clone();
            async move {
                let app = inner.made().await?;
                Ok(fn_service(move |request| go_on(app.clone(), request)))
            }
        })
    }
}

impl<F: ServiceFactory<Request, Config = AppConfig>> Inner<F> {
    async fn made(&self) -> Result<Rc<F::Service>, F::InitError> {
        // What it says of host and address is only for requests that name no host.
        let make = async || self.factory.new_service(AppConfig::default()).await.map(Rc::new);
        self.made.get_or_try_init(make).await.cloned()
    }
}

/// Gives what the client is told to go on with, or the answer that it gets instead.
async fn begin<S>(app: Rc<S>, domain: Rc<str>, request: Request) -> Result<Request, Refusal>
where
    S: Service<Request, Response = ServiceResponse, Error = Error> + 'static,
{
    if !leads_to_server(request.head(), &domain) {
        return Ok(request);
    }
    let told = GoOn::default();
    request.extensions_mut().insert(told.clone());
    let mut begun = Begun(Box::pin(answer(app, request)));
    tokio::select! {
        // If both are there the server has said the one before the other.
        biased;
        () = told.said() => {
            let stand_in = Request::new();
            stand_in.extensions_mut().insert(begun);
            Ok(stand_in)
        }
        answer = &mut begun.0 => Err(answer?.into()),
    }
}

/// Gives the answer to a request, or that to the one for which this one stands.
async fn go_on<S>(app: Rc<S>, request: Request) -> Answer
where
    S: Service<Request, Response = ServiceResponse, Error = Error>,
{
    let begun = request.extensions_mut().remove::<Begun>();
    match begun {
        Some(begun) => begun.0.await,
        None => answer(app, request).await,
    }
}

async fn answer<S>(app: Rc<S>, request: Request) -> Answer
where
    S: Service<Request, Response = ServiceResponse, Error = Error>,
{
    app.call(request).await.map_err(|error| error.error_response().into())
}
