//! A directory with all in it, as a tar archive on the way. The sandbox is not trusted: what it
//! sends stays below the directory that it is copied to, or is refused.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use nestbox_archive::{Options, Owner, pack, pipe, unpack};
use reqwest::{Body, Response};
use serde_json::json;
use tokio::task::spawn_blocking;

use super::Place;
use super::file::{copy, seen, stdin, target_here, target_there};
use crate::cli::client::Client;
use crate::cli::output::Format;
use crate::cli::progress::Transfer;

/// How names of files begin that are not whole yet.
const HIDDEN: &str = ".nestbox-cp-";

/// Whether a copy from there is one of a directory. Stdin is an archive then.
pub(super) fn is_one_here(from: &Place) -> bool {
    match from {
        Place::Here(path) => path.is_dir(),
        Place::Stream => true,
        Place::Sandbox { .. } => false,
    }
}

/// Whether there is a directory at a path in a sandbox.
pub(super) async fn is_one_there(client: &Client, id: &str, path: &str) -> Result<bool> {
    Ok(client.stat(id, path).await?.r#type == "directory")
}

/// Copies a directory, or an archive from stdin, into a sandbox.
pub(super) async fn upload(
    client: &Client,
    format: Format,
    from: &Place,
    id: &str,
    path: &str,
) -> Result<()> {
    let (body, target) = match from {
        Place::Here(dir) => {
            let target = match is_all_of(&dir.display().to_string()) {
                true => path.to_owned(),
                false => below(client, id, dir, path).await?,
            };
            (packed(dir.clone()), target)
        }
        Place::Stream | Place::Sandbox { .. } => {
            (Body::wrap_stream(seen(stdin(), Transfer::begin(None))), path.to_owned())
        }
    };
    let unpacked = client.write_archive(id, &target, body).await?;
    format.print(&unpacked, String::new)?;
    Ok(())
}

/// Copies a directory out of a sandbox; to stdout as an archive.
pub(super) async fn download(
    client: &Client,
    format: Format,
    id: &str,
    path: &str,
    to: &Place,
) -> Result<()> {
    let mut response = client.read_archive(id, path).await?;
    let Place::Here(given) = to else {
        copy(&mut response, &mut tokio::io::stdout()).await?;
        return Ok(());
    };
    let target = match is_all_of(path) {
        true => given.clone(),
        false => target_here(path, to).with_context(|| format!("{path} has no name"))?,
    };
    if target.exists() && !target.is_dir() {
        bail!("{} is no directory", target.display());
    }
    std::fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
    let summary = unpacked(response, target.clone()).await?;
    let shown = json!({ "path": target, "entries": summary.entries, "size": summary.bytes });
    format.print(&shown, String::new)?;
    Ok(())
}

/// Whether what is in a directory is meant, and not the directory: `dir/.`, as for cp(1).
fn is_all_of(path: &str) -> bool {
    path == "." || path.ends_with("/.") || path == "/"
}

/// Where in the sandbox a directory goes: below the path, if that is one.
async fn below(client: &Client, id: &str, dir: &Path, path: &str) -> Result<String> {
    let there = path.ends_with('/')
        || client.stat(id, path).await.is_ok_and(|entry| entry.r#type == "directory");
    match there {
        true => target_there(dir, &format!("{}/", path.trim_end_matches('/'))),
        false => Ok(path.to_owned()),
    }
}

/// A directory as an archive, made by a thread as fast as it is taken.
fn packed(dir: PathBuf) -> Body {
    let (mut outlet, mut pieces) = pipe::outlet();
    std::thread::spawn(move || {
        if let Err(error) = pack(&dir, &mut outlet, HIDDEN, |_| ()) {
            outlet.fail(&error);
        }
    });
    let stream = futures::stream::poll_fn(move |context| pieces.poll_recv(context));
    Body::wrap_stream(seen(stream.boxed(), Transfer::begin(None)))
}

/// Unpacks what comes, by a thread that waits for the disk.
async fn unpacked(mut response: Response, target: PathBuf) -> Result<nestbox_archive::Summary> {
    let (feed, mut inlet) = pipe::inlet();
    let options = Options { owner: Owner::Unpacker, mode: 0o777 & !umask(), hidden: HIDDEN };
    let unpacking = spawn_blocking(move || unpack(&mut inlet, &target, &options, |_| ()));
    let transfer = Transfer::begin(None);
    loop {
        let piece = match response.chunk().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                feed.send(Err(std::io::Error::other(error.without_url()))).await;
                break;
            }
        };
        transfer.add(piece.len());
        if !feed.send(Ok(piece)).await {
            break;
        }
    }
    feed.end().await;
    Ok(unpacking.await??)
}

/// Permission bits that new files of this process do not get.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_at_the_end_means_what_is_in_the_directory() {
        for path in [".", "dir/.", "/dir/.", "/"] {
            assert!(is_all_of(path), "{path}");
        }
        for path in ["dir", "dir/", "dir/.git", "..", "a."] {
            assert!(!is_all_of(path), "{path}");
        }
    }
}
