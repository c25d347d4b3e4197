//! One session with a command or a process: an actor that hears its client, beside a task that speaks
//! to it. Kinds of sessions differ in their [`Language`], and in what they begin with.
//!
//! ```text
//!            begin          the command's end,        client's close,
//!                           bad message, lost sandbox  silence, hang-up
//!  waiting ---------> running -----------------> closing -----------------> gone
//! ```
//!
//! What the client sends and the command does not take yet is waited for: meanwhile nothing more is
//! read from the client. What the command prints and the client does not take yet is waited for by
//! the other task, which therefore must not be part of this actor's context.

pub mod speech;

use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, StreamHandler,
    WrapFuture,
};
use actix_web::{HttpRequest, rt};
use actix_web_actors::ws::{Frame, ProtocolError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::websocket::{
    self, Body, CloseReason, Frames, Hangup, Heartbeat, Lane, Life, Messages, Outlet, Sockets,
};
use crate::actors::control::{ExecEvents, FollowHandle};
use crate::domain::exec::{ExecControl, ExecEvent, ExecInput};

/// What a client wants.
#[derive(Debug)]
pub enum ClientCommand<B> {
    /// To begin, with this.
    Begin(B),
    /// To write this to the command.
    Input(Vec<ExecInput>),
    /// To do this to the command.
    Control(ExecControl),
}

/// What is understood in sessions of one kind, and how they speak.
pub struct Language<B> {
    /// Reads a message, or says what is wrong with it.
    pub hear: fn(&[u8]) -> Result<ClientCommand<B>, String>,
    /// Says what is heard of the command.
    pub say: fn(&ExecEvent) -> String,
    /// What the first message must be.
    pub first: &'static str,
}

/// Whether a session waits for a message to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It does.
    ByClient,
    /// It has begun.
    Done,
}

/// Where a session is.
enum Phase {
    /// The client has not said yet what to run, since then.
    Waiting(Instant),
    /// It has.
    Running,
    /// All that is left to say is on its way.
    Closing,
}

/// A session. Dropping it ends its connection, and lets go of its command.
pub struct Session<B: 'static> {
    language: &'static Language<B>,
    phase: Phase,
    /// The command; none once the session closes.
    handle: Option<FollowHandle<B>>,
    outlet: Outlet,
    /// Has the speaker say its last words.
    part: Option<oneshot::Sender<CloseReason>>,
    speaker: rt::task::JoinHandle<()>,
    messages: Messages,
    /// Whether nothing the client may still send can be heard.
    deaf: bool,
    life: Life,
    sockets: Sockets,
    hangup: Option<Hangup>,
}

impl<B: Send + Unpin + 'static> Session<B> {
    /// Begins a session in this thread; gives what it says.
    pub fn begin(
        language: &'static Language<B>,
        opening: Opening,
        (handle, events): (FollowHandle<B>, ExecEvents),
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
            let say = language.say;
            let speaker = rt::spawn(async move {
                speak(say, events, lane, parting).await;
                session.do_send(AllSaid);
            });
            Self {
                language,
                phase: match opening {
                    Opening::ByClient => Phase::Waiting(Instant::now()),
                    Opening::Done => Phase::Running,
                },
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

    /// Lets go of the command, and says why once the client has taken what was said before.
    fn close(&mut self, farewell: CloseReason) {
        self.phase = Phase::Closing;
        self.handle = None;
        if let Some(part) = self.part.take() {
            // A speaker that has ended by itself has said its own last words.
            let _ = part.send(farewell);
        }
    }

    fn hear(&mut self, text: &[u8], ctx: &mut Context<Self>) {
        let wish = match (self.language.hear)(text) {
            Ok(wish) => wish,
            Err(error) => return self.close(CloseReason::policy(error)),
        };
        let Some(handle) = &mut self.handle else { return };
        match (wish, &self.phase) {
            (_, Phase::Closing) => {}
            (ClientCommand::Begin(with), Phase::Waiting(_)) => {
                handle.begin(with);
                self.phase = Phase::Running;
            }
            (ClientCommand::Begin(_), Phase::Running) => {
                let error = "a command was started already, and a session has one";
                self.close(CloseReason::policy(error));
            }
            (ClientCommand::Input(_) | ClientCommand::Control(_), Phase::Waiting(_)) => {
                let first = self.language.first;
                self.close(CloseReason::policy(format!("the first message is of type {first}")));
            }
            (ClientCommand::Input(input), Phase::Running) => {
                let lane = handle.input.clone();
                self.pass(input, lane, ctx);
            }
            (ClientCommand::Control(control), Phase::Running) => {
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
            _ if self.life.silence() > limit => self.close(CloseReason::silent()),
            Phase::Waiting(since) if since.elapsed() > limit => {
                let first = self.language.first;
                let error = format!("no message of type {first} within {limit:?}");
                self.close(CloseReason::policy(error));
            }
            Phase::Waiting(_) | Phase::Running => self.outlet.ping(),
        }
    }
}

impl<B> Drop for Session<B> {
    fn drop(&mut self) {
        self.speaker.abort();
    }
}

impl<B: Send + Unpin + 'static> Actor for Session<B> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let outlet = self.outlet.clone();
        let gone = async move { outlet.gone().await };
        ctx.spawn(gone.into_actor(self).map(|(), _, ctx| ctx.stop()));
        let ending = self.sockets.ending();
        ctx.spawn(ending.into_actor(self).map(|(), session, _| session.close(CloseReason::away())));
        ctx.run_interval(self.sockets.heartbeat.period, Self::beat);
    }
}

impl<B: Send + Unpin + 'static> StreamHandler<Result<Frame, ProtocolError>> for Session<B> {
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
                self.close(CloseReason::done());
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

impl<B: Send + Unpin + 'static> Handler<AllSaid> for Session<B> {
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
async fn speak(
    say: fn(&ExecEvent) -> String,
    mut events: ExecEvents,
    lane: Lane,
    mut parting: oneshot::Receiver<CloseReason>,
) {
    let farewell = tokio::select! {
        biased;
        Ok(asked) = &mut parting => asked,
        farewell = relay(say, &mut events, &lane) => match farewell {
            Ok(farewell) => farewell,
            Err(websocket::Gone) => return,
        },
    };
    drop(events);
    if let Some(error) = &farewell.error
        && lane.say(speech::error(error)).await.is_err()
    {
        return;
    }
    let _ = lane.close(&farewell).await;
}

async fn relay(
    say: fn(&ExecEvent) -> String,
    events: &mut ExecEvents,
    lane: &Lane,
) -> Result<CloseReason, websocket::Gone> {
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = lane.gone() => return Err(websocket::Gone),
        };
        match event {
            Some(Ok(event)) => {
                lane.say(say(&event)).await?;
                if let ExecEvent::Ended(_) = event {
                    return Ok(CloseReason::done());
                }
            }
            Some(Err(error)) => return Ok(error.into()),
            None => return Ok(CloseReason::away()),
        }
    }
}

async fn ping_for_ever(outlet: &Outlet, period: Duration) {
    loop {
        sleep(period).await;
        outlet.ping();
    }
}
