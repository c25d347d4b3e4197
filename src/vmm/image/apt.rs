//! What Nestbox takes from the host's apt: where Debian's packages come from, and one package.

use std::fs;
use std::path::{Path, PathBuf};

use super::command::{CommandError, Tool};

/// The release that `image build debian` installs.
pub const SUITE: &str = "bookworm";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The two archives that a Debian release is served from.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// Packages of the release and its updates.
    pub main: String,
    /// Security updates.
    pub security: String,
}

impl Mirrors {
    /// Finds the mirrors that this machine installs Debian's packages from.
    ///
    /// Only Debian's own archive counts; other vendors' sources are passed over.
    ///
    /// # Errors
    /// [`AptError::NoMirror`] on a machine that installs Debian's packages from nowhere.
    pub fn of_host() -> Result<Self, AptError> {
        Self::from_etc(Path::new("/etc/apt"))
    }

    fn from_etc(etc: &Path) -> Result<Self, AptError> {
        let mut files = vec![etc.join("sources.list")];
        let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
        let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
        let uris: Vec<String> =
            files.iter().flat_map(|file| uris(file)).flat_map(mirror_list).collect();
        let pick = |archive: &'static str| {
            let found = uris.iter().find(|uri| {
                uri.trim_end_matches('/').rsplit('/').next() == Some(archive)
                    && ["http://", "https://"].iter().any(|scheme| uri.starts_with(scheme))
            });
            let found = found.map(|uri| uri.trim_end_matches('/').to_owned());
            found.ok_or(AptError::NoMirror { archive })
        };
        Ok(Self { main: pick("debian")?, security: pick("debian-security")? })
    }

    /// The mirrors as one-line apt sources for [`SUITE`].
    pub fn sources(&self) -> String {
        let signed_by = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        self.lines(&signed_by)
    }

    /// The same for `/etc/apt/sources.list` of a guest, where the keys are apt's own and a login
    /// of this machine's to its mirror has no place.
    pub fn guest_sources(&self) -> String {
        let main = without_login(&self.main);
        let security = without_login(&self.security);
        Self { main, security }.lines("")
    }

    fn lines(&self, options: &str) -> String {
        format!(
            "deb {options}{main} {SUITE} main\n\
             deb {options}{main} {SUITE}-updates main\n\
             deb {options}{security} {SUITE}-security main\n",
            main = self.main,
            security = self.security,
        )
    }
}

/// A URI without the name and password that may stand before its host.
pub fn without_login(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.to_owned() };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}/{path}")
}

/// The URIs in a list of mirrors, which images for clouds name in place of one mirror:
/// apt-transport-mirror(1).
fn mirror_list(uri: String) -> Vec<String> {
    let Some(path) = uri.strip_prefix("mirror+file:") else { return vec![uri] };
    let path = Path::new("/").join(path.trim_start_matches('/'));
    let text = fs::read_to_string(path).unwrap_or_default();
    let words = text.lines().filter_map(|line| line.split_whitespace().next());
    words.filter(|word| !word.starts_with('#')).map(str::to_owned).collect()
}

/// Returns the URIs of the enabled binary-package sources in one file of either format.
fn uris(file: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(file) else { return Vec::new() };
    match file.extension().and_then(|e| e.to_str()) {
        Some("list") => text.lines().filter_map(one_line_uri).collect(),
        Some("sources") => {
            let text: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            text.split(|line| line.trim().is_empty()).flat_map(stanza_uris).collect()
        }
        _ => Vec::new(),
    }
}

fn one_line_uri(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t', '['].as_slice())?;
    // Options stand in brackets before the URI and may hold spaces.
    let rest = rest.rsplit_once(']').map_or(rest, |(_, after)| after);
    rest.split_whitespace().next().map(str::to_owned)
}

fn stanza_uris(lines: &[&str]) -> Vec<String> {
    let field = |name: &str| {
        let mut values = lines.iter().filter_map(|line| line.split_once(':'));
        values.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let enabled = !field("Enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
    let binary = field("Types").is_some_and(|v| v.split_whitespace().any(|t| t == "deb"));
    match (enabled && binary, field("URIs")) {
        (true, Some(uris)) => uris.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Why a package could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// The machine's apt sources name no mirror of Debian's archive.
    #[error("no apt source of this machine is a mirror that ends in /{archive}: add one")]
    NoMirror {
        /// Last part of the mirror's path.
        archive: &'static str,
    },
    /// The meta-package is unknown or depends on no package of the wanted kind.
    #[error("apt knows no package that {meta} depends on and that starts with {prefix}")]
    NoDependency {
        /// The meta-package.
        meta: String,
        /// What the wanted package's name starts with.
        prefix: String,
    },
    /// apt itself failed.
    #[error("cannot download {package}")]
    Download {
        /// The package.
        package: String,
        /// What apt said.
        #[source]
        source: CommandError,
    },
    /// apt said it was done and left no file, or the package could not be unpacked.
    #[error("cannot unpack {package}")]
    Unpack {
        /// The package.
        package: String,
        /// What dpkg-deb said.
        #[source]
        source: CommandError,
    },
}

/// Returns the first dependency of `meta` whose name starts with `prefix`. Package lists that were
/// never fetched are fetched.
///
/// # Errors
/// [`AptError::NoDependency`] or [`AptError::Download`].
pub fn dependency(meta: &str, prefix: &str) -> Result<String, AptError> {
    let failed = |source| AptError::Download { package: meta.to_owned(), source };
    let find = || -> Result<Option<String>, CommandError> {
        let text = Tool::new("apt-cache", "apt").args(["depends", meta]).output()?;
        let text = String::from_utf8_lossy(&text);
        let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.find(|name| name.starts_with(prefix)).map(str::to_owned))
    };
    match find() {
        Ok(Some(name)) => return Ok(name),
        Err(missing @ CommandError::Missing { .. }) => return Err(failed(missing)),
        Ok(None) | Err(_) => update().map_err(failed)?,
    }
    // apt-cache fails for a name it does not know, which is the same as no dependency.
    let prefix = prefix.to_owned();
    find().ok().flatten().ok_or(AptError::NoDependency { meta: meta.to_owned(), prefix })
}

/// Downloads `package` and unpacks it into `tree`, without installing it. `dir` is scratch space.
///
/// # Errors
/// [`AptError::Download`] or [`AptError::Unpack`].
pub fn unpack(package: &str, dir: &Path, tree: &Path) -> Result<(), AptError> {
    let download = || {
        // apt would drop its privileges to write into a directory that is root's alone.
        let args = ["-q", "-o", "APT::Sandbox::User=root", "download", package];
        Tool::new("apt-get", "apt").args(args).current_dir(dir).run()
    };
    // Lists older than the archive name files that are gone from it; fresh ones cure that.
    download()
        .or_else(|_| update().and_then(|()| download()))
        .map_err(|source| AptError::Download { package: package.to_owned(), source })?;
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let deb = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    Tool::new("dpkg-deb", "dpkg")
        .arg("--extract")
        .arg(deb.unwrap_or_else(|| dir.join("missing.deb")))
        .arg(tree)
        .run()
        .map_err(|source| AptError::Unpack { package: package.to_owned(), source })
}

fn update() -> Result<(), CommandError> {
    Tool::new("apt-get", "apt").args(["-q", "update"]).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc(files: &[(&str, &str)]) -> Mirrors {
        try_etc(files).unwrap()
    }

    fn try_etc(files: &[(&str, &str)]) -> Result<Mirrors, AptError> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Mirrors::from_etc(dir.path())
    }

    #[test]
    fn a_machine_without_sources_is_told_so() {
        let error = try_etc(&[]).unwrap_err();
        assert!(matches!(error, AptError::NoMirror { archive: "debian" }), "{error}");
    }

    #[test]
    fn a_list_of_mirrors_stands_for_its_first() {
        let dir = tempfile::tempdir().unwrap();
        let (main, security) = (dir.path().join("main"), dir.path().join("security"));
        fs::write(&main, "# near ones first\nhttp://near.example/debian priority:1\n").unwrap();
        fs::write(&security, "http://sec.example/debian-security\n").unwrap();
        let source = |path: &Path| format!("deb mirror+file:{} x main\n", path.display());
        let mirrors = etc(&[("sources.list", &(source(&main) + &source(&security)))]);
        assert_eq!(mirrors.main, "http://near.example/debian");
        assert_eq!(mirrors.security, "http://sec.example/debian-security");
    }

    #[test]
    fn other_vendors_and_disabled_sources_are_passed_over() {
        let mirrors = etc(&[
            (
                "sources.list",
                "# deb http://no.example/debian x main\ndeb-src http://src.example/debian x main\n",
            ),
            ("sources.list.d/a.list", "deb https://vendor.example/apt/stable any main\n"),
            (
                "sources.list.d/b.sources",
                "Types: deb\nURIs: http://off.example/debian\nEnabled: no\n\n\
                 Types: deb\n# a remark\nURIs: https://mirror.example/debian/\nSuites: x\n",
            ),
            (
                "sources.list.d/c.list",
                "deb [arch=amd64 signed-by=/k.gpg] http://sec.example/debian-security x main\n",
            ),
            ("sources.list.d/d.sources.disabled", "Types: deb\nURIs: http://no.example/debian\n"),
        ]);
        assert_eq!(mirrors.main, "https://mirror.example/debian");
        assert_eq!(mirrors.security, "http://sec.example/debian-security");
    }

    #[test]
    fn a_login_to_the_mirror_stays_out_of_guests() {
        let mirrors = etc(&[(
            "sources.list",
            "deb http://me:secret@mirror.example/debian x main\n\
             deb http://mirror.example/debian-security x main\n",
        )]);
        assert!(mirrors.sources().contains("secret"));
        assert!(mirrors.guest_sources().contains("http://mirror.example/debian "));
        assert!(!mirrors.guest_sources().contains("secret"));
    }
}
