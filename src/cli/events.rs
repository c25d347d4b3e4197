//! `events`: what happened, and what happens.

use std::collections::HashSet;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio::time::sleep;

use super::client::{Client, ClientError, Event, EventMessage, EventNotice, EventQuery, Stream};
use super::output::{Format, printable, reader_gone, tell, write};
use super::resolve::resolve;

/// A daemon that has ended is looked for again after this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on, until ^C
    #[arg(long, short)]
    follow: bool,
    /// Only events of this sandbox: its id, or a beginning of it that no other has
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// Begin with the last so many
    #[arg(long, value_name = "COUNT", default_value_t = 50, conflicts_with = "after",
        value_parser = clap::value_parser!(u32).range(0..=1000))]
    last: u32,
    /// Begin after the event with this id
    #[arg(long, value_name = "EVENT")]
    after: Option<String>,
}

pub(super) async fn run(client: &Client, format: Format, args: EventsArgs) -> Result<ExitCode> {
    let sandbox = match &args.sandbox {
        Some(sandbox) => Some(resolve(client, sandbox).await?),
        None => None,
    };
    let query = EventQuery { sandbox_id: sandbox, after: args.after.clone() };
    if args.follow {
        tokio::select! {
            followed = follow(client, format, query, args.last) => followed?,
            () = reader_gone() => {}
        }
    } else {
        match query.after {
            Some(_) => show_all_after(client, format, query).await?,
            None => show(&client.last_events(&query, args.last).await?, format)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_all_after(client: &Client, format: Format, query: EventQuery) -> Result<()> {
    let mut cursor = None;
    loop {
        let page = client.events_after(&query, cursor.as_deref()).await?;
        if page.lost {
            tell_loss();
        }
        show(&page.events, format)?;
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

/// Shows the last few events and then what happens. A daemon that ends is looked for again, and
/// nothing that happened meanwhile is left out.
async fn follow(client: &Client, format: Format, mut query: EventQuery, last: u32) -> Result<()> {
    let mut stream = client.follow_events(&query).await?;
    let mut shown = HashSet::new();
    if query.after.is_none() {
        // After the stream has begun, so that nothing is in neither. What is in both is shown once.
        let events = client.last_events(&query, last).await?;
        show(&events, format)?;
        shown.extend(events.into_iter().map(|event| event.id));
    }
    loop {
        let ended = loop {
            match stream.next::<EventMessage>().await {
                Ok(Some(EventMessage::Notice(notice))) => match notice {
                    EventNotice::Start { after } => query.after = Some(after),
                    EventNotice::Lost => tell_loss(),
                    EventNotice::Error { message } => {
                        tell(&format!("nestbox: {}", printable(&message)));
                    }
                },
                Ok(Some(EventMessage::Event(event))) => {
                    query.after = Some(event.id.clone());
                    if !shown.remove(&event.id) {
                        show(&[event], format)?;
                    }
                }
                Ok(None) => break "the daemon has ended the stream".to_owned(),
                Err(ClientError::NoStream { source, .. }) => break source.to_string(),
                Err(error) => return Err(error.into()),
            }
        };
        tell(&format!("nestbox: {}, trying again", printable(&ended)));
        stream = again(client, &query).await?;
    }
}

/// Waits until the daemon is there again.
async fn again(client: &Client, query: &EventQuery) -> Result<Stream, ClientError> {
    loop {
        sleep(PATIENCE).await;
        match client.follow_events(query).await {
            Err(ClientError::NoStream { .. }) => {}
            other => return other,
        }
    }
}

fn tell_loss() {
    tell("nestbox: some events are missing here, they are not kept any more");
}

/// One line an event; as JSON one object a line, so that a reader need not wait for the end.
fn show(events: &[Event], format: Format) -> Result<()> {
    for event in events {
        let line = match format {
            Format::Text => line(event),
            Format::Json => serde_json::to_string(event)?,
        };
        write(&mut io::stdout(), format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

fn line(event: &Event) -> String {
    let text = |text: &Option<String>| text.as_deref().map(printable);
    let what = match (text(&event.snapshot), text(&event.previous), text(&event.state)) {
        (Some(name), _, _) => {
            let done = event.kind.rsplit('.').next().unwrap_or_default();
            format!("snapshot {name} {}", printable(done))
        }
        (None, Some(previous), Some(state)) => format!("{previous} -> {state}"),
        (None, None, Some(state)) => state,
        (None, _, None) => printable(&event.kind),
    };
    let reason = text(&event.reason).map(|reason| format!(": {reason}")).unwrap_or_default();
    let at = event.at.format("%Y-%m-%dT%H:%M:%S%.3fZ");
    let sandbox = text(&event.sandbox_id).unwrap_or_default();
    format!("{at}  {sandbox:20}  {what}{}", reason.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: serde_json::Value) -> Event {
        let mut event = serde_json::json!({ "id": "7", "at": "2026-11-25T12:00:00.5Z" });
        event.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn a_line_says_what_happened_to_whom_and_why() {
        let id = "k3v9x1p0qzt7m2c8rw5b";
        for (json, want) in [
            (
                serde_json::json!({ "type": "sandbox.state", "sandbox_id": id, "state": "pending" }),
                "pending",
            ),
            (
                serde_json::json!({ "type": "sandbox.state", "sandbox_id": id, "state": "error",
                    "previous": "running", "reason": "its VM\nwas \u{1b}[31mkilled" }),
                "running -> error: its VM was \\u{1b}[31mkilled",
            ),
            (
                serde_json::json!({ "type": "snapshot.created", "sandbox_id": id, "snapshot": "py3" }),
                "snapshot py3 created",
            ),
        ] {
            assert_eq!(line(&event(json)), format!("2026-11-25T12:00:00.500Z  {id}  {want}"));
        }
    }

    #[test]
    fn json_shows_what_the_daemon_said() {
        let said = serde_json::json!({ "id": "7", "at": "2026-11-25T12:00:00Z", "type": "new",
            "more": 1 });
        let event: Event = serde_json::from_value(said.clone()).unwrap();
        assert_eq!(serde_json::to_value(event).unwrap(), said);
    }

    #[test]
    fn messages_of_a_stream_are_told_apart() {
        let read = |text: &str| serde_json::from_str::<EventMessage>(text).unwrap();
        assert!(matches!(
            read(r#"{"type":"start","after":"3"}"#),
            EventMessage::Notice(EventNotice::Start { .. })
        ));
        assert!(matches!(read(r#"{"type":"lost"}"#), EventMessage::Notice(EventNotice::Lost)));
        assert!(matches!(
            read(r#"{"type":"error","message":"x"}"#),
            EventMessage::Notice(EventNotice::Error { .. })
        ));
        let event = r#"{"type":"sandbox.state","id":"3","at":"2026-11-25T12:00:00Z"}"#;
        assert!(matches!(read(event), EventMessage::Event(_)));
    }
}
