//! `port-forward`: local ports that lead to servers in a sandbox.

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::client::{Client, Socket};
use super::output::{Format, printable, tell};
use super::resolve::resolve;
use super::signals::Signals;
use crate::domain::port::{GuestPort, InvalidPort};

/// Bytes sent in one message at most.
const PIECE: usize = 16 << 10;

/// How long a listener rests that has no descriptors left to accept with.
const REST: Duration = Duration::from_millis(100);

/// Arguments of `port-forward`.
#[derive(Debug, Args)]
pub struct PortForwardArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Port here and port in the sandbox; the same one if one is given, and 0 here for any free one
    #[arg(required = true, value_name = "[LOCAL:]PORT")]
    ports: Vec<Pair>,
    /// Address to listen on here
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
}

/// Where a port here leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: GuestPort,
}

/// The argument names no ports.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum PairError {
    #[error("{0:?} is no port: a number from 0 to 65535, and 0 for any that is free")]
    Local(String),
    #[error(transparent)]
    Remote(#[from] InvalidPort),
}

impl FromStr for Pair {
    type Err = PairError;

    fn from_str(text: &str) -> Result<Self, PairError> {
        let (local, remote) = match text.split_once(':') {
            Some((local, remote)) => {
                let bad = || PairError::Local(local.to_owned());
                let plain = local.bytes().all(|byte| byte.is_ascii_digit());
                (local.parse().ok().filter(|_| plain).ok_or_else(bad)?, remote.parse()?)
            }
            None => {
                let port: GuestPort = text.parse()?;
                (port.get(), port)
            }
        };
        Ok(Self { local, remote })
    }
}

pub(super) async fn run(client: Client, format: Format, args: PortForwardArgs) -> Result<ExitCode> {
    let id = resolve(&client, &args.id).await?;
    let sandbox = client.get(&id).await?;
    if sandbox.state != "running" {
        bail!(
            "the sandbox {id} is {}: its ports can be reached while it is running",
            sandbox.state
        );
    }
    // All of them or none: a script that goes on must find each.
    let mut listeners = Vec::new();
    for pair in args.ports {
        let address = SocketAddr::new(args.address, pair.local);
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        listeners.push((listener.local_addr()?, listener, pair.remote));
    }
    let mut signals = Signals::listen()?;
    tell_where(format, &listeners)?;
    let (client, id): (Arc<Client>, Arc<str>) = (Arc::new(client), id.into());
    for (_, listener, port) in listeners {
        tokio::spawn(forward(client.clone(), id.clone(), listener, port));
    }
    signals.next().await;
    Ok(ExitCode::SUCCESS)
}

fn tell_where(format: Format, all: &[(SocketAddr, TcpListener, GuestPort)]) -> io::Result<()> {
    let view = |(listen, _, port): &(SocketAddr, TcpListener, GuestPort)| serde_json::json!({ "listen": listen, "port": port });
    let forwards: Vec<_> = all.iter().map(view).collect();
    format.print(&serde_json::json!({ "forwards": forwards }), || {
        let line = |(listen, _, port): &(SocketAddr, TcpListener, GuestPort)| {
            format!("listening on {listen}, leads to port {port}\n")
        };
        all.iter().map(line).collect()
    })
}

/// Takes connections for ever.
async fn forward(client: Arc<Client>, id: Arc<str>, listener: TcpListener, port: GuestPort) {
    loop {
        let local = match listener.accept().await {
            Ok((local, _)) => local,
            Err(error) => {
                tell(&format!("nestbox: cannot take a connection: {error}"));
                sleep(REST).await;
                continue;
            }
        };
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move {
            let carried = match client.tunnel(&id, port).await {
                Ok(tunnel) => carry(local, tunnel).await,
                // The local end is closed, which is all that can be said to it.
                Err(error) => Err(error.into()),
            };
            if let Err(error) = carried {
                tell(&format!("nestbox: port {port}: {}", printable(&format!("{error:#}"))));
            }
        });
    }
}

/// Carries bytes both ways, until both have ended or one is gone.
async fn carry(local: TcpStream, tunnel: Socket) -> Result<()> {
    // Each end decides itself what is worth a packet.
    local.set_nodelay(true)?;
    let (mut from_local, mut to_local) = local.into_split();
    let (mut to_sandbox, mut from_sandbox) = tunnel.split();
    let outwards = async {
        let mut piece = vec![0; PIECE];
        loop {
            // A program here that has cut its connection is not heard of any more.
            let size = from_local.read(&mut piece).await.ok()?;
            to_sandbox.send(Message::binary(piece[..size].to_vec())).await.ok()?;
            if size == 0 {
                // The other direction may go on.
                return pending().await;
            }
        }
    };
    let inwards = async {
        while let Some(message) = from_sandbox.next().await {
            match message.context("the connection to the daemon broke")? {
                Message::Binary(bytes) if bytes.is_empty() => drop(to_local.shutdown().await),
                Message::Binary(bytes) => to_local.write_all(&bytes).await?,
                Message::Close(Some(CloseFrame { code: CloseCode::Normal, .. }) | None) => break,
                Message::Close(Some(frame)) => bail!("{}", frame.reason.as_str()),
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        None::<()> = outwards => Ok(()),
        ended = inwards => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_of_ports_may_be_written_as_one() {
        let pair = |local, remote: u32| Pair { local, remote: remote.try_into().unwrap() };
        for (text, want) in
            [("8000", pair(8000, 8000)), ("9000:8000", pair(9000, 8000)), ("0:80", pair(0, 80))]
        {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in ["", "x", "0", "65536", "8000:", "8000:0", "8000:x", "8000:8000:1"] {
            let error = text.parse::<Pair>().unwrap_err();
            assert!(error.to_string().contains("from 1 to 65535"), "{text}: {error}");
        }
        for text in [":", ":80", "65536:80", "x:80", "+1:80"] {
            assert!(matches!(text.parse::<Pair>(), Err(PairError::Local(_))), "{text}");
        }
        assert_eq!("49983".parse::<Pair>(), Err(PairError::Remote(InvalidPort::Agent)));
    }
}
