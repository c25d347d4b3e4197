//! What an image takes over from this machine so that `pip` and `npm` work in a guest as they do
//! here: the mirrors of their registries, and the authorities this machine trusts besides Debian's.
//!
//! Logins stay here: those in URLs are cut out, and of npm's settings only registries are taken.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::apt::without_login;

/// The certificates that programs of Debian's trust, in the host and in a guest.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Those of Debian's own package.
const PACKAGED: &str = "usr/share/ca-certificates";
/// Where those of an administrator are, for update-ca-certificates(8).
const LOCAL: &str = "usr/local/share/ca-certificates";
/// Bytes of a configuration file that are read; more is no configuration.
const LIMIT: u64 = 1 << 20;

/// Files that a guest gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Registries {
    /// `/etc/pip.conf`; empty for none.
    pub pip: String,
    /// `/etc/npmrc`; empty for none.
    pub npm: String,
    /// Certificates as PEM, each one whole.
    pub certificates: Vec<String>,
}

impl Registries {
    /// Reads what this machine uses: the settings of everybody, of the user who runs this, and of
    /// its environment, the later ones counting.
    pub fn of_host() -> Self {
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let home = home.strip_prefix("/").unwrap_or(&home);
        Self::from(Path::new("/"), home, &|name| env::var(name).ok())
    }

    fn from(root: &Path, home: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let certificates = certificates(root);
        let read = |path: &Path| text(&root.join(path));
        let of_home = |name: &str| home.join(name);
        let files = [PathBuf::from("etc/pip.conf"), of_home(".pip/pip.conf")];
        let files = files.into_iter().chain([of_home(".config/pip/pip.conf")]);
        let mut pip = Settings::default();
        files.for_each(|path| pip.read_ini(&read(&path)));
        for (name, key) in PIP_VARIABLES {
            pip.set(key, variable(name).as_deref());
        }
        let mut npm = Settings::default();
        for path in ["etc/npmrc", "usr/etc/npmrc", "usr/local/etc/npmrc"] {
            npm.read_npm(&read(Path::new(path)));
        }
        npm.read_npm(&read(&of_home(".npmrc")));
        for name in ["NPM_CONFIG_REGISTRY", "npm_config_registry"] {
            npm.set("registry", variable(name).as_deref());
        }
        // Both come with authorities of their own and look at the machine's only if told so.
        let bundle = (!certificates.is_empty()).then(|| format!("/{BUNDLE}"));
        pip.set("cert", bundle.as_deref());
        npm.set("cafile", bundle.as_deref());
        Self { pip: pip.pip_conf(), npm: npm.npmrc(), certificates }
    }
}

/// Of pip's settings those that say where packages are, with the variables that set them.
const PIP_VARIABLES: [(&str, &str); 3] = [
    ("PIP_INDEX_URL", "index-url"),
    ("PIP_EXTRA_INDEX_URL", "extra-index-url"),
    ("PIP_TRUSTED_HOST", "trusted-host"),
];

/// Settings in the order in which they were first made.
#[derive(Default)]
struct Settings(Vec<(String, String)>);

impl Settings {
    /// Takes a setting; an empty one unsets it. Of a value's words those that a guest could not
    /// reach or must not know are left out.
    fn set(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.0.retain(|(known, _)| known != key);
        let words = value.split_whitespace().filter(|word| !is_here(word)).map(without_login);
        let value = words.collect::<Vec<_>>().join(" ");
        if !value.is_empty() {
            self.0.push((key.to_owned(), value));
        }
    }

    /// Reads `key = value` in `[global]` and `[install]`. A value may go on in lines that begin with
    /// a space.
    fn read_ini(&mut self, text: &str) {
        let mut section = String::new();
        let mut open: Option<(String, String)> = None;
        for line in text.lines().chain(["[]"]) {
            let continued = line.starts_with([' ', '\t']);
            let line = line.trim();
            match &mut open {
                Some((_, value)) if continued => {
                    *value += " ";
                    *value += line;
                    continue;
                }
                _ => {}
            }
            if let Some((key, value)) = open.take() {
                self.set(&key, Some(&value));
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.to_owned();
            } else if ["global", "install"].contains(&section.as_str())
                && !line.starts_with(['#', ';'])
                && let Some((key, value)) = line.split_once(['=', ':'])
            {
                let key = key.trim().to_lowercase().replace('_', "-");
                if PIP_VARIABLES.iter().any(|(_, known)| *known == key) {
                    open = Some((key, value.trim().to_owned()));
                }
            }
        }
    }

    /// Reads `registry` and `@scope:registry`, and nothing else: the rest may be logins.
    fn read_npm(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
            let Some((key, value)) = line.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim().trim_matches(['"', '\'']));
            let scoped = key.starts_with('@') && key.ends_with(":registry");
            // `${NAME}` would be filled in from an environment that the guest does not have.
            if (key == "registry" || scoped) && !value.contains("${") {
                self.set(key, Some(value));
            }
        }
    }

    fn pip_conf(&self) -> String {
        match self.0.is_empty() {
            true => String::new(),
            false => self.lines().fold("[global]\n".to_owned(), |text, line| text + &line),
        }
    }

    fn npmrc(&self) -> String {
        self.lines().collect()
    }

    fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(key, value)| format!("{key}={value}\n"))
    }
}

/// Whether a URL leads to the machine that it is used on, which is another one in a guest.
fn is_here(word: &str) -> bool {
    let Some((scheme, rest)) = word.split_once("://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let loopback = ["localhost", "127.", "[::1]", "0.0.0.0"];
    scheme == "file" || loopback.iter().any(|name| host.starts_with(name))
}

/// Returns the certificates that this machine trusts and Debian's package does not bring. A machine
/// that keeps them elsewhere than Debian's has none.
fn certificates(root: &Path) -> Vec<String> {
    let mut packaged = BTreeSet::new();
    let mut pending = vec![root.join(PACKAGED)];
    if !pending[0].is_dir() {
        return Vec::new();
    }
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                _ => packaged.extend(blocks(&text(&entry.path()))),
            }
        }
    }
    let trusted = blocks(&text(&root.join(BUNDLE)));
    trusted.into_iter().filter(|certificate| !packaged.contains(certificate)).collect()
}

/// The certificates in a PEM file, each as one text that is the same however it was broken up.
fn blocks(text: &str) -> Vec<String> {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let bodies = text.split(begin).skip(1).filter_map(|rest| rest.split_once(end));
    let bodies = bodies.map(|(body, _)| body.split_whitespace().collect::<String>());
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    bodies
        .filter(|body| !body.is_empty() && body.chars().all(base64))
        .map(|body| {
            let lines: Vec<&str> = (0..body.len())
                .step_by(64)
                .map(|at| &body[at..(at + 64).min(body.len())])
                .collect();
            format!("{begin}\n{}\n{end}\n", lines.join("\n"))
        })
        .collect()
}

/// A file's text; nothing of one that is not there or is none.
fn text(path: &Path) -> String {
    let small = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= LIMIT);
    small.then(|| fs::read_to_string(path).ok()).flatten().unwrap_or_default()
}

/// Writes them into the tree of a guest. Certificates count once update-ca-certificates has run there.
///
/// # Errors
/// Those of writing; the path says which file.
pub fn write(registries: &Registries, tree: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    let put = |name: &str, text: &str| {
        let path = tree.join(name);
        // For everybody, whatever this process lets others read.
        let write = || {
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
        };
        write().map_err(|source| (path.clone(), source))
    };
    for (name, text) in [("etc/pip.conf", &registries.pip), ("etc/npmrc", &registries.npm)] {
        if !text.is_empty() {
            put(name, text)?;
        }
    }
    if !registries.certificates.is_empty() {
        let dir = tree.join(LOCAL);
        fs::create_dir_all(&dir).map_err(|source| (dir, source))?;
    }
    for (number, certificate) in registries.certificates.iter().enumerate() {
        put(&format!("{LOCAL}/host-{number}.crt"), certificate)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "registries_tests.rs"]
mod tests;
