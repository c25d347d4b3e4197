//! Makes one base out of a base and its diffs.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, fchown};
use std::path::Path;

use super::capture::{batch_buffer, bytes_of, is_zero};
use super::guest::batches;
use super::header::{Generation, GenerationName, Header};
use super::map::PageMap;
use super::staging::{NewFile, Staging};
use super::{BuildId, Durability, Lineage, MemoryError, PAGE_SIZE, cannot};

/// Writes the whole memory of `lineage` into `dir`, which may be its own directory, as one new
/// sparse base with the old one's owner and mode. Then removes generations from `dir` that are not
/// needed any more. A lineage that is one file already is only linked.
///
/// VMs that were restored from the lineage still map the old base: what is captured of them needs a
/// lineage with that, so they keep one in a directory of their own.
///
/// After a crash the header is the old one or the new one, and all its files are there; after a
/// crash of the host only with [`Durability::Synced`]. [`Lineage::remove_strays`] then removes the
/// rest. `cancelled` is asked about once per MiB.
///
/// # Errors
///
/// [`MemoryError::Cancelled`], [`MemoryError::Touched`] and [`MemoryError::Io`]; the old header is still
/// there then.
pub fn collapse(
    lineage: &Lineage,
    dir: &Path,
    build: BuildId,
    cancelled: &dyn Fn() -> bool,
    durability: Durability,
) -> Result<Lineage, MemoryError> {
    match lineage.origin() {
        Some(origin) if lineage.diffs() > 0 || lineage.patches().next().is_some() => {
            let name = GenerationName::Build(build);
            let mut staging = Staging::begin(dir, durability)?;
            let new = staging.create(name)?;
            fill(&new, lineage, cancelled)?;
            staging.finish(new)?;
            // It was read: what somebody has written into it would be the new base's from the
            // beginning.
            lineage.check_untouched()?;
            let bytes = lineage.memory_bytes();
            let generations = vec![Generation { name, bytes, written: None }];
            let header = Header { origin: origin.clone(), generations, map: PageMap::default() };
            let collapsed = Lineage::assemble(dir, header)?;
            staging.commit(&collapsed)?;
            Lineage::remove_strays(dir)?;
            Ok(collapsed)
        }
        Some(_) | None => {
            lineage.link_into(dir, durability)?;
            Lineage::remove_strays(dir)?;
            Lineage::open(dir)
        }
    }
}

fn fill(new: &NewFile, lineage: &Lineage, cancelled: &dyn Fn() -> bool) -> Result<(), MemoryError> {
    let base = lineage.base();
    let prepare = || {
        let data = base.metadata()?;
        fchown(&new.file, Some(data.uid()), Some(data.gid()))?;
        new.file.set_permissions(data.permissions())?;
        new.file.set_len(lineage.memory_bytes())
    };
    prepare().map_err(cannot("prepare", &new.path))?;
    let runs = lineage.data(0..lineage.memory_bytes() / PAGE_SIZE as u64)?;
    let mut buffer = batch_buffer();
    for batch in batches(runs) {
        if cancelled() {
            return Err(MemoryError::Cancelled);
        }
        let bytes = &mut buffer[..bytes_of(&batch)];
        lineage.read(&batch, bytes)?;
        let mut rest = &*bytes;
        for run in batch {
            let (run_bytes, behind) = rest.split_at(bytes_of(std::slice::from_ref(&run)));
            rest = behind;
            write_sparse(&new.file, run.start, run_bytes).map_err(cannot("write", &new.path))?;
        }
    }
    Ok(())
}

/// Writes pages without the zero ones.
fn write_sparse(file: &File, first: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = first as usize * PAGE_SIZE;
    let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE_SIZE).collect();
    for run in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let length = run.len() * PAGE_SIZE;
        if !is_zero(run[0]) {
            let from = at - first as usize * PAGE_SIZE;
            file.write_all_at(&bytes[from..from + length], at as u64)?;
        }
        at += length;
    }
    Ok(())
}
