//! `cp`: one file into a sandbox or out of it.

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use futures::Stream;
use reqwest::{Body, Response, multipart::Part};
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::client::{Client, Written};
use super::output::Format;
use super::resolve::resolve;

/// Bytes of stdin sent at a time at most.
const STDIN_CHUNK: usize = 64 * 1024;

/// Arguments of `cp`.
#[derive(Debug, Args)]
#[command(override_usage = "nestbox cp SRC ID:DST\n       nestbox cp ID:SRC DST")]
pub struct CpArgs {
    /// A file here, `ID:PATH` for one in a sandbox, or `-` for stdin
    #[arg(value_name = "SRC")]
    from: Place,
    /// A file or directory here, `ID:PATH` for one in a sandbox, or `-` for stdout
    #[arg(value_name = "DST")]
    to: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Stdin or stdout.
    Stream,
    /// A path on this machine.
    Here(PathBuf),
    /// A path in a sandbox.
    Sandbox { id: String, path: String },
}

/// The argument names no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum PlaceError {
    #[error("the path is empty")]
    Empty,
    #[error("there is no path after the colon")]
    NoPath,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text.split_once(':') {
            _ if text.is_empty() => Err(PlaceError::Empty),
            _ if text == "-" => Ok(Self::Stream),
            // A local name with a colon is written with a slash before it: ./a:b
            Some((id, _)) if id.is_empty() || id.contains('/') => Ok(Self::Here(text.into())),
            Some((_, "")) => Err(PlaceError::NoPath),
            Some((id, path)) => Ok(Self::Sandbox { id: id.to_owned(), path: path.to_owned() }),
            None => Ok(Self::Here(text.into())),
        }
    }
}

pub(super) async fn run(client: &Client, format: Format, args: CpArgs) -> Result<ExitCode> {
    match (args.from, args.to) {
        (Place::Sandbox { .. }, Place::Sandbox { .. }) => {
            bail!("cannot copy between sandboxes directly: copy through `-` or a file here")
        }
        (Place::Sandbox { id, path }, to) => {
            let id = resolve(client, &id).await?;
            let size = download(client, &id, &path, &to).await?;
            // Stdout may be where the file went.
            if to != Place::Stream {
                let shown = serde_json::json!({ "path": local_target(&path, &to), "size": size });
                format.print(&shown, String::new)?;
            }
        }
        (from, Place::Sandbox { id, path }) => {
            let id = resolve(client, &id).await?;
            let written = upload(client, &from, &id, &path).await?;
            format.print(&written, String::new)?;
        }
        (_, _) => bail!("neither is in a sandbox: write ID:PATH for the one that is"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn upload(client: &Client, from: &Place, id: &str, path: &str) -> Result<Written> {
    let (content, path) = match from {
        Place::Here(file) => (file_part(file).await?, sandbox_target(file, path)?),
        Place::Stream | Place::Sandbox { .. } => {
            if path.ends_with('/') {
                bail!("{path} is a directory: name the file");
            }
            (Part::stream(Body::wrap_stream(stdin())), path.to_owned())
        }
    };
    Ok(client.write_file(id, &path, content).await?)
}

/// Stdin as it comes, read by a thread of its own: when the daemon refuses the upload, the process
/// can end at once. The runtime would first wait for its thread's `read` to return, on a terminal
/// for ever.
fn stdin() -> impl Stream<Item = io::Result<Bytes>> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        loop {
            let mut buffer = vec![0; STDIN_CHUNK];
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

async fn file_part(path: &Path) -> Result<Part> {
    let named = || path.display().to_string();
    let file = File::open(path).await.with_context(named)?;
    let metadata = file.metadata().await.with_context(named)?;
    if metadata.is_dir() {
        bail!("{} is a directory: cp copies files", path.display());
    }
    let body = Body::wrap_stream(ReaderStream::new(file));
    // The size of a pipe or of a file in /proc says nothing.
    Ok(match metadata.is_file() && metadata.len() > 0 {
        true => Part::stream_with_length(body, metadata.len()),
        false => Part::stream(body),
    })
}

/// Where in the sandbox a file goes: below the path, if that ends like a directory.
fn sandbox_target(file: &Path, path: &str) -> Result<String> {
    if !path.ends_with('/') {
        return Ok(path.to_owned());
    }
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{}: name the file in the sandbox", file.display()))?;
    Ok(format!("{path}{name}"))
}

/// Where here a file goes: into the directory, if it is one.
fn local_target(path: &str, to: &Place) -> Option<PathBuf> {
    match to {
        Place::Here(dir) if dir.is_dir() => Some(dir.join(Path::new(path).file_name()?)),
        Place::Here(file) => Some(file.clone()),
        Place::Stream | Place::Sandbox { .. } => None,
    }
}

/// Copies a file out of a sandbox; gives its size in bytes.
async fn download(client: &Client, id: &str, path: &str, to: &Place) -> Result<u64> {
    let mut response = client.read_file(id, path).await?;
    if *to == Place::Stream {
        return copy(&mut response, &mut tokio::io::stdout()).await;
    }
    let target = local_target(path, to).with_context(|| format!("{path} has no file name"))?;
    let named = || target.display().to_string();
    // A device or a pipe is written to and not replaced.
    if std::fs::metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = File::options().write(true).open(&target).await.with_context(named)?;
        return copy(&mut response, &mut file).await;
    }
    // A copy that breaks off leaves what was there before. The mode is what any new file gets.
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (file, temporary) = tempfile::Builder::new()
        .prefix(".nestbox-cp-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .with_context(named)?
        .into_parts();
    let size = copy(&mut response, &mut File::from_std(file)).await.with_context(named)?;
    temporary.persist(&target).with_context(named)?;
    Ok(size)
}

async fn copy(response: &mut Response, to: &mut (impl AsyncWrite + Unpin)) -> Result<u64> {
    let mut size = 0;
    while let Some(chunk) = response.chunk().await.context("the file broke off")? {
        match to.write_all(&chunk).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(size),
            other => other?,
        }
        size += chunk.len() as u64;
    }
    to.flush().await?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_sandbox_when_an_id_stands_before_the_colon() {
        let sandbox =
            |id: &str, path: &str| Ok(Place::Sandbox { id: id.to_owned(), path: path.to_owned() });
        let here = |path: &str| Ok(Place::Here(path.into()));
        for (text, want) in [
            ("abc:/tmp/x", sandbox("abc", "/tmp/x")),
            ("abc:x", sandbox("abc", "x")),
            ("abc:/a:b", sandbox("abc", "/a:b")),
            ("-", Ok(Place::Stream)),
            ("file", here("file")),
            ("./a:b", here("./a:b")),
            ("/tmp/a:b", here("/tmp/a:b")),
            (":x", here(":x")),
            ("abc:", Err(PlaceError::NoPath)),
            ("", Err(PlaceError::Empty)),
        ] {
            assert_eq!(text.parse::<Place>(), want, "{text}");
        }
    }

    #[test]
    fn a_directory_takes_the_files_name() {
        assert_eq!(sandbox_target(Path::new("a/b.txt"), "/tmp/").unwrap(), "/tmp/b.txt");
        assert_eq!(sandbox_target(Path::new("a/b.txt"), "/tmp").unwrap(), "/tmp");
        assert!(sandbox_target(Path::new("/"), "/tmp/").is_err());
        let dir = tempfile::tempdir().unwrap();
        let to = Place::Here(dir.path().to_owned());
        assert_eq!(local_target("/tmp/b.txt", &to), Some(dir.path().join("b.txt")));
        assert_eq!(local_target("/", &to), None);
    }
}
