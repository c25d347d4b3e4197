//! A directory with all in it, as a tar archive on the way. The sandbox is not trusted: what it
//! sends stays below the directory that it is copied to, or is left out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use nestbox_archive::{LinksOut, Options, Owner, Summary, pack, pipe, unpack};
use reqwest::{Body, Response};
use serde_json::json;
use tokio::task::spawn_blocking;

use super::Copying;
use super::file::{copy, seen, stdin};
use super::place::Spot;
use super::target::{is_all_of, target_here};
use crate::cli::output::{printable, tell};
use crate::cli::progress::Transfer;

/// How names of files begin that are not whole yet.
pub(super) const HIDDEN: &str = ".nestbox-cp-";

impl Copying<'_> {
    /// Copies a directory, or an archive from stdin.
    pub(super) async fn directory(&self, from: &Spot, to: &Spot) -> Result<()> {
        match (from, to) {
            (Spot::There { id, path }, Spot::There { id: other, path: to }) => {
                let target = self.directory_there(other, to, path).await?;
                let archive = self.client.read_archive(self.there(id, path)).await?;
                self.upload_archive(Body::from(archive), other, &target).await
            }
            (Spot::Here(dir), Spot::There { id, path }) => {
                let target = self.directory_there(id, path, dir).await?;
                self.upload_archive(packed(dir.clone()), id, &target).await
            }
            (_, Spot::There { id, path }) => {
                let body = Body::wrap_stream(seen(stdin(), Transfer::begin(None)));
                self.upload_archive(body, id, path).await
            }
            (Spot::There { id, path }, to) => self.download_directory(id, path, to).await,
            (Spot::Stream | Spot::Here(_), _) => unreachable!("one end is in a sandbox"),
        }
    }

    async fn upload_archive(&self, body: Body, id: &str, path: &Path) -> Result<()> {
        let unpacked = self.client.write_archive(self.there(id, path), body).await?;
        Ok(self.format.print(&unpacked, String::new)?)
    }

    async fn download_directory(&self, id: &str, path: &Path, to: &Spot) -> Result<()> {
        let mut response = self.client.read_archive(self.there(id, path)).await?;
        let Spot::Here(to) = to else {
            copy(&mut response, &mut tokio::io::stdout()).await?;
            return Ok(());
        };
        let target = match is_all_of(path) || !to.is_dir() {
            true => to.clone(),
            false => target_here(path, to)?,
        };
        if target.exists() && !target.is_dir() {
            bail!("{} is no directory", target.display());
        }
        std::fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
        let summary = unpacked(response, target.clone()).await?;
        if let Some(first) = &summary.left_out.first {
            let first = printable(&first.to_string_lossy());
            tell(&match summary.left_out.count {
                1 => format!("nestbox: left out a link that leads out of the directory: {first}"),
                count => format!(
                    "nestbox: left out {count} links that lead out of the directory, {first} first"
                ),
            });
        }
        let shown = json!({
            "path": target.to_string_lossy(),
            "entries": summary.entries,
            "size": summary.bytes,
            "links_left_out": summary.left_out.count,
        });
        Ok(self.format.print(&shown, String::new)?)
    }

    /// Where in a sandbox a directory goes: into the one at `path`, if that is there.
    async fn directory_there(&self, id: &str, path: &Path, dir: &Path) -> Result<PathBuf> {
        let there = Spot::There { id: id.to_owned(), path: path.to_owned() };
        if is_all_of(dir) || !self.is_directory(&there).await? {
            return Ok(path.to_owned());
        }
        let named = || format!("{} has no name: name the copy", dir.display());
        Ok(path.join(dir.file_name().with_context(named)?))
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
async fn unpacked(mut response: Response, target: PathBuf) -> Result<Summary> {
    let (feed, mut inlet) = pipe::inlet();
    let options = Options {
        owner: Owner::Unpacker,
        mode: 0o777 & !umask(),
        hidden: HIDDEN,
        links_out: LinksOut::LeaveOut,
    };
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
pub(super) fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
