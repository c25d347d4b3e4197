//! Finds the daemon and the key to it: flags and environment first, then the socket and the file
//! `api-key` in the data directory of a local daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Global, peer, url};

/// Where a daemon of this machine keeps its data.
const SYSTEM_DIR: &str = "/var/lib/nestbox";
/// Where a daemon started with `make run` keeps its data.
const PROJECT_DIR: &str = ".nestbox";

/// A daemon and the key to it.
#[cfg_attr(test, derive(Debug))]
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Daemon {
    pub url: String,
    pub api_key: String,
    pub way: Way,
}

/// How a daemon is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// By a URL that somebody gave, with a key for it, and a file of authorities to trust there.
    Given { ca: Option<PathBuf> },
    /// By the URL that a daemon here has written down: it may have left, and another one listen there.
    Found,
    /// By the socket in this data directory.
    Socket(PathBuf),
}

/// There is no daemon to talk to, or no key to it.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiscoverError {
    #[error(
        "found no running daemon (looked in {looked}): start one with `nestbox serve`, or set NESTBOX_URL and NESTBOX_API_KEY"
    )]
    NoDaemon { looked: String },
    #[error("no api key for {url}: set NESTBOX_API_KEY")]
    NoKey { url: String },
    #[error(
        "cannot read {}: run as the daemon's user, or set NESTBOX_URL and NESTBOX_API_KEY",
        path.display()
    )]
    Unreadable { path: PathBuf, source: io::Error },
}

/// Finds the daemon that the flags mean.
///
/// # Errors
///
/// [`DiscoverError`], which says what to do.
pub(super) fn find(global: &Global) -> Result<Daemon, DiscoverError> {
    let dirs = match &global.data_dir {
        Some(dir) => vec![dir.clone()],
        None => vec![PathBuf::from(SYSTEM_DIR), PathBuf::from(PROJECT_DIR)],
    };
    let given = Given {
        url: global.url.as_deref(),
        api_key: global.api_key.as_deref(),
        ca: global.ca.as_deref(),
    };
    find_in(given, &dirs)
}

/// The data directory of this machine's daemon for verbs that need no running one: as given, else
/// where [`find`] would find one.
pub(super) fn data_dir(global: &Global) -> Option<PathBuf> {
    let project = || {
        let (system, project) = (Path::new(SYSTEM_DIR), Path::new(PROJECT_DIR));
        (!system.exists() && project.exists()).then(|| project.to_owned())
    };
    global.data_dir.clone().or_else(project)
}

/// What flags and environment say.
#[derive(Clone, Copy, Default)]
struct Given<'a> {
    url: Option<&'a str>,
    api_key: Option<&'a str>,
    ca: Option<&'a Path>,
}

fn find_in(given: Given<'_>, dirs: &[PathBuf]) -> Result<Daemon, DiscoverError> {
    let Given { url, api_key, ca } = given;
    if let (Some(url), Some(key)) = (url, api_key) {
        let way = Way::Given { ca: ca.map(Path::to_owned) };
        return Ok(Daemon { url: url.to_owned(), api_key: key.to_owned(), way });
    }
    let local = local_daemon(dirs, api_key);
    match (url, local) {
        (None, local) => local,
        // The local key goes only to the local daemon, not to whatever URL someone was given.
        (Some(url), Ok(local)) if same_url(url, &local.url) => Ok(local),
        (Some(url), _) => Err(DiscoverError::NoKey { url: url.to_owned() }),
    }
}

/// The first directory of a running daemon with a key; one that was given stands in for that.
fn local_daemon(dirs: &[PathBuf], api_key: Option<&str>) -> Result<Daemon, DiscoverError> {
    let mut unreadable = None;
    for dir in dirs {
        let found = reached(dir).and_then(|reached| {
            let key = match api_key {
                Some(key) => Some(key.to_owned()),
                None => read(dir, "api-key")?,
            };
            Ok(reached.zip(key))
        });
        match found {
            Ok(Some(((url, way), api_key))) => return Ok(Daemon { url, api_key, way }),
            Ok(None) => {}
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    let looked = || dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(unreadable.unwrap_or_else(|| DiscoverError::NoDaemon { looked: looked() }))
}

/// How the daemon of a directory is reached; not at all if none runs. The socket goes first: an older
/// daemon has none.
fn reached(dir: &Path) -> Result<Option<(String, Way)>, DiscoverError> {
    let url = read(dir, "url")?;
    let socket = dir.join(peer::SOCKET);
    match fs::symlink_metadata(&socket) {
        Ok(_) => {
            let url = url.unwrap_or_else(|| "http://localhost".to_owned());
            Ok(Some((url, Way::Socket(dir.to_owned()))))
        }
        Err(error) if is_missing(&error) => Ok(url.map(|url| (url, Way::Found))),
        Err(source) => Err(DiscoverError::Unreadable { path: socket, source }),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read(dir: &Path, name: &str) -> Result<Option<String>, DiscoverError> {
    let path = dir.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Err(error) if is_missing(&error) => Ok(None),
        Err(source) => Err(DiscoverError::Unreadable { path, source }),
    }
}

fn same_url(one: &str, other: &str) -> bool {
    matches!((url::parse(one), url::parse(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn daemon(url: &str, api_key: &str) -> Daemon {
        Daemon { url: url.to_owned(), api_key: api_key.to_owned(), way: Way::Found }
    }

    fn found(url: Option<&str>, key: Option<&str>, dirs: &[&tempfile::TempDir]) -> Option<Daemon> {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.path().to_owned()).collect();
        find_in(Given { url, api_key: key, ca: None }, &dirs).ok()
    }

    #[test]
    fn the_first_directory_with_a_daemon_is_taken() {
        let empty = dir(&[]);
        let half = dir(&[("api-key", "key")]);
        let whole = dir(&[("url", "http://127.0.0.1:1\n"), ("api-key", "key\n")]);
        let want = Some(daemon("http://127.0.0.1:1", "key"));
        assert_eq!(found(None, None, &[&empty, &half, &whole]), want);
        assert_eq!(found(None, None, &[&empty, &half]), None);
    }

    #[test]
    fn a_daemon_with_a_socket_is_reached_by_it() {
        let local = dir(&[("url", "http://127.0.0.1:1"), ("api-key", "key"), (peer::SOCKET, "")]);
        let way = Way::Socket(local.path().to_owned());
        let want = Some(Daemon { way: way.clone(), ..daemon("http://127.0.0.1:1", "key") });
        assert_eq!(found(None, None, &[&local]), want);
        assert_eq!(found(Some("http://127.0.0.1:1"), None, &[&local]), want);
        let bare = dir(&[("api-key", "key"), (peer::SOCKET, "")]);
        assert_eq!(found(None, None, &[&bare]).unwrap().url, "http://localhost");
    }

    #[test]
    fn a_given_url_and_key_need_no_directory() {
        let way = Way::Given { ca: None };
        let want = Some(Daemon { way, ..daemon("http://far", "mine") });
        assert_eq!(found(Some("http://far"), Some("mine"), &[]), want);
    }

    #[test]
    fn the_local_key_is_not_sent_elsewhere() {
        let local = dir(&[("url", "http://127.0.0.1:1"), ("api-key", "key")]);
        assert_eq!(found(Some("http://far"), None, &[&local]), None);
        let want = Some(daemon("http://127.0.0.1:1", "key"));
        assert_eq!(found(Some("http://127.0.0.1:1/"), None, &[&local]), want);
        assert_eq!(found(Some("127.0.0.1:1/v1"), None, &[&local]), want);
    }

    #[test]
    fn a_given_key_goes_to_the_local_daemon() {
        let local = dir(&[("url", "http://127.0.0.1:1"), ("api-key", "key")]);
        let want = Some(daemon("http://127.0.0.1:1", "mine"));
        assert_eq!(found(None, Some("mine"), &[&local]), want);
    }

    #[test]
    fn without_a_daemon_the_error_says_what_to_do() {
        let error = find_in(Given::default(), &[PathBuf::from("/nowhere")]).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("/nowhere") && text.contains("nestbox serve"), "{text}");
    }
}
