//! How many connections there may be, and which one has to go when there are too many.
//!
//! Each takes descriptors, and those are for sandboxes. A connection is a stranger's until a request on
//! it has shown an API key or a sandbox's token: strangers share a part of the budget, and one that
//! comes when it is used up takes the place of another, first of the one that has been idle longest. So
//! whoever has a key always gets in, however many others knock. What comes through the Unix socket is
//! root's, and not counted.
//!
//! How long one may be idle, or take for the head of a request, are the server's own limits
//! (`IDLE` and `HEAD` in [`super::server`]).

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net;

use super::websocket::Hangup;
use crate::actors::metrics::ConnectionCounts;

/// How many strangers are passed over that have just said something.
const LOOKS: usize = 32;

/// Connections that may have been accepted beyond the budget, at least, and not yet been counted.
const UNCOUNTED: usize = 64;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In all.
    pub all: usize,
    /// Of those that have shown neither a key nor a token.
    pub strangers: usize,
}

/// The connections of a server. Clones are the same ones.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    budget: Budget,
    open: Mutex<Open>,
    cut: AtomicU64,
}

#[derive(Default)]
struct Open {
    /// Number of the next change, by which what is older is known.
    clock: u64,
    known: usize,
    strangers: HashMap<u64, Stranger>,
}

/// A connection on which nobody has shown a key.
struct Stranger {
    hangup: Hangup,
    /// When it began to be what it is now.
    since: u64,
    /// Requests on it that have not been answered.
    requests: usize,
}

/// One connection, counted until this is dropped.
pub struct Visit {
    connections: Connections,
    id: u64,
    /// Changes while [`Open`] is locked.
    known: AtomicBool,
}

/// Where requests of a connection come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The network.
    Network,
    /// The Unix socket in the data directory, which only root can open.
    Local,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.0.budget).finish()
    }
}

impl Door {
    /// The one that a request came through.
    pub fn of(request: &HttpRequest) -> Self {
        request.conn_data::<Self>().copied().unwrap_or(Self::Network)
    }
}

impl Connections {
    /// None yet.
    pub fn new(budget: Budget) -> Self {
        let (open, cut) = (Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Inner { budget, open, cut }))
    }

    /// How many may have been accepted at one time. Which one has to go is decided by the thread that gets
    /// a new one: a listener that does not wait for it takes all descriptors when many come at once.
    pub fn accepted_at_most(&self) -> usize {
        let all = self.0.budget.all;
        all + (all / 2).max(UNCOUNTED)
    }

    /// How many there are now, and how many had to go.
    pub fn counts(&self) -> ConnectionCounts {
        let open = self.lock();
        let cut = self.0.cut.load(Ordering::Relaxed);
        ConnectionCounts { known: open.known, strangers: open.strangers.len(), cut }
    }

    /// Takes note of a connection that was just made, or hangs up on it.
    pub fn begin(&self, connection: &dyn Any, data: &mut Extensions) {
        let door = if connection.is::<net::UnixStream>() { Door::Local } else { Door::Network };
        data.insert(door);
        // Without a descriptor to spare nothing could end it, so it is not counted either.
        let Some(hangup) = Hangup::on(connection) else { return };
        data.insert(hangup.clone());
        if door == Door::Network
            && let Some(visit) = self.admit(hangup)
        {
            data.insert(visit);
        }
    }

    fn admit(&self, hangup: Hangup) -> Option<Visit> {
        let budget = self.0.budget;
        let mut open = self.lock();
        let (known, strangers) = (open.known, open.strangers.len());
        if strangers >= budget.strangers || known + strangers >= budget.all {
            self.0.cut.fetch_add(1, Ordering::Relaxed);
            let Some(oldest) = open.next_to_go() else {
                // All are of people with keys: those are not cut for somebody who may have none.
                drop(open);
                hangup.now();
                return None;
            };
            let gone = open.strangers.remove(&oldest);
            gone.expect("it was just found").hangup.now();
        }
        let id = open.tick();
        open.strangers.insert(id, Stranger { hangup, since: id, requests: 0 });
        Some(Visit { connections: self.clone(), id, known: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The stranger that has to go: the one that has been idle longest. Who has said something that
    /// has not been read yet may be about to show a key, and is passed over a few times.
    fn next_to_go(&mut self) -> Option<u64> {
        for _ in 0..LOOKS {
            let id = self.oldest()?;
            let now = self.tick();
            let stranger = self.strangers.get_mut(&id)?;
            if stranger.requests > 0 || !stranger.hangup.is_unheard() {
                return Some(id);
            }
            stranger.since = now;
        }
        self.oldest()
    }

    /// One that waits for nothing, else one that has waited longest.
    fn oldest(&self) -> Option<u64> {
        let order = |stranger: &Stranger| (stranger.requests > 0, stranger.since);
        self.strangers.iter().min_by_key(|(_, stranger)| order(stranger)).map(|(id, _)| *id)
    }
}

impl Visit {
    /// Somebody has shown a key, or a token, on the connection of this request.
    pub fn is_known(request: &HttpRequest) {
        if let Some(visit) = request.conn_data::<Self>() {
            visit.now_known();
        }
    }

    fn now_known(&self) {
        let mut open = self.connections.lock();
        // One that was just cut is in there no more, and stays so.
        if open.strangers.remove(&self.id).is_some() {
            open.known += 1;
            self.known.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        match self.known.load(Ordering::Relaxed) {
            true => open.known -= 1,
            false => drop(open.strangers.remove(&self.id)),
        }
    }
}

/// A request that is being answered: until this is dropped its connection is not idle.
pub struct Busy {
    connections: Connections,
    id: u64,
}

impl Busy {
    /// Of a request by a stranger; others need not be told apart.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        let visit = request.conn_data::<Visit>()?;
        Self::begin(&visit.connections, visit.id)
    }

    fn begin(connections: &Connections, id: u64) -> Option<Self> {
        let mut open = connections.lock();
        open.strangers.get_mut(&id)?.requests += 1;
        drop(open);
        Some(Self { connections: connections.clone(), id })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        let now = open.tick();
        if let Some(stranger) = open.strangers.get_mut(&self.id) {
            stranger.requests -= 1;
            stranger.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    fn pair(listener: &TcpListener) -> (TcpStream, Hangup) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, Hangup::over(listener.accept().unwrap().0))
    }

    fn is_cut(client: &mut TcpStream) -> bool {
        client.set_nonblocking(true).unwrap();
        matches!(client.read(&mut [0]), Ok(0))
    }

    fn bench(all: usize, strangers: usize) -> (TcpListener, Connections) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (listener, Connections::new(Budget { all, strangers }))
    }

    #[test]
    fn the_stranger_that_was_idle_longest_goes_first() {
        let (listener, connections) = bench(10, 3);
        let mut visits: Vec<_> = (0..3)
            .map(|_| {
                let (client, hangup) = pair(&listener);
                (client, connections.admit(hangup).unwrap())
            })
            .collect();
        // The first one is busy, and the second one was until now.
        let busy = Busy::begin(&connections, visits[0].1.id).unwrap();
        drop(Busy::begin(&connections, visits[1].1.id).unwrap());
        for (next, gone) in [(3, 2), (4, 1), (5, 3)] {
            let (client, hangup) = pair(&listener);
            visits.push((client, connections.admit(hangup).unwrap()));
            let cut: Vec<bool> = visits.iter_mut().map(|(client, _)| is_cut(client)).collect();
            assert!(cut[gone], "{next}: {cut:?}");
            assert!(!cut[0] && !cut[next], "{next}: {cut:?}");
        }
        drop(busy);
        let counts = ConnectionCounts { known: 0, strangers: 3, cut: 3 };
        assert_eq!(connections.counts(), counts);
        drop(visits);
        assert_eq!(connections.counts().strangers, 0);
    }

    #[test]
    fn who_has_just_said_something_is_heard_first() {
        use std::io::Write;
        let (listener, connections) = bench(10, 2);
        let mut visits = Vec::new();
        for number in 0..4 {
            let (mut client, hangup) = pair(&listener);
            if number == 0 {
                client.write_all(b"GET ").unwrap();
                while !hangup.is_unheard() {
                    std::thread::yield_now();
                }
            }
            visits.push((connections.admit(hangup).unwrap(), client));
        }
        let open = connections.lock();
        let mut left: Vec<u64> = open.strangers.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [visits[0].0.id, visits[3].0.id]);
        drop(open);
        drop(visits);
    }

    #[test]
    fn if_all_strangers_are_busy_the_one_that_came_first_goes() {
        let (listener, connections) = bench(10, 2);
        let mut visits = Vec::new();
        for _ in 0..3 {
            let (client, hangup) = pair(&listener);
            let visit = connections.admit(hangup).unwrap();
            let busy = Busy::begin(&connections, visit.id).unwrap();
            visits.push((client, visit, busy));
        }
        let cut: Vec<bool> = visits.iter_mut().map(|(client, ..)| is_cut(client)).collect();
        assert_eq!(cut, [true, false, false]);
    }

    #[test]
    fn who_has_shown_a_key_is_never_cut_and_counts_in_the_whole() {
        let (listener, connections) = bench(2, 2);
        let mut known: Vec<_> = (0..2)
            .map(|_| {
                let (client, hangup) = pair(&listener);
                let visit = connections.admit(hangup.clone()).unwrap();
                visit.now_known();
                visit.now_known();
                // As the server has it.
                (client, visit, hangup)
            })
            .collect();
        let (mut late, hangup) = pair(&listener);
        assert!(connections.admit(hangup).is_none());
        assert!(is_cut(&mut late));
        assert!(known.iter_mut().all(|(client, ..)| !is_cut(client)));
        known.pop();
        let (mut late, hangup) = pair(&listener);
        let visit = connections.admit(hangup).unwrap();
        assert!(!is_cut(&mut late));
        drop((known, visit));
        assert_eq!(connections.counts(), ConnectionCounts { known: 0, strangers: 0, cut: 1 });
    }
}
