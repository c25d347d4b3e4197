//! What makes rules about names hold: a resolver and a proxy in the namespace of one guest, to which
//! its rules lead what the guest sends to name servers and to addresses that it knows by name only.
//!
//! ```text
//! guest --port 53--> resolver --allowed names only--> the host's name servers
//!                        \-- addresses of allowed names --> the sets of the rules, before the answer
//! guest --any port--> proxy: TLS or HTTP says a name; allowed -> connected on, else cut
//!                            anything else: only to a port that a rule of such a name opens
//! ```
//!
//! Both live on one thread that has entered the namespace and ends with this guard: their sockets
//! are made there, so what they send is refused by the host as anything from this namespace is. When
//! nobody listens the rules lead nowhere: without the daemon these guests reach less, never more.
//! What all of them together may hold at a time is in [`NameLimits`].

mod bucket;
mod budget;
mod dns;
mod hello;
mod learned;
mod proxy;
mod resolver;
mod watched;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::bucket::Bucket;
use self::budget::Budget;
use self::learned::Learned;
use super::NetworkError;
use super::filter::egress::{DNS_PORT, PROXY_PORT, Reach};
use super::namespace;
use crate::domain::slot::{GATEWAY_ADDRESS, SlotIndex};

/// Connections take two files each: all of them together a quarter of what the daemon may open.
const CONNECTIONS: u64 = 8;

/// Questions take one each: a sixteenth.
const QUESTIONS: u64 = 16;

/// What the resolvers and proxies of one daemon keep to.
#[derive(Debug, Clone)]
pub(super) struct NameLimits {
    /// Questions that are answered to each guest a second.
    rate: NonZeroU32,
    connections: Arc<Budget>,
    questions: Arc<Budget>,
}

impl NameLimits {
    pub fn new(rate: NonZeroU32) -> Self {
        let connections = Budget::new(proxy::MOST_CONNECTIONS, CONNECTIONS);
        let questions = Budget::new(resolver::MOST_QUESTIONS, QUESTIONS);
        Self { rate, connections, questions }
    }
}

/// The resolver and the proxy of one guest, until it is dropped or stopped.
#[derive(Debug)]
pub(super) struct NameGuard {
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What the resolver and the proxy work with.
#[derive(Debug)]
struct Shared {
    slot: SlotIndex,
    reach: watch::Sender<Arc<Reach>>,
    learned: Learned,
    limits: NameLimits,
    questions: Bucket,
}

impl Shared {
    fn reach(&self) -> Arc<Reach> {
        self.reach.borrow().clone()
    }
}

/// The sockets that the rules lead to.
struct Sockets {
    datagrams: UdpSocket,
    streams: TcpListener,
    proxied: TcpListener,
}

impl Sockets {
    async fn bind() -> std::io::Result<Self> {
        Ok(Self {
            datagrams: UdpSocket::bind((GATEWAY_ADDRESS, DNS_PORT)).await?,
            streams: TcpListener::bind((GATEWAY_ADDRESS, DNS_PORT)).await?,
            proxied: TcpListener::bind((GATEWAY_ADDRESS, PROXY_PORT)).await?,
        })
    }
}

impl NameGuard {
    /// Starts both in a slot's namespace and returns when they listen.
    ///
    /// # Errors
    ///
    /// [`NetworkError::StartWorker`], [`NetworkError::NameGuard`].
    pub async fn start(
        slot: SlotIndex,
        reach: &Reach,
        limits: NameLimits,
    ) -> Result<Self, NetworkError> {
        let (reach, _) = watch::channel(Arc::new(reach.clone()));
        let (learned, questions) = (Learned::new(slot), Bucket::new(limits.rate));
        let shared = Arc::new(Shared { slot, reach, learned, limits, questions });
        let stop = CancellationToken::new();
        let (ready, listens) = oneshot::channel();
        let thread = {
            let (shared, stop) = (shared.clone(), stop.clone());
            std::thread::Builder::new()
                .name("nestbox-names".to_owned())
                .spawn(move || run(slot, shared, &stop, ready))
                .map_err(NetworkError::StartWorker)?
        };
        let guard = Self { shared, stop, thread: Some(thread) };
        match listens.await {
            Ok(Ok(())) => Ok(guard),
            Ok(Err(source)) => Err(NetworkError::NameGuard { slot, source }),
            Err(_) => Err(NetworkError::WorkerDied),
        }
    }

    /// Has another reach decide once `rules` has put its rules in place. Addresses that were learned
    /// are forgotten, as the rules have forgotten them.
    ///
    /// # Errors
    ///
    /// That of `rules`; nothing has changed then.
    pub async fn change(
        &self,
        reach: &Reach,
        rules: impl Future<Output = Result<(), NetworkError>>,
    ) -> Result<(), NetworkError> {
        self.shared
            .learned
            .forget(async {
                rules.await?;
                self.shared.reach.send_replace(Arc::new(reach.clone()));
                Ok(())
            })
            .await
    }

    /// Ends both, with all connections through the proxy, and waits until nothing of them is in the
    /// namespace any more.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let Some(thread) = self.thread.take() else { return };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the thread of a resolver panicked");
        }
    }
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The thread's whole life.
fn run(
    slot: SlotIndex,
    shared: Arc<Shared>,
    stop: &CancellationToken,
    ready: oneshot::Sender<std::io::Result<()>>,
) {
    let entered = namespace::enter_slot(slot).and_then(|()| {
        // Of this thread alone: any other would be in another namespace.
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    });
    let runtime = match entered {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let sockets = match Sockets::bind().await {
            Ok(sockets) => sockets,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(()));
        let Sockets { datagrams, streams, proxied } = sockets;
        tokio::select! {
            () = stop.cancelled() => {}
            () = resolver::serve_datagrams(datagrams, shared.clone()) => {}
            () = resolver::serve_streams(streams, shared.clone()) => {}
            () = proxy::serve(proxied, shared) => {}
        }
    });
}
