//! Network namespaces: making, entering and removing them, and the threads on which that happens.
//!
//! A namespace belongs to a thread, not to a process. Whatever enters one runs on a thread made for
//! it, which ends with the work; no thread of an executor ever leaves the namespace it was born in.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::NetworkError;
use crate::domain::slot::SlotIndex;

/// Where `ip netns` looks for namespaces, too.
const NAMESPACE_DIR: &str = "/run/netns";

/// The namespace of the calling thread; `/proc/self` would be the one of the process's first thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Runs blocking work on a new thread and waits for it without blocking the caller. The work goes on
/// to its end even if the caller stops waiting.
pub(super) async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // A caller that stopped waiting has nobody to tell.
            let _ = answer.send(work());
        })
        .map_err(NetworkError::StartWorker)?;
    answered.await.map_err(|_| NetworkError::WorkerDied)?
}

/// Path of a slot's namespace.
pub(super) fn path(slot: SlotIndex) -> PathBuf {
    Path::new(NAMESPACE_DIR).join(slot.namespace_name())
}

/// Opens the namespace of the calling thread.
pub(super) fn current() -> io::Result<File> {
    File::open(CURRENT)
}

/// Moves the calling thread into a namespace. To be called on a thread of [`on_thread`] only.
pub(super) fn enter(namespace: &File) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Opens the namespace of a slot and moves the calling thread into it.
pub(super) fn enter_slot(slot: SlotIndex) -> io::Result<()> {
    enter(&File::open(path(slot))?)
}

/// Makes the directory of namespaces a mount point that shares what is mounted below it, exactly as
/// the first `ip netns add` on a machine does. Were that to happen later, it would cover the
/// namespaces mounted by then with copies, and those could not be removed any more. To be called by
/// one process at a time.
pub(super) fn prepare() -> io::Result<()> {
    fs::create_dir_all(NAMESPACE_DIR)?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NAMESPACE_DIR, None::<&str>, flags, None::<&str>)
    };
    match share() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NAMESPACE_DIR), NAMESPACE_DIR, None::<&str>, flags, None::<&str>)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

/// Makes the file that a slot's namespace will be mounted on.
pub(super) fn create_mount_point(slot: SlotIndex) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Namespace { slot, action: "name", source };
    File::create_new(path(slot)).map_err(failed)?;
    Ok(())
}

/// Moves the calling thread into a new namespace and mounts that on the slot's mount point, which
/// keeps it alive without a process. Returns the new namespace.
pub(super) fn create(slot: SlotIndex) -> Result<File, NetworkError> {
    let failed = |action| move |source| NetworkError::Namespace { slot, action, source };
    unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(failed("create"))?;
    mount(Some(CURRENT), &path(slot), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(io::Error::from)
        .map_err(failed("mount"))?;
    current().map_err(failed("open"))
}

/// Unmounts a slot's namespace and removes its mount point. The kernel ends the namespace, and every
/// link in it, when no process and no open tap holds it any more.
pub(super) fn remove(slot: SlotIndex) -> Result<(), NetworkError> {
    let failed = |action| move |source| NetworkError::Namespace { slot, action, source };
    let path = path(slot);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a plain file, because the daemon died before it mounted the namespace or because
        // the machine was started anew.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(e) => return Err(failed("unmount")(e.into())),
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove")(e)),
        _ => Ok(()),
    }
}
