//! What is said about one file, directory or symbolic link.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use buffa_types::google::protobuf::Timestamp;
use nestbox_proto::filesystem::{EntryInfo, FileType};

use crate::agent::users::Users;

/// Where metadata of callers is kept among a file's extended attributes.
pub const METADATA_PREFIX: &str = "user.e2b.";

/// Describes what is at `path`, without following a symbolic link there.
///
/// # Errors
///
/// The kernel's, e.g. when there is nothing.
pub fn describe(path: &Path, users: &Users) -> io::Result<EntryInfo> {
    let meta = std::fs::symlink_metadata(path)?;
    let link = meta.is_symlink().then(|| follow(path));
    let target = link.as_ref().and_then(|_| std::fs::metadata(path).ok());
    let kind = match (&link, &target) {
        (None, _) => file_type(&meta),
        (Some(_), Some(target)) => file_type(target),
        (Some(_), None) => FileType::FILE_TYPE_SYMLINK,
    };
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(EntryInfo {
        raw_name: raw(name),
        raw_path: raw(path.as_os_str()),
        raw_symlink_target: link.as_ref().map_or_else(Vec::new, |link| raw(link.as_os_str())),
        name: name.to_string_lossy().into_owned(),
        r#type: kind.into(),
        path: path.to_string_lossy().into_owned(),
        size: i64::try_from(meta.size()).unwrap_or(i64::MAX),
        mode: target.as_ref().unwrap_or(&meta).mode() & 0o7777,
        permissions: permissions(&meta),
        owner: users.user_name(meta.uid()),
        group: users.group_name(meta.gid()),
        modified_time: timestamp(&meta).into(),
        symlink_target: link.map(|link| link.to_string_lossy().into_owned()),
        metadata: metadata(path).collect(),
    })
}

/// Metadata that callers keep with a file; none where the file system keeps no attributes.
fn metadata(path: &Path) -> impl Iterator<Item = (String, String)> {
    let names = xattr::list(path).into_iter().flatten();
    names.filter_map(move |name| {
        let key = name.to_str()?.strip_prefix(METADATA_PREFIX)?.to_owned();
        let value = xattr::get(path, &name).ok().flatten()?;
        Some((key, String::from_utf8_lossy(&value).into_owned()))
    })
}

/// The final target of a link, or its text where it leads nowhere.
fn follow(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::fs::read_link(path)).unwrap_or_default()
}

/// The bytes of a name that is not UTF-8, and so more than its text; nothing of another one.
pub fn raw(name: &OsStr) -> Vec<u8> {
    if name.to_str().is_some() { Vec::new() } else { name.as_bytes().to_vec() }
}

fn file_type(meta: &Metadata) -> FileType {
    if meta.is_file() {
        FileType::FILE_TYPE_FILE
    } else if meta.is_dir() {
        FileType::FILE_TYPE_DIRECTORY
    } else {
        FileType::FILE_TYPE_UNSPECIFIED
    }
}

fn timestamp(meta: &Metadata) -> Timestamp {
    let nanos = i32::try_from(meta.mtime_nsec()).unwrap_or(0);
    Timestamp { seconds: meta.mtime(), nanos, ..Default::default() }
}

/// The first column of `ls -l`.
fn permissions(meta: &Metadata) -> String {
    let (mode, kind) = (meta.mode(), meta.file_type());
    let first = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () if kind.is_block_device() => 'b',
        () if kind.is_char_device() => 'c',
        () => '-',
    };
    // For each of owner, group and others: where its bits are, and what its special bit does.
    let classes = [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')];
    let mut text = String::from(first);
    for (shift, special, letter) in classes {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn users() -> Users {
        Users::new("/etc/passwd", "/etc/group")
    }

    #[test]
    fn permissions_read_as_ls_prints_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        for (mode, text) in [
            (0o644, "-rw-r--r--"),
            (0o4755, "-rwsr-xr-x"),
            (0o2600, "-rw---S---"),
            (0, "----------"),
        ] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let entry = describe(&file, &users()).unwrap();
            assert_eq!((entry.permissions.as_str(), entry.mode), (text, mode));
        }
        let tmp = describe(Path::new("/tmp"), &users()).unwrap();
        assert_eq!(tmp.permissions, "drwxrwxrwt");
        assert_eq!(describe(Path::new("/"), &users()).unwrap().name, "/");
    }

    #[test]
    fn a_link_has_the_type_of_its_target_and_a_dangling_one_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        let entry = describe(&link, &users()).unwrap();
        assert_eq!(entry.r#type, FileType::FILE_TYPE_SYMLINK);
        assert_eq!(entry.symlink_target.as_deref(), Some("file"));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let entry = describe(&link, &users()).unwrap();
        assert_eq!(entry.r#type, FileType::FILE_TYPE_FILE);
        let target = std::fs::canonicalize(file).unwrap();
        assert_eq!(entry.symlink_target.as_deref(), target.to_str());
    }
}
