//! Where the daemon listens: at an address, and on a socket in the data directory.

use std::fs::{File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::data_dir::write_private;
use super::reserve::Reserve;
use super::{SOCKET_FILE, URL_FILE};
use crate::config::Config;
use crate::http::Listeners;

/// Binds the API's address and the socket for the command line, and writes the URL into the data
/// directory.
///
/// # Errors
///
/// If the port is taken, with what to do.
pub fn bind(config: &Config, reserve: &Reserve) -> Result<(Listeners, String)> {
    let listener = TcpListener::bind(config.listen).with_context(|| {
        format!(
            "cannot listen on {}: choose another address with --listen (port 0 picks a free one)",
            config.listen
        )
    })?;
    find_out_who_vanished(&listener).context("cannot set up the listener")?;
    let mut address = listener.local_addr().context("cannot learn the port")?;
    if address.ip().is_unspecified() {
        address = SocketAddr::from(([127, 0, 0, 1], address.port()));
    }
    let url = format!("http://{address}");
    let unix = bind_socket(&config.data_dir)?;
    let (path, text) = (config.data_dir.join(URL_FILE), format!("{url}\n"));
    let written = reserve.insist(|| write_private(&path, &text));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok((Listeners { tcp: listener, unix: Some(unix) }, url))
}

/// Binds the socket in the data directory. Who holds the lock on that removes what a daemon left that
/// was killed. The directory is root's alone, so the socket is from its first moment on.
fn bind_socket(data_dir: &Path) -> Result<UnixListener> {
    let path = data_dir.join(SOCKET_FILE);
    let failed = || format!("cannot listen on {}", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(failed);
        }
        _ => {}
    }
    // By its directory's descriptor: the name of a socket has 107 bytes at most, that of a directory
    // may have more (unix(7)).
    let dir = File::open(data_dir).with_context(failed)?;
    let short = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
    let listener = UnixListener::bind(short).with_context(failed)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).with_context(failed)?;
    Ok(listener)
}

/// Ends connections whose client is gone without having said so, within two minutes: else an upload
/// of one would keep its sandbox alive for ever. Connections take this over from their listener.
fn find_out_who_vanished(listener: &TcpListener) -> nix::Result<()> {
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &60)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &15)?;
    setsockopt(listener, sockopt::TcpKeepCount, &4)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn connections_are_asked_whether_anybody_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        find_out_who_vanished(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, _) = listener.accept().unwrap();
        assert!(getsockopt(&connection, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&connection, sockopt::TcpKeepIdle).unwrap(), 60);
    }
}
