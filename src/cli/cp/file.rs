//! One file.

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::{Body, Response};
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::Place;
use crate::cli::client::Client;
use crate::cli::output::Format;
use crate::cli::progress::Transfer;

/// Bytes sent at a time at most.
const CHUNK: usize = 64 * 1024;

/// Copies a file, or stdin, into a sandbox.
pub(super) async fn upload(
    client: &Client,
    format: Format,
    from: &Place,
    id: &str,
    path: &str,
) -> Result<()> {
    let (body, path) = match from {
        Place::Here(file) => (content(file).await?, target_there(file, path)?),
        Place::Stream | Place::Sandbox { .. } => {
            if path.ends_with('/') {
                bail!("{path} is a directory: name the file");
            }
            (Body::wrap_stream(seen(stdin(), Transfer::begin(None))), path.to_owned())
        }
    };
    let written = client.write_file(id, &path, body).await?;
    format.print(&written, String::new)?;
    Ok(())
}

/// Copies a file out of a sandbox.
pub(super) async fn download(
    client: &Client,
    format: Format,
    id: &str,
    path: &str,
    to: &Place,
) -> Result<()> {
    let mut response = client.read_file(id, path).await?;
    let size = save(&mut response, path, to).await?;
    // Stdout may be where the file went.
    if *to != Place::Stream {
        let shown = serde_json::json!({ "path": target_here(path, to), "size": size });
        format.print(&shown, String::new)?;
    }
    Ok(())
}

/// Stdin as it comes, read by a thread of its own: when the daemon refuses the upload, the process
/// can end at once. The runtime would first wait for its thread's `read` to return, on a terminal
/// for ever.
pub(super) fn stdin() -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        loop {
            let mut buffer = vec![0; CHUNK];
            let chunk = io::stdin().read(&mut buffer).map(|size| {
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

/// Shows how far a stream has got.
pub(super) fn seen(
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    transfer: Transfer,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream.inspect(move |piece| transfer.add(piece.as_ref().map_or(0, Bytes::len)))
}

async fn content(path: &Path) -> Result<Body> {
    let named = || path.display().to_string();
    let file = File::open(path).await.with_context(named)?;
    let metadata = file.metadata().await.with_context(named)?;
    if metadata.is_dir() {
        bail!("{} is a directory: cp -r copies directories", path.display());
    }
    // The size of a pipe or of a file in /proc says nothing.
    let size = (metadata.is_file() && metadata.len() > 0).then_some(metadata.len());
    let stream = ReaderStream::with_capacity(file, CHUNK);
    Ok(Body::wrap_stream(seen(stream, Transfer::begin(size))))
}

/// Where in the sandbox a file goes: below the path, if that ends like a directory.
pub(super) fn target_there(file: &Path, path: &str) -> Result<String> {
    if !path.ends_with('/') {
        return Ok(path.to_owned());
    }
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{}: name the file in the sandbox", file.display()))?;
    Ok(format!("{path}{name}"))
}

/// Where here a file goes: into the directory, if it is one.
pub(super) fn target_here(path: &str, to: &Place) -> Option<PathBuf> {
    match to {
        Place::Here(dir) if dir.is_dir() => Some(dir.join(Path::new(path).file_name()?)),
        Place::Here(file) => Some(file.clone()),
        Place::Stream | Place::Sandbox { .. } => None,
    }
}

/// Writes what comes to where it goes; gives its size in bytes.
async fn save(response: &mut Response, path: &str, to: &Place) -> Result<u64> {
    if *to == Place::Stream {
        return copy(response, &mut tokio::io::stdout()).await;
    }
    let target = target_here(path, to).with_context(|| format!("{path} has no file name"))?;
    let named = || target.display().to_string();
    // A device or a pipe is written to and not replaced.
    if std::fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = File::options().write(true).open(&target).await.with_context(named)?;
        return copy(response, &mut file).await;
    }
    // A copy that breaks off leaves what was there before. The mode is what any new file gets.
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (file, temporary) = tempfile::Builder::new()
        .prefix(".nestbox-cp-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .with_context(named)?
        .into_parts();
    let size = copy(response, &mut File::from_std(file)).await.with_context(named)?;
    temporary.persist(&target).with_context(named)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_the_files_name() {
        assert_eq!(target_there(Path::new("a/b.txt"), "/tmp/").unwrap(), "/tmp/b.txt");
        assert_eq!(target_there(Path::new("a/b.txt"), "/tmp").unwrap(), "/tmp");
        assert!(target_there(Path::new("/"), "/tmp/").is_err());
        let dir = tempfile::tempdir().unwrap();
        let to = Place::Here(dir.path().to_owned());
        assert_eq!(target_here("/tmp/b.txt", &to), Some(dir.path().join("b.txt")));
        assert_eq!(target_here("/", &to), None);
    }
}
