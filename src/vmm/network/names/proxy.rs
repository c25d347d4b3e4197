//! The proxy: takes a guest's connections to addresses that it knows by name only, looks which name
//! they speak of, and connects them on to where they were going, or cuts them.
//!
//! What is neither TLS nor HTTP, or waits for the server to speak first, says no name. It passes where
//! the policy opens that very port of a name that has led to the address, and where the address alone
//! is allowed. There the server is connected to at once, because it may be the one that begins.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::Shared;
use super::budget::Place;
use super::hello::{LIMIT, Sought, look};
use super::watched::Watched;
use crate::domain::egress::{Rule, Target, Verdict};
use crate::domain::slot::GATEWAY_ADDRESS;
use crate::vmm::network::filter::egress::Reach;

/// Connections of one guest at a time; more wait. Each takes two files of the daemon and 16 KiB.
pub(super) const MOST_CONNECTIONS: usize = 256;

/// How long a client may take to say its name: from the beginning where it must say one, else from its
/// first byte on.
const NAME_LIMIT: Duration = Duration::from_secs(3);

/// How long a server may take to accept: as long as a guest's own kernel would wait for it, which is 127 s
/// with six retries (tcp_syn_retries in tcp(7)). Guests need not wait that long, and their places are
/// given to others if those are needed.
const CONNECT_LIMIT: Duration = Duration::from_secs(130);

/// How long a connection may be silent. Longer than programs that keep connections alive are.
const IDLE_LIMIT: Duration = Duration::from_secs(60 * 60);

const PAUSE: Duration = Duration::from_millis(20);

/// Takes connections, for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        // One that has no place yet waits here, and the others in the kernel.
        let place = shared.limits.connections.place(shared.slot).await;
        let shared = shared.clone();
        tokio::spawn(async move {
            // Whoever waits sees the connection end, and how.
            let _ = keep(client, &shared, &place).await;
        });
    }
}

/// What a connection is about.
struct Purpose {
    server: SocketAddrV4,
    /// The rules that open this port of the address to anything.
    opened_by: BTreeSet<Rule>,
    sought: Sought,
}

impl Purpose {
    fn verdict(&self, reach: &Reach) -> Verdict {
        let address = *self.server.ip();
        if reach.policy.closes(address, reach.lan) {
            return Verdict::Deny;
        }
        let name = match &self.sought {
            Sought::Name(name) => Some(name.as_str()),
            Sought::Foreign if self.is_opened(reach) => return Verdict::Allow,
            Sought::Foreign | Sought::Nameless | Sought::More => None,
            Sought::Unreadable => return Verdict::Deny,
        };
        let (address, port) = (Some(address), Some(self.server.port()));
        reach.policy.decide(Target { address, name, port })
    }

    /// Whether a rule that led here still stands.
    fn is_opened(&self, reach: &Reach) -> bool {
        reach.policy.allow().any(|rule| self.opened_by.contains(rule))
    }
}

/// Carries a connection to its end, which comes sooner if nobody uses it or its place is needed.
async fn keep(client: TcpStream, shared: &Shared, place: &Place) -> io::Result<()> {
    client.set_zero_linger()?;
    let server = destination(&client)?;
    let client = Watched { stream: client, activity: place.activity.clone() };
    tokio::select! {
        carried = carry(client, server, shared) => carried,
        () = place.cut.cancelled() => Ok(()),
        () = place.activity.idle_for(IDLE_LIMIT) => Ok(()),
    }
}

/// Carries a connection. Unless that is the end of all that was to be said, the guest sees a
/// reset: a plain end would look like one.
async fn carry(mut client: Watched, server: SocketAddrV4, shared: &Shared) -> io::Result<()> {
    let mut reach = shared.reach.subscribe();
    let now = reach.borrow_and_update().clone();
    let opened_by = shared.learned.opened_by(server).await;
    // Until it says something it may be anything.
    let mut purpose = Purpose { server, opened_by, sought: Sought::Foreign };
    let mut first = Vec::new();
    let mut upstream = None;
    purpose.sought = match purpose.verdict(&now) {
        Verdict::Deny => {
            // What is silent is as good as what says no name.
            let sought = timeout(NAME_LIMIT, name(&mut client, &mut first)).await;
            sought.unwrap_or(Ok(Sought::Unreadable))?
        }
        Verdict::Allow => {
            let server = upstream.insert(connect(server).await?);
            tokio::select! {
                biased;
                sought = name(&mut client, &mut first) => sought?,
                spoken = server.readable() => spoken.map(|()| Sought::Foreign)?,
            }
        }
    };
    let denied = |reach: &Reach| purpose.verdict(reach) == Verdict::Deny;
    let now = reach.borrow_and_update().clone();
    if denied(&now) {
        return Ok(());
    }
    let mut upstream = match upstream {
        Some(upstream) => upstream,
        None => connect(server).await?,
    };
    let carried = async {
        upstream.write_all(&first).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    tokio::select! {
        carried = carried => carried?,
        // Or the guard is gone, and this with it.
        _ = reach.wait_for(|reach| denied(reach)) => return Ok(()),
    };
    // What is still on its way to the guest gets there.
    setsockopt(&client.stream, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 })?;
    Ok(())
}

async fn connect(server: SocketAddrV4) -> io::Result<TcpStream> {
    timeout(CONNECT_LIMIT, TcpStream::connect(server)).await.map_err(io::Error::from)?
}

/// Where the guest believes that it is connected.
fn destination(client: &TcpStream) -> io::Result<SocketAddrV4> {
    let found = getsockopt(client, sockopt::OriginalDst)?;
    let address = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
    match address == GATEWAY_ADDRESS {
        // It was not led here.
        true => Err(io::ErrorKind::InvalidInput.into()),
        false => Ok(SocketAddrV4::new(address, u16::from_be(found.sin_port))),
    }
}

/// Reads until the name is known; all that was read is in `first`, also if nobody waits any more.
async fn name(client: &mut Watched, first: &mut Vec<u8>) -> io::Result<Sought> {
    let mut rest = client.take(LIMIT as u64);
    if rest.read_buf(first).await? == 0 {
        // Nothing comes.
        return Ok(Sought::Foreign);
    }
    let whole = async {
        loop {
            match look(first) {
                Sought::More => {}
                sought => return Ok(sought),
            }
            if rest.read_buf(first).await? == 0 {
                // What had begun to say a name is not believed.
                return Ok(Sought::Unreadable);
            }
        }
    };
    timeout(NAME_LIMIT, whole).await.unwrap_or(Ok(Sought::Unreadable))
}
