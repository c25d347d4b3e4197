//! One file.
//!
//! Into a sandbox it goes as an archive of one, which has its mode and its time.

use std::fs::Permissions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use nestbox_archive::{About, pack_file, pipe};
use reqwest::{Body, Response};
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Copying;
use super::directory::{HIDDEN, umask};
use super::place::Spot;
use super::target::{Target, is_directory, target_here};
use crate::cli::client::Entry;
use crate::cli::progress::Transfer;

/// Bytes sent at a time at most.
const CHUNK: usize = 64 * 1024;

/// Bits of a mode that are taken over: others give rights, or mean nothing elsewhere.
const MODE: u32 = 0o777;

/// A file on its way into a sandbox.
enum Source {
    /// All is known about it.
    Whole(Box<dyn Read + Send>, About),
    /// Its size is not known.
    Stream(Body),
}

impl Copying<'_> {
    /// Copies a file, or a stream.
    pub(super) async fn file(&self, from: &Spot, to: &Spot) -> Result<()> {
        match (from, to) {
            (Spot::Here(path), Spot::There { id, path: to }) => {
                let source = open(path)?;
                let target = self.target_there(id, to, path.file_name()).await?;
                self.upload(source, id, target).await
            }
            (Spot::There { id, path }, Spot::There { id: other, path: to }) => {
                let source = self.open_there(id, path).await?;
                let target = self.target_there(other, to, path.file_name()).await?;
                self.upload(source, other, target).await
            }
            (_, Spot::There { id, path }) => {
                let target = self.target_there(id, path, None).await?;
                self.upload(Source::Stream(stream(stdin())), id, target).await
            }
            (Spot::There { id, path }, to) => self.download(id, path, to).await,
            (Spot::Stream | Spot::Here(_), _) => unreachable!("one end is in a sandbox"),
        }
    }

    async fn upload(&self, source: Source, id: &str, target: Target) -> Result<()> {
        let Target { path, entry } = target;
        // What is there and no file is written to, and not replaced.
        let replaced = entry.is_none_or(|entry| entry.r#type == "file");
        let parts = path.parent().zip(path.file_name()).filter(|_| replaced);
        let body = match (source, parts) {
            (Source::Whole(content, about), Some((dir, name))) => {
                let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
                let body = packed(content, about, name.into());
                let written = self.client.write_archive(self.there(id, dir), body).await;
                written.with_context(|| format!("cannot copy to {}", path.display()))?;
                let (path, size) = (path.to_string_lossy(), about.size);
                let shown = serde_json::json!({ "path": path, "size": size });
                return Ok(self.format.print(&shown, String::new)?);
            }
            (Source::Whole(content, _), None) => stream(pieces(content)),
            (Source::Stream(body), _) => body,
        };
        let written = self.client.write_file(self.there(id, &path), body).await?;
        Ok(self.format.print(&written, String::new)?)
    }

    /// Opens a file of a sandbox, to be passed on a piece at a time.
    async fn open_there(&self, id: &str, path: &Path) -> Result<Source> {
        let entry = self.client.stat(self.there(id, path)).await?;
        if entry.as_ref().is_some_and(is_directory) {
            bail!("{} is a directory: cp -r copies directories", path.display());
        }
        let mut response = self.client.read_file(self.there(id, path)).await?;
        let (Some(entry), Some(size)) = (entry, response.content_length()) else {
            let pieces = response.bytes_stream();
            let pieces = pieces.map(|piece| piece.map_err(|e| io::Error::other(e.without_url())));
            return Ok(Source::Stream(stream(pieces)));
        };
        let modified = entry.modified_at.timestamp();
        let about = About { size, mode: entry.mode & MODE, modified, owner: (0, 0) };
        let (feed, inlet) = pipe::inlet();
        tokio::spawn(async move {
            loop {
                let piece = match response.chunk().await {
                    Ok(Some(piece)) => Ok(piece),
                    Ok(None) => break,
                    Err(error) => Err(io::Error::other(error.without_url())),
                };
                if piece.is_err() | !feed.send(piece).await {
                    break;
                }
            }
            feed.end().await;
        });
        Ok(Source::Whole(Box::new(inlet), about))
    }

    async fn download(&self, id: &str, path: &Path, to: &Spot) -> Result<()> {
        let Spot::Here(to) = to else {
            let mut response = self.client.read_file(self.there(id, path)).await?;
            copy(&mut response, &mut tokio::io::stdout()).await?;
            return Ok(());
        };
        let target = target_here(path, to)?;
        let entry = self.client.stat(self.there(id, path)).await?;
        if entry.as_ref().is_some_and(is_directory) {
            bail!("{} is a directory: cp -r copies directories", path.display());
        }
        let mut response = self.client.read_file(self.there(id, path)).await?;
        let size = save(&mut response, &target, entry.as_ref()).await?;
        let shown = serde_json::json!({ "path": target.to_string_lossy(), "size": size });
        Ok(self.format.print(&shown, String::new)?)
    }
}

/// Stdin as it comes.
pub(super) fn stdin() -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    pieces(io::stdin())
}

/// What is read, by a thread of its own: when the daemon refuses the upload, the process can end at
/// once. The runtime would first wait for its thread's `read` to return, on a terminal for ever.
fn pieces(mut from: impl Read + Send + 'static) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        loop {
            let mut buffer = vec![0; CHUNK];
            let chunk = from.read(&mut buffer).map(|size| {
                buffer.truncate(size);
                Bytes::from(buffer)
            });
            let last = chunk.as_ref().map_or(true, Bytes::is_empty);
            if sender.blocking_send(chunk).is_err() || last {
                break;
            }
        }
    });
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// A body of unknown size.
fn stream(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    Body::wrap_stream(seen(pieces, Transfer::begin(None)))
}

/// Shows how far a stream has got.
pub(super) fn seen(
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    transfer: Transfer,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream.inspect(move |piece| transfer.add(piece.as_ref().map_or(0, Bytes::len)))
}

fn open(path: &Path) -> Result<Source> {
    let named = || path.display().to_string();
    let mut file = std::fs::File::open(path).with_context(named)?;
    let metadata = file.metadata().with_context(named)?;
    if metadata.is_dir() {
        bail!("{} is a directory: cp -r copies directories", path.display());
    }
    // The size of a pipe says nothing, and neither does that of a file in /proc.
    let known = metadata.is_file() && (metadata.len() > 0 || is_at_its_end(&mut file)?);
    Ok(match known {
        true => Source::Whole(Box::new(file), About::from(&metadata)),
        false => Source::Stream(stream(pieces(file))),
    })
}

fn is_at_its_end(file: &mut std::fs::File) -> io::Result<bool> {
    let empty = file.read(&mut [0])? == 0;
    file.seek(SeekFrom::Start(0))?;
    Ok(empty)
}

/// A file as an archive of one, made by a thread as fast as it is taken.
fn packed(content: impl Read + Send + 'static, about: About, name: PathBuf) -> Body {
    let (mut outlet, mut pieces) = pipe::outlet();
    std::thread::spawn(move || {
        if let Err(error) = pack_file(content, &about, &name, &mut outlet, |_| ()) {
            outlet.fail(&error);
        }
    });
    let stream = futures::stream::poll_fn(move |context| pieces.poll_recv(context));
    Body::wrap_stream(seen(stream.boxed(), Transfer::begin(Some(about.size))))
}

/// Writes what comes to a file here; gives its size in bytes.
async fn save(response: &mut Response, target: &Path, entry: Option<&Entry>) -> Result<u64> {
    let named = || target.display().to_string();
    // A device or a pipe is written to and not replaced.
    if std::fs::metadata(target).is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = File::options().write(true).open(target).await.with_context(named)?;
        return copy(response, &mut file).await;
    }
    // What a link leads to is replaced, and not the link.
    let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    // A copy that breaks off leaves what was there before.
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = entry.map_or(0o666, |entry| entry.mode & MODE) & !umask();
    let (file, temporary) =
        tempfile::Builder::new().prefix(HIDDEN).tempfile_in(dir).with_context(named)?.into_parts();
    let mut file = File::from_std(file);
    let size = copy(response, &mut file).await.with_context(named)?;
    let file = file.into_std().await;
    file.set_permissions(Permissions::from_mode(mode)).with_context(named)?;
    if let Some(entry) = entry {
        file.set_modified(entry.modified_at.into()).with_context(named)?;
    }
    temporary.persist(&target).map_err(|error| error.error).with_context(named)?;
    Ok(size)
}

pub(super) async fn copy(
    response: &mut Response,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<u64> {
    let transfer = Transfer::begin(response.content_length());
    let mut size = 0;
    while let Some(chunk) = response.chunk().await.context("the file broke off")? {
        match to.write_all(&chunk).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(size),
            other => other?,
        }
        size += chunk.len() as u64;
        transfer.add(chunk.len());
    }
    to.flush().await?;
    Ok(size)
}
