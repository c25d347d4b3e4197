//! `POST /init`: the host tells the guest who it is, what time it is, and gives it randomness.
//!
//! A restored guest's clock stands where it stood, and clones of one snapshot have the same random
//! pool; so this comes first, after every boot and every restore.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, FixedOffset};
use http::StatusCode;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::sethostname;
use serde::Deserialize;

use crate::agent::settings::{Context, Place};

use super::error::HttpError;

/// More would only be hashed away: the pool holds 256 bits.
const ENTROPY_LIMIT: usize = 512;
/// `HOST_NAME_MAX` of Linux.
const HOSTNAME_LIMIT: usize = 64;

/// The body; what is absent stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Identity {
    env_vars: Option<BTreeMap<String, String>>,
    access_token: Option<String>,
    timestamp: Option<String>,
    default_user: Option<String>,
    default_workdir: Option<PathBuf>,
    hostname: Option<String>,
    nameservers: Option<Vec<IpAddr>>,
    entropy: Option<String>,
}

/// The parts that change the system, checked.
#[derive(Debug, Default)]
struct System {
    time: Option<DateTime<FixedOffset>>,
    hostname: Option<String>,
    nameservers: Option<Vec<IpAddr>>,
    entropy: Option<Vec<u8>>,
}

/// `POST /init`. Nothing is changed unless all of it makes sense.
///
/// # Errors
///
/// 400 for a value that makes no sense, 401 for an unknown default user.
pub async fn init(
    State(context): State<Arc<Context>>,
    body: Bytes,
) -> Result<StatusCode, HttpError> {
    let identity: Identity = serde_json::from_slice(&body)
        .map_err(|error| HttpError::invalid(format!("body: {error}")))?;
    let mut settings = (*context.settings()).clone();
    if let Some(token) = identity.access_token {
        if token.is_empty() {
            return Err(HttpError::invalid("accessToken is empty"));
        }
        settings.token = Some(token);
    }
    // Else the next one to ask would be as good as the host.
    if settings.token.is_none() {
        return Err(HttpError::invalid("accessToken is needed first"));
    }
    if let Some(user) = identity.default_user.filter(|user| !user.is_empty()) {
        context.users.find(&user)?;
        settings.default_user = Some(user);
    }
    if let Some(workdir) = identity.default_workdir.filter(|dir| !dir.as_os_str().is_empty()) {
        if !workdir.is_absolute() {
            return Err(HttpError::invalid("defaultWorkdir is not an absolute path"));
        }
        settings.default_workdir = Some(workdir);
    }
    if let Some(env) = identity.env_vars {
        settings.env = env;
    }
    let system = System {
        time: identity.timestamp.as_deref().map(time).transpose()?,
        hostname: identity.hostname.filter(|name| !name.is_empty()).map(hostname).transpose()?,
        nameservers: identity.nameservers,
        entropy: identity.entropy.as_deref().map(entropy).transpose()?,
    };
    match context.place {
        Place::Guest => apply(&system, Path::new("/"))?,
        Place::Host => {}
    }
    context
        .set(settings)
        .map_err(|error| HttpError::from_io("cannot keep settings in", Path::new("/run"), error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn time(text: &str) -> Result<DateTime<FixedOffset>, HttpError> {
    DateTime::parse_from_rfc3339(text)
        .map_err(|error| HttpError::invalid(format!("timestamp: {error}")))
}

fn hostname(name: String) -> Result<String, HttpError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if plain && name.len() <= HOSTNAME_LIMIT {
        return Ok(name);
    }
    Err(HttpError::invalid(format!("hostname is not a name of at most {HOSTNAME_LIMIT} letters")))
}

fn entropy(text: &str) -> Result<Vec<u8>, HttpError> {
    let bytes =
        STANDARD.decode(text).map_err(|error| HttpError::invalid(format!("entropy: {error}")))?;
    if bytes.len() > ENTROPY_LIMIT {
        return Err(HttpError::invalid(format!("entropy exceeds {ENTROPY_LIMIT} bytes")));
    }
    Ok(bytes)
}

/// Makes the guest what the host says it is.
fn apply(system: &System, root: &Path) -> Result<(), HttpError> {
    if let Some(time) = system.time {
        let time = TimeSpec::new(time.timestamp(), i64::from(time.timestamp_subsec_nanos()));
        clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|errno| kernel("clock", errno))?;
    }
    if let Some(entropy) = &system.entropy {
        reseed(entropy).map_err(|error| HttpError::from_io("cannot reseed", root, error))?;
    }
    if let Some(name) = &system.hostname {
        sethostname(name).map_err(|errno| kernel("hostname", errno))?;
        let path = root.join("etc/hosts");
        let old = fs::read_to_string(&path).unwrap_or_default();
        replace(&path, &hosts(&old, name))?;
    }
    if let Some(servers) = &system.nameservers {
        let lines: String = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
        replace(&root.join("etc/resolv.conf"), &lines)?;
    }
    Ok(())
}

fn kernel(verb: &'static str, errno: Errno) -> HttpError {
    HttpError::Io { verb, path: PathBuf::from("/"), source: errno.into() }
}

/// The hosts file with this name as the machine's own.
fn hosts(old: &str, name: &str) -> String {
    const OWN: &str = "127.0.1.1";
    let is_own = |line: &&str| line.split_whitespace().next() == Some(OWN);
    let mut lines: Vec<&str> = old.lines().filter(|line| !is_own(line)).collect();
    let local = |line: &&str| line.split_whitespace().skip(1).any(|name| name == "localhost");
    if !lines.iter().any(local) {
        lines.insert(0, "127.0.0.1\tlocalhost");
    }
    let own = format!("{OWN}\t{name}");
    lines.push(&own);
    lines.join("\n") + "\n"
}

/// Has a file say this, unless it does already: each write to a disk costs a clone a block of its own.
///
/// One that is mounted, as `init` does, is written in place. Any other is replaced, and so is a link,
/// since what it leads to may belong to a service that is not there.
fn replace(path: &Path, text: &str) -> Result<(), HttpError> {
    let parent = path.parent().unwrap_or(path);
    let meta = fs::symlink_metadata(path);
    let is_link = meta.as_ref().is_ok_and(|meta| meta.is_symlink());
    let old = if is_link { None } else { fs::read(path).ok() };
    if old.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    let is_mounted =
        meta.is_ok_and(|meta| fs::metadata(parent).is_ok_and(|parent| parent.dev() != meta.dev()));
    let written = match old {
        Some(old) if is_mounted => overwrite(path, text, old.len()),
        Some(_) | None => {
            let beside = path.with_extension("envd");
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&beside, text))
                .and_then(|()| fs::rename(&beside, path))
        }
    };
    written.map_err(|error| HttpError::from_io("cannot write", path, error))
}

/// Writes first and cuts afterwards, so that no reader finds the file empty.
fn overwrite(path: &Path, text: &str, old_length: usize) -> io::Result<()> {
    let mut file = fs::File::options().write(true).open(path)?;
    file.write_all(text.as_bytes())?;
    if text.len() < old_length {
        file.set_len(text.len() as u64)?;
    }
    Ok(())
}

/// Adds to the kernel's pool, counts it as random, and has the generator use it at once.
fn reseed(bytes: &[u8]) -> io::Result<()> {
    /// `linux/random.h`: `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)`.
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let random = fs::File::options().write(true).open("/dev/urandom")?;
    // `struct rand_pool_info`: bits, bytes, then the bytes themselves.
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    let mut info = Vec::with_capacity(8 + bytes.len());
    info.extend((length * 8).to_ne_bytes());
    info.extend(length.to_ne_bytes());
    info.extend(bytes);
    // SAFETY: the kernel reads the header and as many bytes as it says follow.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, info.as_ptr()) };
    Errno::result(added)?;
    // SAFETY: takes no argument.
    Errno::result(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[test]
    fn the_hosts_file_names_the_machine_once() {
        let first = hosts("", "box");
        assert_eq!(first, "127.0.0.1\tlocalhost\n127.0.1.1\tbox\n");
        let renamed = hosts(&first, "other");
        assert_eq!(renamed, "127.0.0.1\tlocalhost\n127.0.1.1\tother\n");
        assert_eq!(hosts(&renamed, "other"), renamed);
        assert!(hosts("10.0.0.1 db\n::1 localhost\n", "b").starts_with("10.0.0.1 db\n::1"));
    }

    #[test]
    fn a_link_is_replaced_and_an_equal_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::os::unix::fs::symlink("/nowhere/at/all", &path).unwrap();
        replace(&path, "nameserver 1.1.1.1\n").unwrap();
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        replace(&path, "nameserver 1.1.1.1\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn a_mounted_file_is_written_in_place() {
        if !crate::skip::is_root("a mount") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (memory, path) = (dir.path().join("memory"), dir.path().join("hosts"));
        let (none, flags) = (None::<&str>, MsFlags::empty());
        fs::create_dir(&memory).unwrap();
        mount(Some("tmpfs"), &memory, Some("tmpfs"), flags, none).unwrap();
        fs::write(memory.join("hosts"), "of medium length").unwrap();
        fs::write(&path, "beneath").unwrap();
        mount(Some(&memory.join("hosts")), &path, none, MsFlags::MS_BIND, none).unwrap();
        let replaced = ["longer than it was before", "short"].map(|text| {
            let written = replace(&path, text).is_ok();
            (written, fs::read_to_string(memory.join("hosts")).unwrap() == text)
        });
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        umount2(&memory, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(replaced, [(true, true), (true, true)]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "beneath");
        replace(&path, "on disk again").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "on disk again");
    }

    #[test]
    fn names_and_times_are_checked() {
        assert!(hostname("nestbox-1.local".to_owned()).is_ok());
        assert!(hostname("a b".to_owned()).is_err());
        assert!(hostname("x".repeat(65)).is_err());
        assert_eq!(
            time("2026-11-23T13:00:00.123456789Z").unwrap().timestamp_subsec_nanos(),
            123_456_789
        );
        assert!(time("yesterday").is_err());
        assert!(entropy("not base64!").is_err());
    }
}
