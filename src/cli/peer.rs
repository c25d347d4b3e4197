//! Who is at the other end of a connection on this machine, before a key goes there.
//!
//! A name of a socket, or a port, says nothing about that: whoever is first may listen on a port that a
//! daemon has left. So the other end has to be root, or whoever runs this.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Uid, User};
use tokio::net::UnixStream;

/// The daemon's socket, in its data directory.
pub(super) const SOCKET: &str = "nestbox.sock";

/// A listener's state in `/proc/net/tcp` (TCP_LISTEN in the kernel's `tcp_states.h`).
const LISTENING: &str = "0A";

/// The other end is not who it should be, or is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("cannot reach the daemon at {}: is it running?", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    #[error(
        "{} is of {who}, and others may write to it: a key goes only to root's daemon or one of your \
         own; to use another one, set NESTBOX_URL and NESTBOX_API_KEY",
        dir.display()
    )]
    OpenDirectory { dir: PathBuf, who: Who },
    #[error(
        "{who} listens at {at}, and not the daemon: nothing was sent; is it running? To use another \
         one, set NESTBOX_URL and NESTBOX_API_KEY"
    )]
    Stranger { at: String, who: Who },
    #[error("nobody listens at {0}: is the daemon running?")]
    Nobody(SocketAddr),
    #[error("cannot find out who listens at {at}: set NESTBOX_URL and NESTBOX_API_KEY")]
    Unknown { at: String, source: Option<io::Error> },
}

/// A user, by name if there is one.
#[derive(Debug)]
pub(super) struct Who(u32);

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match User::from_uid(Uid::from_raw(self.0)) {
            Ok(Some(user)) => write!(f, "the user {}", user.name),
            Ok(None) | Err(_) => write!(f, "the user {}", self.0),
        }
    }
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Connects to the daemon's socket in `dir`, if it is one of root's or our own.
///
/// # Errors
///
/// [`PeerError`]; nothing was sent then.
pub(super) async fn connect(dir: &Path) -> Result<UnixStream, PeerError> {
    let path = dir.join(SOCKET);
    let unreachable = |source| PeerError::Unreachable { path: path.clone(), source };
    let open = checked_dir(dir, &unreachable)?;
    // By the directory that was looked at: its name may lead elsewhere by now, and be too long for a
    // socket's (unix(7)).
    let short = format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd());
    let stream = UnixStream::connect(short).await.map_err(unreachable)?;
    let uid = stream.peer_cred().map_err(unreachable)?.uid();
    match is_trusted(uid) {
        true => Ok(stream),
        false => Err(PeerError::Stranger { at: path.display().to_string(), who: Who(uid) }),
    }
}

/// Opens a directory in which only we and root can put anything.
fn checked_dir(
    dir: &Path,
    unreachable: &dyn Fn(io::Error) -> PeerError,
) -> Result<File, PeerError> {
    let mut options = File::options();
    options.read(true).custom_flags(OFlag::O_DIRECTORY.bits());
    let open = options.open(dir).map_err(unreachable)?;
    let metadata = open.metadata().map_err(unreachable)?;
    match is_trusted(metadata.uid()) && metadata.mode() & 0o022 == 0 {
        true => Ok(open),
        false => Err(PeerError::OpenDirectory { dir: dir.to_owned(), who: Who(metadata.uid()) }),
    }
}

/// Looks whether root or we ourselves listen at an address of this machine.
///
/// # Errors
///
/// [`PeerError`].
pub(super) fn check_listener(address: SocketAddr) -> Result<(), PeerError> {
    let mut uids = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => uids.extend(listeners(&text, address)),
            // There need be no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let source = Some(error);
                return Err(PeerError::Unknown { at: address.to_string(), source });
            }
        }
    }
    match uids.iter().find(|uid| !is_trusted(**uid)) {
        Some(uid) => Err(PeerError::Stranger { at: address.to_string(), who: Who(*uid) }),
        None if uids.is_empty() => Err(PeerError::Nobody(address)),
        None => Ok(()),
    }
}

/// The users that listen at an address, by a table of the kernel's.
fn listeners(table: &str, address: SocketAddr) -> Vec<u32> {
    let row = |line: &str| {
        // The number of the row, the local address, the remote one, state, queues, timer, retransmits.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, uid) = (fields.get(1)?, fields.get(3)?, fields.get(7)?);
        let (ip, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let here =
            *state == LISTENING && port == address.port() && covers(ip_of(ip)?, address.ip());
        here.then(|| uid.parse().ok())?
    };
    table.lines().skip(1).filter_map(row).collect()
}

fn covers(listening: IpAddr, asked: IpAddr) -> bool {
    let listening = listening.to_canonical();
    listening.is_unspecified() || listening == asked.to_canonical()
}

/// An address in words of the host's byte order, each in hexadecimal.
fn ip_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_listens_is_found_for_each_kind_of_address() {
        for listen in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let port = listener.local_addr().unwrap().port();
            let ip = if listen.starts_with("[::1]") { "[::1]" } else { "127.0.0.1" };
            let address = format!("{ip}:{port}").parse().unwrap();
            check_listener(address).expect(listen);
            drop(listener);
            assert!(matches!(check_listener(address), Err(PeerError::Nobody(_))), "{listen}");
        }
    }

    #[test]
    fn a_table_is_read_as_the_kernel_writes_it() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
            timeout inode\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
            65534        0 4711 1 0 100 0 0 10 0\n   1: 0100007F:1F91 0100007F:9999 01 \
            00000000:00000000 00:00000000 00000000  1000        0 1 1 0\n   2: 00000000:1F92 \
            00000000:0000 0A 0:0 0:0 0 7 0 1\nodd\n";
        let found = |port: u16| listeners(table, SocketAddr::from(([127, 0, 0, 1], port)));
        if cfg!(target_endian = "little") {
            assert_eq!((found(8080), found(8082)), (vec![65534], vec![7]));
        }
        assert!(found(8081).is_empty(), "a connection is no listener");
        assert!(listeners(table, "192.0.2.1:8080".parse().unwrap()).is_empty());
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_not_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        connect(dir.path()).await.unwrap();
        for mode in [0o777, 0o770, 0o1777] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = connect(dir.path()).await.unwrap_err();
            assert!(matches!(error, PeerError::OpenDirectory { .. }), "{error}");
        }
    }
}
