//! A process that is what a VM is for its pager: it has anonymous memory, registers it with a
//! userfaultfd, gives that away, and touches pages when it is told to.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nestbox::vmm::storage::memory::{PAGE_SIZE, Region};
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Gid, Uid, setgid, setuid};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

/// What the process is to do, in the environment: control socket, pager's socket, user, handshake,
/// and pages of each region.
const ROLE: &str = "NESTBOX_TEST_VM";

/// A VM, from outside.
pub struct Vm {
    child: Child,
    control: BufReader<UnixStream>,
}

impl Vm {
    /// Starts a VM that connects to the pager at once and gives a handshake of some kind.
    pub fn start(dir: &Path, uid: u32, handshake: &str, regions: &[u64]) -> Self {
        let control = dir.join("control");
        let listener = UnixListener::bind(&control).unwrap();
        let regions: Vec<String> = regions.iter().map(u64::to_string).collect();
        let (control, pager) = (control.display(), dir.join("pager.sock"));
        let role = format!("{control} {} {uid} {handshake} {}", pager.display(), regions.join(","));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "vm::plays_the_vm", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        Self { child, control: BufReader::new(stream) }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Tells the VM what to do without waiting for it.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.control.get_mut(), "{command}").unwrap();
    }

    /// Waits for the VM to have done it.
    pub fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.control.read_line(&mut line) {
            Ok(length) if length > 0 => Some(line.trim().to_owned()),
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether there is no answer for as long as that.
    pub fn is_stuck(&mut self, limit: Duration) -> bool {
        self.control.get_mut().set_read_timeout(Some(limit)).unwrap();
        let stuck = self.answer().is_none();
        self.control.get_mut().set_read_timeout(None).unwrap();
        stuck
    }

    fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer().unwrap_or_else(|| panic!("the VM ended at: {command}"))
    }

    /// Reads pages.
    pub fn read(&mut self, first: u64, count: u64) -> Vec<u8> {
        self.ask(&format!("read {first} {count}"));
        let mut bytes = vec![0; count as usize * PAGE_SIZE];
        self.control.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Touches pages in an order, from several threads, and says how long that took. Scattered
    /// pages are far apart.
    pub fn touch(&mut self, first: u64, count: u64, order: &str, threads: u64) -> Duration {
        let nanos = self.ask(&format!("touch {first} {count} {order} {threads}"));
        Duration::from_nanos(nanos.parse().unwrap())
    }

    pub fn write(&mut self, first: u64, count: u64, byte: u8) {
        self.ask(&format!("write {first} {count} {byte}"));
    }

    pub fn give_back(&mut self, first: u64, count: u64) {
        self.ask(&format!("give_back {first} {count}"));
    }

    /// Gives pages back again and again while threads read everything.
    pub fn storm(&mut self, first: u64, count: u64, rounds: u64) {
        self.ask(&format!("storm {first} {count} {rounds}"));
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the VM has ended, and says which signal that was.
    pub fn killed_by(&mut self, limit: Duration) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.signal();
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the VM still runs after {limit:?}");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the other tests start this as a process of its own"]
fn plays_the_vm() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let fields: Vec<&str> = role.split(' ').collect();
    let [control, pager, uid, handshake, regions] = fields[..] else { panic!("{role}") };
    let mut control = BufReader::new(UnixStream::connect(control).unwrap());
    let sizes: Vec<u64> = regions.split(',').map(|pages| pages.parse().unwrap()).collect();
    let memory = Memory::new(&sizes);
    let mut builder = UffdBuilder::new();
    builder.require_features(FeatureFlags::EVENT_REMOVE).close_on_exec(true);
    let uffd = builder.non_blocking(true).user_mode_only(false).create().unwrap();
    for region in &memory.0 {
        uffd.register(region.address as *mut libc::c_void, region.bytes as usize).unwrap();
    }
    let uid: u32 = uid.parse().unwrap();
    setgid(Gid::from_raw(uid)).unwrap();
    setuid(Uid::from_raw(uid)).unwrap();
    let connection = UnixStream::connect(pager).unwrap();
    give(&connection, handshake, &memory, &uffd);
    let connection = (handshake != "hangs-up").then_some(connection);
    let mut line = String::new();
    while control.read_line(&mut line).unwrap() > 0 {
        memory.obey(&line, control.get_mut());
        line.clear();
    }
    drop(connection);
}

/// Sends a handshake, right or wrong.
fn give(connection: &UnixStream, kind: &str, memory: &Memory, uffd: &Uffd) {
    let list = memory.json(|_, _| {});
    let changed = |change: fn(usize, &mut Region)| memory.json(change);
    let own = [uffd.as_raw_fd()];
    let other = [connection.as_raw_fd()];
    let two = [uffd.as_raw_fd(), uffd.as_raw_fd()];
    let (text, fds): (String, &[RawFd]) = match kind {
        "good" | "hangs-up" => (list, &own),
        "no-fd" => (list, &[]),
        "two-fds" => (list, &two),
        "other-fd" => (list, &other),
        "no-json" => ("hello".to_owned(), &own),
        "cut-off" => (list[..list.len() - 3].to_owned(), &own),
        "nothing" => (String::new(), &[]),
        "empty" => ("[]".to_owned(), &own),
        "too-small" => (changed(|_, region| region.bytes -= 4096), &own),
        "uneven" => (changed(|_, region| region.address += 1), &own),
        "overlapping" => (changed(|_, region| region.offset = 0), &own),
        "huge-pages" => (list.replace("\"page_size\":4096", "\"page_size\":2097152"), &own),
        "not-registered" => (changed(|_, region| region.address = 1 << 44), &own),
        other => panic!("no such handshake: {other}"),
    };
    if text.is_empty() {
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        return;
    }
    let control = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &control[..0] } else { &control[..] };
    let parts = [IoSlice::new(text.as_bytes())];
    // A pager that wants nobody like this has hung up by now.
    let _ = sendmsg::<()>(connection.as_raw_fd(), &parts, control, MsgFlags::empty(), None);
}

/// The memory of the VM.
struct Memory(Vec<Region>);

impl Memory {
    fn new(sizes: &[u64]) -> Self {
        let mut offset = 0;
        let region = |pages: &u64| {
            let bytes = pages * PAGE_SIZE as u64;
            let (kind, protection) =
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
            let length = bytes as usize;
            // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
            let memory =
                unsafe { libc::mmap(std::ptr::null_mut(), length, protection, kind, -1, 0) };
            assert_ne!(memory, libc::MAP_FAILED);
            let region = Region { address: memory as u64, bytes, offset };
            offset += bytes;
            region
        };
        Self(sizes.iter().map(region).collect())
    }

    /// The list of regions as Firecracker writes it.
    fn json(&self, change: impl Fn(usize, &mut Region)) -> String {
        let regions = self.0.iter().enumerate().map(|(number, region)| {
            let mut region = *region;
            change(number, &mut region);
            let Region { address, bytes, offset } = region;
            format!(
                "{{\"base_host_virt_addr\":{address},\"size\":{bytes},\"offset\":{offset},\
                 \"page_size\":4096,\"page_size_kib\":4096}}"
            )
        });
        format!("[{}]", regions.collect::<Vec<_>>().join(","))
    }

    fn pages(&self) -> u64 {
        self.0.last().unwrap().pages().end
    }

    fn address(&self, page: u64) -> *mut u8 {
        let region = self.0.iter().find(|region| region.pages().contains(&page)).unwrap();
        (region.address + (page - region.pages().start) * PAGE_SIZE as u64) as *mut u8
    }

    fn copy_out(&self, page: u64, buffer: &mut [u8]) {
        assert_eq!(buffer.len(), PAGE_SIZE);
        // SAFETY: the page is mapped for as long as the process lives; only tests write to it.
        unsafe { self.address(page).copy_to(buffer.as_mut_ptr(), PAGE_SIZE) };
    }

    fn peek(&self, page: u64) {
        // SAFETY: the page is mapped for as long as the process lives.
        unsafe { self.address(page).read_volatile() };
    }

    fn give_back(&self, first: u64, count: u64) {
        for page in (first..first + count).step_by(64) {
            let length = 64.min(first + count - page) as usize * PAGE_SIZE;
            let start = self.address(page).cast();
            // SAFETY: the pages are mapped, and nobody holds a reference to them.
            assert_eq!(unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) }, 0);
        }
    }

    fn obey(&self, line: &str, control: &mut UnixStream) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            "read" => {
                let mut bytes = vec![0; number(2) as usize * PAGE_SIZE];
                let pages = (number(1)..).zip(bytes.chunks_exact_mut(PAGE_SIZE));
                pages.for_each(|(page, buffer)| self.copy_out(page, buffer));
                writeln!(control, "ok").unwrap();
                return control.write_all(&bytes).unwrap();
            }
            "touch" => {
                let started = Instant::now();
                self.touch(number(1), number(2), words[3], number(4));
                return writeln!(control, "{}", started.elapsed().as_nanos()).unwrap();
            }
            "write" => {
                for page in number(1)..number(1) + number(2) {
                    // SAFETY: the page is mapped, and nobody holds a reference to it.
                    unsafe { self.address(page).write_bytes(number(3) as u8, PAGE_SIZE) };
                }
            }
            "give_back" => self.give_back(number(1), number(2)),
            "race" => self.race(number(1), number(2)),
            "storm" => self.storm(number(1), number(2), number(3)),
            other => panic!("no such command: {other}"),
        }
        writeln!(control, "ok").unwrap();
    }

    /// Touches all pages of a range from each of some threads; "scattered" ones are far apart.
    fn touch(&self, first: u64, count: u64, order: &str, threads: u64) {
        thread::scope(|scope| {
            for seed in 1..=threads {
                let mut pages: Vec<u64> = (first..first + count).collect();
                match order {
                    "random" => shuffle(&mut pages, seed),
                    "sequential" => {}
                    "scattered" => {
                        pages.iter_mut().for_each(|page| *page = first + (*page - first) * 251)
                    }
                    other => panic!("no such order: {other}"),
                }
                scope.spawn(move || pages.into_iter().for_each(|page| self.peek(page)));
            }
        });
    }

    /// Gives pages back while one of them, and the one behind them, is touched.
    fn race(&self, first: u64, count: u64) {
        thread::scope(|scope| {
            scope.spawn(move || self.give_back(first, count));
            thread::sleep(Duration::from_millis(50));
            scope.spawn(move || self.peek(first + 1));
            scope.spawn(move || self.peek(first + count));
        });
    }

    /// Has two threads read everything while another one gives pages back.
    fn storm(&self, first: u64, count: u64, rounds: u64) {
        thread::scope(|scope| {
            for seed in 1..=2 {
                scope.spawn(move || {
                    (0..rounds).for_each(|round| {
                        let mut pages: Vec<u64> = (0..self.pages()).collect();
                        shuffle(&mut pages, seed + 7 * round);
                        pages.into_iter().for_each(|page| self.peek(page));
                    });
                });
            }
            scope.spawn(move || (0..rounds).for_each(|_| self.give_back(first, count)));
        });
    }
}

/// Puts pages into an order that looks random and is the same each time.
fn shuffle(pages: &mut [u64], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for last in (1..pages.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pages.swap(last, (state % (last as u64 + 1)) as usize);
    }
}
