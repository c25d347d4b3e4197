//! Directories of a guest that are watched.

use connectrpc::ErrorCode;
use connectrpc::client::CallOptions;
use nestbox_proto::filesystem::__buffa::oneof::watch_dir_response::Event;
use nestbox_proto::filesystem::__buffa::view::WatchDirResponseView;
use nestbox_proto::filesystem::{EventType, FilesystemEvent, WatchDirRequest};

use super::error::is_over_a_limit;
use super::transport::Messages;
use super::tree::{acting_as, entry, name, on_the_wire};
use super::{Agent, AgentError, QUICK};
use crate::domain::file::{ChangeKind, FileChange, Reach, WatchNews};
use crate::domain::path::GuestPath;

type Events = Messages<WatchDirResponseView<'static>>;

/// A directory that is watched. The guest keeps some 16,000 changes for whoever takes them slowly.
pub struct Watching {
    agent: Agent,
    events: Events,
}

impl Agent {
    /// Watches a directory: no later change will be missed.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Invalid`] for what is no directory,
    /// [`AgentError::TooMuch`] if the guest's kernel watches no more.
    pub async fn watch(
        &self,
        path: &GuestPath,
        reach: Reach,
        user: Option<&str>,
    ) -> Result<Watching, AgentError> {
        let (text, raw_path) = on_the_wire(path);
        let request = WatchDirRequest {
            path: text,
            raw_path,
            recursive: reach == Reach::Below,
            include_entry: true,
            ..Default::default()
        };
        self.within(QUICK, self.watched(path, request, acting_as(user))).await?
    }

    async fn watched(
        &self,
        path: &GuestPath,
        request: WatchDirRequest,
        options: CallOptions,
    ) -> Result<Watching, AgentError> {
        let refused = |error: connectrpc::ConnectError| match error.code {
            ErrorCode::ResourceExhausted if !is_over_a_limit(&error) => AgentError::TooMuch {
                message: format!("the guest's kernel cannot watch {path} too: it watches too much"),
            },
            _ => self.refused(error),
        };
        let mut events =
            self.files.watch_dir_with_options(request, options).await.map_err(refused)?;
        loop {
            match events.message().await.map_err(refused)? {
                None => return Err(self.unreachable("the stream ended before the start")),
                Some(message) => {
                    if let Some(Event::Start(_)) = message.to_owned_message().event {
                        return Ok(Watching { agent: self.clone(), events });
                    }
                }
            }
        }
    }
}

impl Watching {
    /// Waits for what happens next. Nothing comes after [`WatchNews::Lost`]. Nothing is lost when
    /// the future is dropped.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`].
    pub async fn next(&mut self) -> Result<WatchNews, AgentError> {
        loop {
            let message = match self.events.message().await {
                Ok(Some(message)) => message.to_owned_message(),
                Ok(None) => return Err(self.agent.unreachable("the stream of changes ended")),
                Err(error) if error.code == ErrorCode::DataLoss => return Ok(WatchNews::Lost),
                Err(error) => return Err(self.agent.broken(&error)),
            };
            match message.event {
                Some(Event::Filesystem(event)) => {
                    if let Some(change) = change(*event) {
                        return Ok(WatchNews::Change(Box::new(change)));
                    }
                }
                Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
            }
        }
    }
}

/// None for what a newer agent may tell.
fn change(event: FilesystemEvent) -> Option<FileChange> {
    let kind = match event.r#type.as_known()? {
        EventType::EVENT_TYPE_CREATE => ChangeKind::Create,
        EventType::EVENT_TYPE_WRITE => ChangeKind::Write,
        EventType::EVENT_TYPE_REMOVE => ChangeKind::Remove,
        EventType::EVENT_TYPE_RENAME => ChangeKind::Rename,
        EventType::EVENT_TYPE_CHMOD => ChangeKind::Chmod,
        EventType::EVENT_TYPE_UNSPECIFIED => return None,
    };
    let name = name(event.name, event.raw_name);
    Some(FileChange { kind, name, entry: event.entry.into_option().map(entry) })
}
