//! `GET /v1/events`: what happened to sandboxes and snapshots; a list, or a WebSocket that goes on.

mod query;
mod view;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, get, web};

use self::query::Query;
use super::auth::Caller;
use super::error::ApiError;
use super::openapi::{Messages, Routes, Section};
use super::page::Window;
use super::websocket::{self, CloseReason, Gone, Lane, Sockets, frames, handshake, upgraded};
use crate::actors::control::{ControlPlane, EventFeed};
use crate::domain::id::SandboxId;
use crate::entity::events::EventKind;

/// Tells what happened to sandboxes and snapshots: as a list, or over a WebSocket that goes on.
///
/// A list begins with the newest; with `after` it has what came after that event, the oldest first. A
/// WebSocket says first where it begins, then what came after `after`, and then what happens.
#[utoipa::path(
    operation_id = "listEvents",
    params(
        ("after" = Option<u64>, Query, description = "The id of an event."),
        ("sandbox_id" = inline(Option<SandboxId>), Query, description = "Only those of this sandbox."),
        ("type" = inline(Option<EventKind>), Query, description = "Only those of this kind."),
        Window,
    ),
    responses(
        (status = 101, description = "A WebSocket, if the request asks for one."),
        (status = 200, description = "One page.", body = view::ListView),
    ),
)]
#[get("/events")]
async fn events(
    _: Caller,
    control: web::Data<ControlPlane>,
    sockets: web::Data<Sockets>,
    query: web::Query<Vec<(String, String)>>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let query = Query::parse(query.into_inner())?;
    if !wants_websocket(&request) {
        let (page, limit) = query.page();
        let found = control.events(&query.filter, page, limit).await?;
        return Ok(HttpResponse::Ok().json(view::list(found)));
    }
    let answer = handshake(&request)?;
    let after = query.begins_after()?;
    // Before the upgrade: who may not is told so by a status, as everywhere.
    let feed = control.follow_events(query.filter, after).await?;
    let speech = |lane| tell(feed, lane);
    let body = websocket::listen(&sockets, &request, frames(payload), speech);
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    let messages = Messages::from_server::<view::Message>();
    routes.section(Section::Events).add_websocket(events, messages);
}

fn wants_websocket(request: &HttpRequest) -> bool {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.to_ascii_lowercase().contains("websocket"))
}

/// Says what happens, as fast as the client takes it.
async fn tell(mut feed: EventFeed, lane: Lane) -> Result<CloseReason, Gone> {
    lane.say(view::start(feed.after())).await?;
    loop {
        let news = tokio::select! {
            news = feed.next() => news,
            () = lane.gone() => return Err(Gone),
        };
        let news = match news {
            Ok(news) => news,
            Err(error) => return Ok(error.into()),
        };
        if news.lost {
            lane.say(view::lost()).await?;
        }
        for event in news.events {
            lane.say(view::event(event)).await?;
        }
    }
}
