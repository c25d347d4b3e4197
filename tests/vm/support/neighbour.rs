//! The neighbour: a local user without rights, on the test's machine. What it does, it does with a
//! thread's own credentials, so its sockets belong to that user as those of any program of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nestbox::domain::slot::SlotIndex;
use nix::libc;

/// Somebody without rights: `nobody`.
pub const NOBODY: u32 = 65_534;

/// Where the agent of a guest listens.
const AGENT: u16 = 49_983;

/// Where tests have a guest serve something else.
const SERVER: u16 = 8000;

/// Does something as another user, in the caller's namespaces.
pub fn as_user<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
    let worker = thread::spawn(move || {
        become_user(uid).expect("another user");
        work()
    });
    worker.join().expect("no panic as another user")
}

/// Takes another user's place with the calling thread alone: the C library's functions would take all
/// threads along.
fn become_user(uid: u32) -> io::Result<()> {
    let done = |result: libc::c_long| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the calls take plain numbers, and an empty list of groups.
    unsafe {
        done(libc::syscall(libc::SYS_setgroups, 0_usize, std::ptr::null::<libc::gid_t>()))?;
        done(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        done(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

/// What came of attempts to connect.
#[derive(Debug, Default)]
pub struct Tries {
    /// How many there were of each outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// The slots that were tried.
    pub slots: BTreeSet<u32>,
    /// What took a connection.
    pub reached: BTreeSet<SocketAddr>,
}

impl Tries {
    /// Panics unless there were some, and each was refused on this machine. One that nobody answered
    /// in time got through to somebody, or to where somebody could be at any moment.
    #[track_caller]
    pub fn all_were_refused(&self) {
        assert!(self.reached.is_empty(), "{self:?}");
        // Without a route while a link comes or goes.
        let harmless = ["ConnectionRefused", "NetworkUnreachable", "HostUnreachable"];
        let others = self.outcomes.keys().filter(|it| !harmless.contains(&it.as_str()));
        assert_eq!(others.count(), 0, "{self:?}");
        assert!(self.outcomes.contains_key("ConnectionRefused"), "{self:?}");
    }
}

/// Tries to connect to every guest that there is, again and again, until it is stopped.
pub struct Prowler {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Tries>,
}

impl Prowler {
    /// Begins, as a user, on the machine of the calling thread.
    pub fn start(uid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let worker = thread::spawn(move || {
            become_user(uid).expect("another user");
            let mut tries = Tries::default();
            while !stopped.load(Ordering::Relaxed) {
                for slot in slots_here() {
                    tries.slots.insert(slot.get());
                    for port in [AGENT, SERVER] {
                        try_guest(SocketAddr::from((slot.access_address(), port)), &mut tries);
                    }
                }
                thread::sleep(Duration::from_millis(2));
            }
            tries
        });
        Self { stop, worker }
    }

    /// Ends, and says what came of it.
    pub fn stop(self) -> Tries {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().expect("no panic of the neighbour")
    }
}

/// The slots whose links are on the machine of the calling thread: anybody may list these.
pub fn slots_here() -> Vec<SlotIndex> {
    let Ok(links) = nix::net::if_::if_nameindex() else { return Vec::new() };
    let slot = |name: &std::ffi::CStr| SlotIndex::of_host_link(name.to_str().ok()?);
    links.iter().filter_map(|link| slot(link.name())).collect()
}

fn try_guest(guest: SocketAddr, tries: &mut Tries) {
    // Longer than a guest takes that answers, and shorter than a test can bear often.
    let outcome = match TcpStream::connect_timeout(&guest, Duration::from_millis(200)) {
        Ok(_) => {
            tries.reached.insert(guest);
            "connected".to_owned()
        }
        Err(error) => format!("{:?}", error.kind()),
    };
    *tries.outcomes.entry(outcome).or_default() += 1;
}

/// Whether the agent of a slot's guest takes a connection from a user.
pub fn reaches_agent(uid: u32, address: Ipv4Addr) -> bool {
    as_user(uid, move || {
        let limit = Duration::from_secs(5);
        TcpStream::connect_timeout(&SocketAddr::from((address, AGENT)), limit).is_ok()
    })
}
