//! Users and groups of the guest, read from `/etc/passwd` and `/etc/group`.
//!
//! Parsed by hand: the image's `nsswitch.conf` may name modules that a static binary cannot load.
//! The tables are kept until one of the files changes, so that a look-up costs two `stat` calls.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// One account, as a new session of it needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell; `/bin/sh` where the file names none.
    pub shell: String,
}

/// Why a user could not be found.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// No such name, and no such number.
    #[error("user not found: {name}")]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

fn nameless_root() -> User {
    User {
        name: "root".to_owned(),
        uid: 0,
        gid: 0,
        groups: vec![0],
        home: PathBuf::from("/"),
        shell: "/bin/sh".to_owned(),
    }
}

/// Identity of a file's contents: device, inode, size in bytes, modification time in nanoseconds.
type Stamp = Option<(u64, u64, u64, i64)>;

#[derive(Debug, Default)]
struct Tables {
    stamps: (Stamp, Stamp),
    users: HashMap<String, Arc<User>>,
    names: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

/// The guest's accounts.
#[derive(Debug)]
pub struct Users {
    passwd: PathBuf,
    group: PathBuf,
    tables: Mutex<Arc<Tables>>,
}

impl Users {
    /// Accounts kept in these two files.
    pub fn new(passwd: impl Into<PathBuf>, group: impl Into<PathBuf>) -> Self {
        Self {
            passwd: passwd.into(),
            group: group.into(),
            tables: Mutex::new(Arc::new(Tables::default())),
        }
    }

    /// Finds a user by name, or by number as `sudo -u '#1000'` would without the `#`.
    ///
    /// # Errors
    ///
    /// [`UserError::Unknown`] when neither matches.
    pub fn find(&self, name: &str) -> Result<Arc<User>, UserError> {
        let tables = self.tables();
        let by_number = || name.parse().ok().and_then(|uid: u32| tables.names.get(&uid));
        let known =
            tables.users.get(name).or_else(|| by_number().and_then(|name| tables.users.get(name)));
        match known {
            Some(user) => Ok(user.clone()),
            // An image from scratch has no accounts at all, and the kernel's root nevertheless.
            None if ["root", "0"].contains(&name) => Ok(Arc::new(nameless_root())),
            None => Err(UserError::Unknown { name: name.to_owned() }),
        }
    }

    /// The name of a user id, or the number itself.
    pub fn user_name(&self, uid: u32) -> String {
        self.tables().names.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// The name of a group id, or the number itself.
    pub fn group_name(&self, gid: u32) -> String {
        self.tables().groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }

    fn tables(&self) -> Arc<Tables> {
        let stamps = (stamp(&self.passwd), stamp(&self.group));
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.stamps != stamps
            // With somebody's rights it may be that they cannot be read now.
            && let (Some(passwd), Some(group)) = (text(&self.passwd), text(&self.group))
        {
            *tables = Arc::new(Tables { stamps, ..parse(&passwd, &group) });
        }
        Arc::clone(&tables)
    }
}

/// What a file says, which is nothing if it is not there.
fn text(path: &Path) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(_) => Some(String::new()),
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec()))
}

fn parse(passwd: &str, group: &str) -> Tables {
    let mut tables = Tables::default();
    let mut memberships: HashMap<&str, Vec<u32>> = HashMap::new();
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members, ..] = fields[..] else { continue };
        let Ok(gid) = gid.parse() else { continue };
        tables.groups.entry(gid).or_insert_with(|| name.to_owned());
        for member in members.split(',').filter(|member| !member.is_empty()) {
            memberships.entry(member).or_default().push(gid);
        }
    }
    for line in passwd.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ref rest @ ..] = fields[..] else { continue };
        let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { continue };
        if name.is_empty() || tables.users.contains_key(name) {
            continue;
        }
        let mut groups = vec![gid];
        let others = memberships.get(name).into_iter().flatten();
        groups.extend(others.filter(|&&other| other != gid));
        let shell = rest.first().filter(|shell| !shell.is_empty()).unwrap_or(&"/bin/sh");
        let user = User {
            name: name.to_owned(),
            uid,
            gid,
            groups,
            home: PathBuf::from(if home.is_empty() { "/" } else { home }),
            shell: (*shell).to_owned(),
        };
        tables.names.entry(uid).or_insert_with(|| name.to_owned());
        tables.users.insert(name.to_owned(), Arc::new(user));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nnobody:x:65534:65534::\n\
                          user:x:1000:1000:,,,:/home/user:\nbad:x:one:1::/:\n";
    const GROUP: &str = "root:x:0:\nuser:x:1000:\nsudo:x:27:user\nplugdev:x:46:other,user\n#";

    fn users() -> (tempfile::TempDir, Users) {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        std::fs::write(&passwd, PASSWD).unwrap();
        std::fs::write(&group, GROUP).unwrap();
        (dir, Users::new(passwd, group))
    }

    #[test]
    fn an_image_without_accounts_has_root() {
        let users = Users::new("/nowhere/passwd", "/nowhere/group");
        assert_eq!(users.find("root").map(|user| user.uid), Ok(0));
        assert_eq!(users.find("0").map(|user| user.home.clone()), Ok(PathBuf::from("/")));
        assert!(users.find("user").is_err());
    }

    #[test]
    fn a_user_comes_with_all_groups_and_a_shell() {
        let (_dir, users) = users();
        let user = users.find("user").unwrap();
        assert_eq!(user.groups, [1000, 27, 46]);
        assert_eq!(user.home, Path::new("/home/user"));
        assert_eq!(user.shell, "/bin/sh");
        assert_eq!(users.find("1000").unwrap(), user);
        assert_eq!(users.find("nobody").unwrap().home, Path::new("/"));
    }

    #[test]
    fn broken_lines_and_unknown_names_are_not_users() {
        let (_dir, users) = users();
        for name in ["broken", "bad", "", "1", "user:x"] {
            assert_eq!(users.find(name), Err(UserError::Unknown { name: name.to_owned() }));
        }
        assert_eq!(users.user_name(1000), "user");
        assert_eq!(users.group_name(4711), "4711");
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (dir, users) = users();
        assert!(users.find("late").is_err());
        let passwd = format!("{PASSWD}late:x:1001:1001::/home/late:/bin/sh\n");
        std::fs::write(dir.path().join("passwd"), passwd).unwrap();
        assert_eq!(users.find("late").unwrap().uid, 1001);
    }
}
