//! A session in which only the daemon speaks: its client listens, and shows that it is there.
//!
//! As everywhere, who speaks is a task beside the actor that hears: it waits for the client to take
//! what was said, and the actor must not.

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message as ActorMessage,
    StreamHandler, WrapFuture,
};
use actix_web::{HttpRequest, rt};
use actix_web_actors::ws::{Frame, ProtocolError};
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Body, CloseReason, Frames, Gone, Hangup, Lane, Life, Message, Messages, Outlet, Sockets,
    broken, open,
};

/// Begins a session in this thread; gives what it says. `speech` says it, and ends with why there is
/// no more to say; it is dropped when the session ends otherwise.
pub fn listen<S>(
    sockets: &Sockets,
    request: &HttpRequest,
    frames: Frames,
    speech: impl FnOnce(Lane) -> S,
) -> Body
where
    S: Future<Output = Result<CloseReason, Gone>> + 'static,
{
    let life = Life::new();
    let (outlet, lane, body) = open(life.clone());
    let (sockets, hangup) = (sockets.clone(), Hangup::of(request));
    let speech = speech(lane.clone());
    Listener::create(move |ctx| {
        ctx.add_stream(frames);
        let (part, parting) = oneshot::channel();
        let listener = ctx.address();
        let speaker = rt::spawn(async move {
            speak(speech, lane, parting).await;
            listener.do_send(AllSaid);
        });
        Listener {
            outlet,
            part: Some(part),
            speaker,
            messages: Messages::default(),
            phase: Phase::Open,
            deaf: false,
            life,
            sockets,
            hangup,
        }
    });
    body
}

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There may be more to say.
    Open,
    /// All that is left to say is on its way.
    Closing,
}

/// A session. Dropping it ends the speech and the connection.
struct Listener {
    outlet: Outlet,
    /// Has the speaker say its last words.
    part: Option<oneshot::Sender<CloseReason>>,
    speaker: rt::task::JoinHandle<()>,
    messages: Messages,
    phase: Phase,
    /// Whether nothing the client may still send can be heard.
    deaf: bool,
    life: Life,
    sockets: Sockets,
    hangup: Option<Hangup>,
}

impl Listener {
    /// Ends the speech, and says why once the client has taken what was said before.
    fn close(&mut self, farewell: CloseReason) {
        self.phase = Phase::Closing;
        if let Some(part) = self.part.take() {
            // A speaker that has ended by itself has said its own last words.
            let _ = part.send(farewell);
        }
    }

    /// Looks whether the client is still there.
    fn beat(&mut self, ctx: &mut Context<Self>) {
        let silent = self.life.silence() > self.sockets.heartbeat.limit;
        match (self.phase, silent) {
            (Phase::Open, false) => self.outlet.ping(),
            (Phase::Open, true) => self.close(CloseReason::silent()),
            (Phase::Closing, false) => {}
            (Phase::Closing, true) => {
                if let Some(hangup) = &self.hangup {
                    hangup.now();
                }
                ctx.stop();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.speaker.abort();
    }
}

impl Actor for Listener {
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

impl StreamHandler<Result<Frame, ProtocolError>> for Listener {
    fn handle(&mut self, frame: Result<Frame, ProtocolError>, ctx: &mut Context<Self>) {
        self.life.renew();
        let message = match frame {
            Ok(frame) => self.messages.take(frame),
            Err(error) => match broken(error) {
                Some(farewell) => {
                    self.deaf = true;
                    Err(farewell)
                }
                None => return ctx.stop(),
            },
        };
        match message {
            Ok(Some(Message::Text(_))) => {
                self.close(CloseReason::policy("this session takes no messages"));
            }
            Ok(Some(Message::Ping(payload))) => self.outlet.pong(payload),
            Ok(Some(Message::Pong) | None) => {}
            // It answers, or it waits for the answer.
            Ok(Some(Message::Close)) if self.part.is_none() => ctx.stop(),
            Ok(Some(Message::Close)) => {
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
#[derive(ActorMessage)]
#[rtype(result = "()")]
struct AllSaid;

impl Handler<AllSaid> for Listener {
    type Result = ();

    fn handle(&mut self, AllSaid: AllSaid, ctx: &mut Context<Self>) {
        self.phase = Phase::Closing;
        self.part = None;
        // Its close shows that it has read all of it: a connection that is ended before loses what is
        // on its way.
        self.life.renew();
        if self.deaf {
            ctx.stop();
        }
    }
}

/// Has the speech held until it is over or broken off, and then says why it is.
async fn speak(
    speech: impl Future<Output = Result<CloseReason, Gone>>,
    lane: Lane,
    mut parting: oneshot::Receiver<CloseReason>,
) {
    let farewell = tokio::select! {
        biased;
        Ok(asked) = &mut parting => asked,
        farewell = speech => match farewell {
            Ok(farewell) => farewell,
            Err(Gone) => return,
        },
    };
    if let Some(error) = &farewell.error {
        let message = json!({ "type": "error", "message": error });
        if lane.say(message.to_string()).await.is_err() {
            return;
        }
    }
    let _ = lane.close(&farewell).await;
}
