//! Runs code of a test where a VM's process is: as its user, in its namespaces, without its program.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, fork, pipe, setgid, setgroups, setuid};

/// Runs `work` as whoever has taken over the process `pid`, and gives what it says.
pub fn in_place_of(pid: i32, work: impl FnOnce() -> String) -> String {
    let proc = format!("/proc/{pid}");
    let uid = std::fs::metadata(&proc).expect("it lives").uid();
    // The root comes last, for after it nothing else can be found.
    let namespaces: Vec<File> = ["net", "ipc", "mnt"]
        .map(|kind| File::open(format!("{proc}/ns/{kind}")).expect("a namespace"))
        .into();
    let (reader, writer) = pipe().expect("a pipe");
    // SAFETY: the child runs a few system calls and the test's closure, whose memory glibc lets it have
    // after a fork, and then ends without running anything else of the test.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = String::new();
            File::from(reader).read_to_string(&mut said).expect("what it says");
            waitpid(child, None).expect("it ends");
            said
        }
        ForkResult::Child => {
            drop(reader);
            let said =
                become_it(&namespaces, uid).map_or_else(|error| error.to_string(), |()| work());
            say_and_end(writer, &said)
        }
    }
}

fn become_it(namespaces: &[File], uid: u32) -> nix::Result<()> {
    for namespace in namespaces {
        setns(namespace, CloneFlags::empty())?;
    }
    setgroups(&[])?;
    setgid(Gid::from_raw(uid))?;
    setuid(Uid::from_raw(uid))
}

fn say_and_end(writer: OwnedFd, said: &str) -> ! {
    let written = File::from(writer).write_all(said.as_bytes());
    // SAFETY: it ends the process, and nothing else of the test's.
    unsafe { nix::libc::_exit(i32::from(written.is_err())) }
}
