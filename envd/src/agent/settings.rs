//! What the host told this guest about itself, and what follows from it for each request.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connectrpc::ConnectError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::paths::{self, PathError};
use super::users::{User, UserError, Users};

/// Where the agent runs, and so what it may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a microVM that is its own: clock, hostname and name servers are set as the host says.
    Guest,
    /// On an ordinary machine, e.g. in tests: nothing outside of requests is changed.
    Host,
}

/// Where a guest's agent leaves its settings for its successor: one that dies must not be followed
/// by one that asks for no token. In memory, and gone with the guest.
const KEPT: &str = "/run/envd.json";

/// The user named where nothing else names one, if the guest has it.
const USUAL_USER: &str = "user";

/// What `POST /init` sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Environment of every process that is started.
    pub env: BTreeMap<String, String>,
    /// Secret that every request but the health check must carry; while there is none, nobody but the
    /// one who sets it gets in.
    pub token: Option<String>,
    /// User of requests that name none.
    pub default_user: Option<String>,
    /// Where processes start and empty paths lead; `None` means the user's home.
    pub default_workdir: Option<PathBuf>,
}

/// Why a request's user or path cannot be used. All of them are the caller's mistake.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The header is not `Basic` with valid base64 of `name:...`.
    #[error("authorization header is not valid basic authentication")]
    Authorization,
    /// There is no such user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The path is not usable.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl From<RequestError> for ConnectError {
    fn from(error: RequestError) -> Self {
        ConnectError::invalid_argument(error.to_string())
    }
}

/// Everything that request handlers share.
#[derive(Debug)]
pub struct Context {
    /// Where the agent runs.
    pub place: Place,
    /// The guest's accounts.
    pub users: Users,
    settings: RwLock<Arc<Settings>>,
}

impl Context {
    /// Starts with nothing set, or in a guest with what an agent before this one was told.
    pub fn new(place: Place) -> Self {
        let settings = match place {
            Place::Guest => continue_with(Path::new(KEPT)),
            Place::Host => Settings::default(),
        };
        Self {
            place,
            users: Users::new("/etc/passwd", "/etc/group"),
            settings: RwLock::new(Arc::new(settings)),
        }
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings.
    ///
    /// # Errors
    ///
    /// The kernel's, when a guest's could not be kept; nothing has changed then.
    pub fn set(&self, settings: Settings) -> io::Result<()> {
        match self.place {
            Place::Guest => keep(Path::new(KEPT), &settings)?,
            Place::Host => {}
        }
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        Ok(())
    }

    /// The user a request acts as: the one it names, or else the default.
    ///
    /// # Errors
    ///
    /// [`RequestError::User`] when the guest does not have that user.
    pub fn user(&self, name: Option<&str>) -> Result<Arc<User>, RequestError> {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            return Ok(self.users.find(name)?);
        }
        if let Some(name) = &self.settings().default_user {
            return Ok(self.users.find(name)?);
        }
        Ok(self.users.find(USUAL_USER).or_else(|_| self.users.find("root"))?)
    }

    /// The user a request's `Authorization` header names, or else the default.
    ///
    /// # Errors
    ///
    /// [`RequestError::Authorization`] when the header is malformed, [`RequestError::User`] when
    /// there is no such user.
    pub fn user_of(&self, headers: &HeaderMap) -> Result<Arc<User>, RequestError> {
        self.user(basic_user(headers)?.as_deref())
    }

    /// Resolves a path of a request of `user`.
    ///
    /// # Errors
    ///
    /// [`RequestError::Path`] when it is not a usable path.
    pub fn path(&self, path: impl AsRef<OsStr>, user: &User) -> Result<PathBuf, RequestError> {
        let settings = self.settings();
        Ok(paths::resolve(path.as_ref(), &user.home, settings.default_workdir.as_deref())?)
    }
}

/// What was kept, or the default, kept from now on: `POST /init` then finds a file to overwrite.
fn continue_with(path: &Path) -> Settings {
    let settings = load(path);
    // Fails where `POST /init` will, which says so.
    let _ = keep(path, &settings);
    settings
}

fn load(path: &Path) -> Settings {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Replaces what was kept, as a whole even for an agent that is killed meanwhile.
///
/// Where both fit into a page, which is usual, the old text is overwritten: the kernel copies a page
/// in one go, and making and renaming a file takes longer in each guest that was just restored.
fn keep(path: &Path, settings: &Settings) -> io::Result<()> {
    const PAGE: usize = 4096;
    let mut text = serde_json::to_vec(settings)?;
    text.resize(text.len().max(PAGE), b' ');
    let mut options = fs::File::options();
    options.write(true).mode(0o600);
    if text.len() == PAGE
        && let Ok(file) = options.open(path)
        && file.metadata()?.len() == PAGE as u64
    {
        return file.write_all_at(&text, 0);
    }
    let beside = path.with_extension("new");
    options.create(true).truncate(true).open(&beside)?.write_all(&text)?;
    fs::rename(beside, path)
}

fn basic_user(headers: &HeaderMap) -> Result<Option<String>, RequestError> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| RequestError::Authorization)?;
    let Some((scheme, encoded)) = value.split_once(' ') else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let decoded = STANDARD.decode(encoded.trim()).map_err(|_| RequestError::Authorization)?;
    let text = String::from_utf8(decoded).map_err(|_| RequestError::Authorization)?;
    let name = text.split(':').next().unwrap_or_default();
    Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outlive_an_agent_and_are_for_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("envd.json");
        assert_eq!(continue_with(&path), Settings::default());
        let settings = Settings {
            token: Some("secret".to_owned()),
            env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            ..Settings::default()
        };
        let long = Settings {
            env: BTreeMap::from([("A".to_owned(), "b".repeat(5000))]),
            ..settings.clone()
        };
        for settings in [&settings, &long, &settings, &Settings::default(), &settings] {
            keep(&path, settings).unwrap();
            assert_eq!(load(&path), *settings);
        }
        assert_eq!(continue_with(&path), settings);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn basic_authentication_names_the_user_and_other_schemes_do_not() {
        let user = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            basic_user(&headers)
        };
        assert_eq!(user("Basic dXNlcjo=").unwrap().as_deref(), Some("user"));
        assert_eq!(user("basic cm9vdA==").unwrap().as_deref(), Some("root"));
        assert_eq!(user("Bearer dXNlcjo=").unwrap(), None);
        assert_eq!(user("Basic Og==").unwrap(), None);
        assert!(matches!(user("Basic %%%"), Err(RequestError::Authorization)));
        assert_eq!(basic_user(&HeaderMap::new()).unwrap(), None);
    }
}
