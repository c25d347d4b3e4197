//! The proxy: takes a guest's connections to the web's ports, looks which name they speak of, and
//! connects them on to where they were going, or cuts them.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Shared;
use super::hello::{LIMIT, Sought, look};
use crate::domain::egress::{Policy, Verdict};
use crate::domain::slot::GATEWAY_ADDRESS;

/// Connections of one guest at a time; more wait. Each takes two files of the daemon and 16 KiB.
const MOST_CONNECTIONS: usize = 256;

/// How long a client may take to say its name; one that is silent waits for the server to speak.
const NAME_LIMIT: Duration = Duration::from_secs(3);

/// How long a server may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(20);

/// Takes connections, for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            // Whoever waits sees the connection end, and how.
            let _ = carry(client, &shared).await;
            drop(place);
        });
    }
}

/// What a connection is about.
struct Purpose {
    server: SocketAddrV4,
    sought: Sought,
}

impl Purpose {
    fn verdict(&self, policy: &Policy) -> Verdict {
        let address = Some(*self.server.ip());
        match &self.sought {
            Sought::Name(name) => policy.decide(address, Some(name)),
            Sought::Nameless | Sought::More => policy.decide(address, None),
            Sought::Unreadable => Verdict::Deny,
        }
    }
}

/// Carries a connection to its end. Unless that is the end of all that was to be said, the guest sees a
/// reset: a plain end would look like one.
async fn carry(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_zero_linger()?;
    let mut policy = shared.policy.subscribe();
    let server = destination(&client)?;
    let (sought, first) = name(&mut client).await?;
    let purpose = Purpose { server, sought };
    let denied = |policy: &Policy| purpose.verdict(policy) == Verdict::Deny;
    let now = policy.borrow_and_update().clone();
    if denied(&now) {
        return Ok(());
    }
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect(server)).await;
    let mut server = connected.map_err(io::Error::from)??;
    let carried = async {
        server.write_all(&first).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        carried = carried => carried?,
        // Or the guard is gone, and this with it.
        _ = policy.wait_for(|policy| denied(policy)) => return Ok(()),
    };
    // What is still on its way to the guest gets there.
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 })?;
    Ok(())
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

/// Reads until the name is known; gives all that was read.
async fn name(client: &mut TcpStream) -> io::Result<(Sought, Vec<u8>)> {
    let deadline = Instant::now() + NAME_LIMIT;
    let mut first = Vec::new();
    loop {
        match look(&first) {
            Sought::More => {}
            sought => return Ok((sought, first)),
        }
        let mut rest = (&mut *client).take((LIMIT - first.len()) as u64);
        match timeout_at(deadline, rest.read_buf(&mut first)).await {
            // Nothing more comes: what is there says no name. What had begun to is not believed.
            Ok(Ok(0)) | Err(_) => {
                let sought = if first.is_empty() { Sought::Nameless } else { Sought::Unreadable };
                return Ok((sought, first));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}
