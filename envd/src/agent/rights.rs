//! Files are reached with the rights of the user who is meant: what the kernel would refuse to that
//! user's own programs it refuses to the agent, and what it lets them do it lets the agent do. So
//! nobody has root read, write or remove something for him, and a link in `/tmp` is followed for its
//! owner, which the kernel does for nobody else, root included (`fs.protected_symlinks`).
//!
//! Linux keeps user and groups for each thread. libc's wrappers change them for all, so these are bare
//! system calls. The effective user is changed and not only that for file systems, because the kernel
//! takes away all capabilities with it, and some files look at it alone, such as those of `/proc/sys`.
//! Signals and traces go by the other two, which stay root's: other threads and the thread itself are
//! out of the user's reach.

use std::io;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getegid, getgroups};

use super::users::User;

/// Leaves an id as it is.
const KEEP: libc::uid_t = libc::uid_t::MAX;

/// Does something with a user's rights, if the agent has others to begin with. Of this thread alone, so
/// it must not wait for what another thread is to do with the agent's own.
///
/// # Errors
///
/// The kernel's, when it does not give the thread that user's rights; nothing was done then.
pub fn with<T>(user: &User, work: impl FnOnce() -> T) -> io::Result<T> {
    if user.uid == 0 || !Uid::effective().is_root() {
        return Ok(work());
    }
    let _borrowed = Borrowed::of(user)?;
    Ok(work())
}

/// A user's rights. The thread has its own back when this is dropped.
struct Borrowed {
    group: Gid,
    groups: Vec<Gid>,
}

impl Borrowed {
    fn of(user: &User) -> io::Result<Self> {
        let own = Self { group: getegid(), groups: getgroups()? };
        // What was changed before one of them fails is changed back.
        set_groups(&user.groups)?;
        set_group(user.gid)?;
        set_user(user.uid)?;
        Ok(own)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let groups: Vec<u32> = self.groups.iter().map(|group| group.as_raw()).collect();
        let back = set_user(0)
            .and_then(|()| set_group(self.group.as_raw()))
            .and_then(|()| set_groups(&groups));
        if back.is_err() {
            // The next one to use this thread would get somebody else's rights.
            std::process::abort();
        }
    }
}

fn set_groups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: the kernel reads so many ids from there.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(result).map(drop)
}

fn set_group(effective: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresgid, KEEP, effective, KEEP) };
    Errno::result(result).map(drop)
}

fn set_user(effective: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, KEEP, effective, KEEP) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn nobody() -> User {
        User {
            name: "nobody".to_owned(),
            uid: 65534,
            gid: 65534,
            groups: vec![65534, 4711],
            home: PathBuf::from("/"),
            shell: "/bin/sh".to_owned(),
        }
    }

    #[test]
    fn a_thread_has_a_users_rights_for_a_while_and_others_keep_theirs() {
        if !crate::skip::is_root("another user") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let own = getgroups().unwrap();
        let denied = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        };
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || asked.recv().map(|()| Uid::effective()));
        with(&nobody(), || {
            ask.send(()).unwrap();
            assert_eq!(other.join().unwrap(), Ok(Uid::from_raw(0)), "another thread keeps its own");
            denied(fs::read(&secret).map(drop));
            denied(fs::remove_file(&secret));
            denied(fs::write("/proc/sys/kernel/panic", "0"));
            let groups: Vec<_> = nobody().groups.into_iter().map(Gid::from_raw).collect();
            assert_eq!(getgroups().unwrap().len(), groups.len());
            // Within, it goes on with what it has.
            denied(with(&nobody(), || fs::read(&secret).map(drop)).unwrap());
        })
        .unwrap();
        assert_eq!(fs::read(&secret).unwrap(), b"x");
        assert_eq!((Uid::effective(), getgroups().unwrap()), (Uid::from_raw(0), own.clone()));

        let panicked = std::panic::catch_unwind(|| with(&nobody(), || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!((Uid::effective(), getgroups().unwrap()), (Uid::from_raw(0), own));
    }
}
