//! What is said about one file, directory or symbolic link in a sandbox.

use chrono::{DateTime, Utc};

use super::path::GuestPath;

/// What something is; a symbolic link is what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link that leads nowhere.
    Symlink,
    /// A device, a pipe or a socket.
    Other,
}

/// One file, directory or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// The last part of its path.
    pub name: GuestPath,
    /// Where it is, from the root.
    pub path: GuestPath,
    /// What it is.
    pub kind: FileKind,
    /// In bytes; of a link, that of its text.
    pub size: u64,
    /// Permission bits, 0 to 0o7777; of a link, those of what it leads to.
    pub mode: u32,
    /// As `ls -l` prints them, such as `-rw-r--r--`.
    pub permissions: String,
    /// Name of the user it belongs to, or the number if that has no name.
    pub owner: String,
    /// Name of the group it belongs to, or the number.
    pub group: String,
    /// When its content was changed last.
    pub modified_at: DateTime<Utc>,
    /// Where a link leads.
    pub symlink_target: Option<GuestPath>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It has come: made, or moved here.
    Create,
    /// Its content was changed.
    Write,
    /// It was removed.
    Remove,
    /// It was moved away.
    Rename,
    /// Its mode, owner or times were changed.
    Chmod,
}

/// Something that happened below a directory that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// What.
    pub kind: ChangeKind,
    /// To what, from the directory; `.` is the directory itself.
    pub name: GuestPath,
    /// How it is now, if it is there.
    pub entry: Option<FileEntry>,
}

/// How far down a directory is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only what is in it.
    Here,
    /// All below, also in directories that are made later.
    Below,
}

/// What is heard of a directory that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchNews {
    /// Something happened.
    Change(Box<FileChange>),
    /// More happened than could be told, and nothing more will be.
    Lost,
}

/// What came out of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of all files together.
    pub size: u64,
}

/// Which part of a file to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileRange {
    /// As the header `Range` has it; all of it, if absent.
    pub range: Option<String>,
    /// Only if it still is this version, as the header `If-Range` has it; else all of it.
    pub condition: Option<String>,
}

/// What is known of a file on its way out of a sandbox, as HTTP's headers have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileHead {
    /// Bytes that follow, if known.
    pub length: Option<u64>,
    /// Which part of how much follows, if not all of it.
    pub part: Option<String>,
    /// Which version it is.
    pub tag: Option<String>,
    /// When it was changed last.
    pub modified: Option<String>,
}
