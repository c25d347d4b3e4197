//! One session: an actor that hears its client, beside a task that speaks to it.
//!
//! ```text
//!            start          the command's end,        client's close,
//!                           bad message, lost sandbox  silence, hang-up
//!  waiting ---------> running -----------------> closing -----------------> gone
//! ```
//!
//! What the client sends and the command does not take yet is waited for: meanwhile nothing more is
//! read from the client. What the command prints and the client does not take yet is waited for by
//! the other task, which therefore must not be part of this actor's context.

use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, StreamHandler,
    WrapFuture,
};
use actix_web::{HttpRequest, rt};
use actix_web_actors::ws::{Frame, ProtocolError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::message::{self, Wish};
use crate::actors::control_plane::{ExecEvents, ExecHandle};
use crate::domain::exec::ExecEvent;
use crate::http::websocket::{
    self, Body, Farewell, Frames, Hangup, Heartbeat, Lane, Life, Messages, Outlet, Sockets,
};

/// Where a session is.
enum Phase {
    /// The client has not said yet what to run, since then.
    Waiting(Instant),
    /// It has.
    Running,
    /// All that is left to say is on its way.
    Closing,
}

/// A session. Dropping it ends its command and its connection.
pub struct Session {
    phase: Phase,
    /// The command; none once the session closes.
    handle: Option<ExecHandle>,
    outlet: Outlet,
    /// Has the speaker say its last words.
    part: Option<oneshot::Sender<Farewell>>,
    speaker: rt::task::JoinHandle<()>,
    messages: Messages,
    /// Whether nothing the client may still send can be heard.
    deaf: bool,
    life: Life,
    sockets: Sockets,
    hangup: Option<Hangup>,
}

impl Session {
    /// Begins a session in this thread; gives what it says.
    pub fn begin(
        handle: ExecHandle,
        events: ExecEvents,
        sockets: &Sockets,
        request: &HttpRequest,
        frames: Frames,
    ) -> Body {
        let life = Life::new();
        let (outlet, lane, body) = websocket::open(life.clone());
        let (sockets, hangup) = (sockets.clone(), Hangup::of(request));
        Self::create(move |ctx| {
            ctx.add_stream(frames);
            let (part, parting) = oneshot::channel();
            let session = ctx.address();
            let speaker = rt::spawn(async move {
                speak(events, lane, parting).await;
                session.do_send(AllSaid);
            });
            Self {
                phase: Phase::Waiting(Instant::now()),
                handle: Some(handle),
                outlet,
                part: Some(part),
                speaker,
                messages: Messages::default(),
                deaf: false,
                life,
                sockets,
                hangup,
            }
        });
        body
    }

    /// Ends the command, and says why once the client has taken what was said before.
    fn close(&mut self, farewell: Farewell) {
        self.phase = Phase::Closing;
        self.handle = None;
        if let Some(part) = self.part.take() {
            // A speaker that has ended by itself has said its own last words.
            let _ = part.send(farewell);
        }
    }

    fn hear(&mut self, text: &[u8], ctx: &mut Context<Self>) {
        let wish = match message::wish(text) {
            Ok(wish) => wish,
            Err(error) => return self.close(Farewell::policy(error)),
        };
        let Some(handle) = &mut self.handle else { return };
        match (wish, &self.phase) {
            (_, Phase::Closing) => {}
            (Wish::Start(exec), Phase::Waiting(_)) => {
                handle.start(exec);
                self.phase = Phase::Running;
            }
            (Wish::Start(_), Phase::Running) => {
                let error = "a command was started already, and a session has one";
                self.close(Farewell::policy(error));
            }
            (Wish::Input(_) | Wish::Control(_), Phase::Waiting(_)) => {
                self.close(Farewell::policy("the first message is of type start"));
            }
            (Wish::Input(input), Phase::Running) => {
                let lane = handle.input.clone();
                self.pass(input, lane, ctx);
            }
            (Wish::Control(control), Phase::Running) => {
                let lane = handle.control.clone();
                self.pass(vec![control], lane, ctx);
            }
        }
    }

    /// Passes something on to the command. If that has to wait, so does all the client sends.
    fn pass<T: 'static>(&self, items: Vec<T>, lane: mpsc::Sender<T>, ctx: &mut Context<Self>) {
        let (outlet, period) = (self.outlet.clone(), self.sockets.heartbeat.period);
        let passing = async move {
            for item in items {
                if lane.send(item).await.is_err() {
                    // The command has ended, as the client is about to hear.
                    return;
                }
            }
        };
        let waiting = async move {
            tokio::select! {
                // First: what arrived before the client left is not lost.
                biased;
                () = passing => {}
                () = outlet.gone() => {}
                () = ping_for_ever(&outlet, period) => {}
            }
        };
        ctx.wait(waiting.into_actor(self).map(|(), session, _| {
            // Nobody listened whether it was alive.
            session.life.renew();
        }));
    }

    /// Looks whether the client is still there.
    fn beat(&mut self, ctx: &mut Context<Self>) {
        let Heartbeat { limit, .. } = self.sockets.heartbeat;
        match self.phase {
            Phase::Closing if self.life.silence() > limit => {
                if let Some(hangup) = &self.hangup {
                    hangup.now();
                }
                ctx.stop();
            }
            Phase::Closing => {}
            _ if self.life.silence() > limit => self.close(Farewell::silent()),
            Phase::Waiting(since) if since.elapsed() > limit => {
                self.close(Farewell::policy(format!("no message of type start within {limit:?}")));
            }
            Phase::Waiting(_) | Phase::Running => self.outlet.ping(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.speaker.abort();
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let outlet = self.outlet.clone();
        let gone = async move { outlet.gone().await };
        ctx.spawn(gone.into_actor(self).map(|(), _, ctx| ctx.stop()));
        let ending = self.sockets.ending();
        ctx.spawn(ending.into_actor(self).map(|(), session, _| session.close(Farewell::away())));
        ctx.run_interval(self.sockets.heartbeat.period, Self::beat);
    }
}

impl StreamHandler<Result<Frame, ProtocolError>> for Session {
    fn handle(&mut self, frame: Result<Frame, ProtocolError>, ctx: &mut Context<Self>) {
        self.life.renew();
        let message = match frame {
            Ok(frame) => self.messages.take(frame),
            Err(error) => match websocket::broken(error) {
                Some(farewell) => {
                    self.deaf = true;
                    Err(farewell)
                }
                None => return ctx.stop(),
            },
        };
        match message {
            Ok(Some(websocket::Message::Text(text))) => self.hear(&text, ctx),
            Ok(Some(websocket::Message::Ping(payload))) => self.outlet.pong(payload),
            Ok(Some(websocket::Message::Pong) | None) => {}
            // It answers, or it waits for the answer.
            Ok(Some(websocket::Message::Close)) if self.part.is_none() => ctx.stop(),
            Ok(Some(websocket::Message::Close)) => {
                self.deaf = true;
                self.close(Farewell::done());
            }
            Err(farewell) => self.close(farewell),
        }
    }

    fn finished(&mut self, ctx: &mut Context<Self>) {
        // It hung up, unless it is us who cannot hear it.
        if !self.deaf {
            ctx.stop();
        }
    }
}

/// The client has been told everything that there is to say, or is gone.
#[derive(Message)]
#[rtype(result = "()")]
struct AllSaid;

impl Handler<AllSaid> for Session {
    type Result = ();

    fn handle(&mut self, AllSaid: AllSaid, ctx: &mut Context<Self>) {
        self.phase = Phase::Closing;
        self.handle = None;
        self.part = None;
        // Its close shows that it has read all of it: a connection that is ended before loses what is
        // on its way.
        self.life.renew();
        if self.deaf {
            ctx.stop();
        }
    }
}

/// Says what is heard of the command, as fast as the client takes it, and then why it ends.
async fn speak(mut events: ExecEvents, lane: Lane, mut parting: oneshot::Receiver<Farewell>) {
    let farewell = tokio::select! {
        biased;
        Ok(asked) = &mut parting => asked,
        farewell = relay(&mut events, &lane) => match farewell {
            Ok(farewell) => farewell,
            Err(websocket::Gone) => return,
        },
    };
    drop(events);
    if let Some(error) = &farewell.error
        && lane.say(message::error(error)).await.is_err()
    {
        return;
    }
    let _ = lane.close(&farewell).await;
}

async fn relay(events: &mut ExecEvents, lane: &Lane) -> Result<Farewell, websocket::Gone> {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = lane.gone() => return Err(websocket::Gone),
        };
        match event {
            Some(Ok(event)) => {
                lane.say(message::event(&event)).await?;
                if let ExecEvent::Ended(_) = event {
                    return Ok(Farewell::done());
                }
            }
            Some(Err(error)) => return Ok(error.into()),
            None => return Ok(Farewell::away()),
        }
    }
}

async fn ping_for_ever(outlet: &Outlet, period: Duration) {
    loop {
        sleep(period).await;
        outlet.ping();
    }
}
