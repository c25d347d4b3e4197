//! `GET /v1/events`: what happened to sandboxes and snapshots; a list, or a WebSocket that goes on.

mod query;
mod view;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, get, web};

use self::query::Query;
use super::auth::Caller;
use super::error::{ApiError, only};
use super::websocket::{self, Farewell, Gone, Lane, Sockets, frames, handshake, upgraded};
use crate::actors::control_plane::{ControlPlane, EventFeed};

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
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(events).service(only("/events", "GET"));
}

fn wants_websocket(request: &HttpRequest) -> bool {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.to_ascii_lowercase().contains("websocket"))
}

/// Says what happens, as fast as the client takes it.
async fn tell(mut feed: EventFeed, lane: Lane) -> Result<Farewell, Gone> {
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
