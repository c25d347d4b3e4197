//! The tree of a guest's files: what is where, and changes of that.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::DateTime;
use connectrpc::client::CallOptions;
use nestbox_proto::filesystem::{
    EntryInfo, FileType, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
};

use super::error::is_over_a_limit;
use super::{Agent, AgentError, LONG, QUICK};
use crate::domain::file::{FileEntry, FileKind};
use crate::domain::path::GuestPath;

/// Bytes of the longest list that is taken: some 15,000 entries. Here they may take as much again.
const LIST_LIMIT: usize = 4 << 20;

impl Agent {
    /// Describes what is at `path`, without following a symbolic link there.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Invalid`].
    pub async fn stat(
        &self,
        path: &GuestPath,
        user: Option<&str>,
    ) -> Result<FileEntry, AgentError> {
        let (path, raw_path) = on_the_wire(path);
        let request = StatRequest { path, raw_path };
        let answer = self.files.stat_with_options(request, acting_as(user));
        let answer = self.within(QUICK, answer).await?;
        self.one(answer.map_err(|error| self.refused(error))?.into_owned().entry.into_option())
    }

    /// Lists what is below a directory, down to `depth` levels, in the order of names, each
    /// directory followed by what is in it.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Invalid`] for what is no directory,
    /// [`AgentError::TooMuch`].
    pub async fn list(
        &self,
        path: &GuestPath,
        depth: u32,
        user: Option<&str>,
    ) -> Result<Vec<FileEntry>, AgentError> {
        let (text, raw_path) = on_the_wire(path);
        let request = ListDirRequest { path: text, raw_path, depth };
        let options =
            acting_as(user).with_max_message_size(LIST_LIMIT).with_element_memory_limit(LIST_LIMIT);
        let answer = self.files.list_dir_with_options(request, options);
        let answer =
            self.within(LONG, answer).await?.map_err(|error| match is_over_a_limit(&error) {
                true => AgentError::TooMuch {
                    message: format!(
                        "there is more below {path} than a list holds: ask for less depth"
                    ),
                },
                false => self.refused(error),
            })?;
        Ok(answer.into_owned().entries.into_iter().map(entry).collect())
    }

    /// Makes a directory and the parents it lacks.
    ///
    /// # Errors
    ///
    /// [`AgentError::Conflict`], [`AgentError::Invalid`], [`AgentError::NoSpace`].
    pub async fn make_dir(
        &self,
        path: &GuestPath,
        user: Option<&str>,
    ) -> Result<FileEntry, AgentError> {
        let (path, raw_path) = on_the_wire(path);
        let request = MakeDirRequest { path, raw_path };
        let answer = self.files.make_dir_with_options(request, acting_as(user));
        let answer = self.within(QUICK, answer).await?;
        self.one(answer.map_err(|error| self.refused(error))?.into_owned().entry.into_option())
    }

    /// Moves a file or a directory, making the parents that its new place lacks. A file that is
    /// there is replaced.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Conflict`] if a directory is in the way,
    /// [`AgentError::Invalid`], [`AgentError::NoSpace`].
    pub async fn move_file(
        &self,
        source: &GuestPath,
        destination: &GuestPath,
        user: Option<&str>,
    ) -> Result<FileEntry, AgentError> {
        let (source, raw_source) = on_the_wire(source);
        let (destination, raw_destination) = on_the_wire(destination);
        let request = MoveRequest { source, destination, raw_source, raw_destination };
        let answer = self.files.move_with_options(request, acting_as(user));
        let answer = self.within(LONG, answer).await?;
        self.one(answer.map_err(|error| self.refused(error))?.into_owned().entry.into_option())
    }

    /// Removes a file, or a directory with all that is in it. What is not there is fine.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`].
    pub async fn remove(&self, path: &GuestPath, user: Option<&str>) -> Result<(), AgentError> {
        let (path, raw_path) = on_the_wire(path);
        let request = RemoveRequest { path, raw_path };
        let answer = self.files.remove_with_options(request, acting_as(user));
        let answer = self.within(LONG, answer).await?;
        answer.map(drop).map_err(|error| self.refused(error))
    }

    fn one(&self, found: Option<EntryInfo>) -> Result<FileEntry, AgentError> {
        found.map(entry).ok_or_else(|| self.unreachable("the answer describes nothing"))
    }
}

/// The user of a call, whose home relative paths start at and who owns what is made.
pub(super) fn acting_as(user: Option<&str>) -> CallOptions {
    let options = CallOptions::default();
    match user {
        Some(user) => {
            let credentials = BASE64_STANDARD.encode(format!("{user}:"));
            options.with_header("authorization", format!("Basic {credentials}"))
        }
        None => options,
    }
}

/// A path as requests have it: a text, or bytes. An agent that does not know of bytes yet finds a
/// zero byte in the text then and refuses it, where another text would be another file.
pub(super) fn on_the_wire(path: &GuestPath) -> (String, Vec<u8>) {
    match path.raw() {
        None => (path.to_string(), Vec::new()),
        Some(bytes) => ("\0".to_owned(), bytes.to_vec()),
    }
}

/// A name as answers have it: bytes, where they are more than the text.
pub(super) fn name(text: String, raw: Vec<u8>) -> GuestPath {
    if raw.is_empty() { text.into() } else { raw.into() }
}

pub(super) fn entry(found: EntryInfo) -> FileEntry {
    let modified = found.modified_time.into_option().unwrap_or_default();
    let nanos = u32::try_from(modified.nanos).unwrap_or(0);
    FileEntry {
        kind: match found.r#type.as_known() {
            Some(FileType::FILE_TYPE_FILE) => FileKind::File,
            Some(FileType::FILE_TYPE_DIRECTORY) => FileKind::Directory,
            Some(FileType::FILE_TYPE_SYMLINK) => FileKind::Symlink,
            Some(FileType::FILE_TYPE_UNSPECIFIED) | None => FileKind::Other,
        },
        name: name(found.name, found.raw_name),
        path: name(found.path, found.raw_path),
        size: u64::try_from(found.size).unwrap_or(0),
        mode: found.mode,
        permissions: found.permissions,
        owner: found.owner,
        group: found.group,
        modified_at: DateTime::from_timestamp(modified.seconds, nanos).unwrap_or_default(),
        symlink_target: found.symlink_target.map(|text| name(text, found.raw_symlink_target)),
    }
}
