//! What makes rules about names hold: a resolver and a proxy in the namespace of one guest, to which
//! its rules lead what the guest sends to name servers and to the web's ports.
//!
//! ```text
//! guest --port 53--> resolver --allowed names only--> the host's name servers
//!                        \-- addresses of allowed names --> the set of the rules, before the answer
//! guest --80, 443--> proxy: TLS or HTTP says a name; allowed -> connected on, else cut
//! ```
//!
//! Both live on one thread that has entered the namespace and ends with this guard: their sockets
//! are made there, so what they send is refused by the host as anything from this namespace is. When
//! nobody listens the rules lead nowhere: without the daemon these guests reach less, never more.

mod dns;
mod hello;
mod learned;
mod proxy;
mod resolver;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::learned::Learned;
use super::NetworkError;
use super::egress::{DNS_PORT, WEB_PORT};
use super::namespace;
use crate::domain::egress::Policy;
use crate::domain::slot::{GATEWAY_ADDRESS, SlotIndex};

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
    /// Whom the resolver asks.
    servers: Vec<Ipv4Addr>,
    policy: watch::Sender<Arc<Policy>>,
    learned: Learned,
}

impl Shared {
    fn policy(&self) -> Arc<Policy> {
        self.policy.borrow().clone()
    }
}

/// The sockets that the rules lead to.
struct Sockets {
    datagrams: UdpSocket,
    streams: TcpListener,
    web: TcpListener,
}

impl Sockets {
    async fn bind() -> std::io::Result<Self> {
        Ok(Self {
            datagrams: UdpSocket::bind((GATEWAY_ADDRESS, DNS_PORT)).await?,
            streams: TcpListener::bind((GATEWAY_ADDRESS, DNS_PORT)).await?,
            web: TcpListener::bind((GATEWAY_ADDRESS, WEB_PORT)).await?,
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
        policy: &Policy,
        servers: Vec<Ipv4Addr>,
    ) -> Result<Self, NetworkError> {
        let (policy, _) = watch::channel(Arc::new(policy.clone()));
        let shared = Arc::new(Shared { servers, policy, learned: Learned::new(slot) });
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

    /// Has another policy decide once `rules` has put its rules in place. Addresses that were learned
    /// are forgotten, as the rules have forgotten them.
    ///
    /// # Errors
    ///
    /// That of `rules`; nothing has changed then.
    pub async fn change(
        &self,
        policy: &Policy,
        rules: impl Future<Output = Result<(), NetworkError>>,
    ) -> Result<(), NetworkError> {
        self.shared
            .learned
            .forget(async {
                rules.await?;
                self.shared.policy.send_replace(Arc::new(policy.clone()));
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
        let Sockets { datagrams, streams, web } = sockets;
        tokio::select! {
            () = stop.cancelled() => {}
            () = resolver::serve_datagrams(datagrams, shared.clone()) => {}
            () = resolver::serve_streams(streams, shared.clone()) => {}
            () = proxy::serve(web, shared) => {}
        }
    });
}
