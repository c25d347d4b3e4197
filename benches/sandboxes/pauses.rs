//! Sandboxes that are paused and resumed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nestbox::vmm::storage::memory::{Lineage, PAGE_SIZE};
use nestbox::vmm::storage::snapshot::Snapshot;

use crate::Bench;
use crate::measurement::{Measurement, milliseconds};

const LITTLE: usize = 10;
const EXECS_BEFORE: usize = 3;
const MUCH: usize = 5;
const MUCH_MIB: u64 = 100;
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// Pages that are compared at once.
const BATCH: u64 = 256;

/// What a pause has written, and in how much the memory differed from what it was restored from.
struct Written {
    bytes: u64,
    changed_bytes: u64,
}

impl Written {
    fn mb(&self) -> f64 {
        self.bytes as f64 / 1e6
    }

    fn over_changed(&self) -> f64 {
        self.bytes as f64 / self.changed_bytes as f64
    }
}

/// A pause of a sandbox that has run a few commands, and its resume to the end of a first exec. The
/// resume's floor is the same restore by hand, the changed pages written into the VM included, to
/// the agent's first answer; in turns, so that both see the same noise.
pub async fn little_changed(bench: &Bench) -> Result<Vec<Measurement>> {
    let Bench { daemon, floor } = bench;
    let client = &daemon.client;
    let (mut pauses, mut written) = (Vec::new(), Vec::new());
    let (mut resumes, mut least) = (Vec::new(), Vec::new());
    for turn in 1..=LITTLE {
        let id = client.create().await?;
        for _ in 0..EXECS_BEFORE {
            client.exec_true(&id).await?;
        }
        let (pause, wrote) = pause(bench, &id).await?;
        daemon.settle().await?;
        let started = Instant::now();
        client.resume(&id).await?;
        client.exec_true(&id).await?;
        let resume = milliseconds(started);
        let script = floor.learn(daemon, &id)?;
        client.destroy(&id).await?;
        daemon.settle().await?;
        let by_hand = floor.restore(&script).await?;
        eprintln!(
            "pause {turn} of {LITTLE}: {pause:.0} ms for {:.1} MB; resume {resume:.0} ms, by hand \
             {by_hand:.0} ms",
            wrote.mb()
        );
        pauses.push(pause);
        written.push(wrote.mb());
        resumes.push(resume);
        least.push(by_hand);
    }
    Ok(vec![
        Measurement::new("pause, under 5 MB changed", "ms", &pauses).bar(60.0),
        // No aim of its own: beyond it the line above is not what it says.
        Measurement::new("pause, under 5 MB changed: written", "MB", &written).bar(5.0),
        Measurement::new("resume to first exec", "ms", &resumes).over(&least).bar(150.0),
    ])
}

/// A pause of a sandbox in which a process has filled memory with random bytes and still has it.
pub async fn much_changed(bench: &Bench) -> Result<Vec<Measurement>> {
    let daemon = &bench.daemon;
    let (mut pauses, mut written, mut over_changed) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=MUCH {
        let id = daemon.client.create().await?;
        fill(bench, &id).await?;
        let (pause, wrote) = pause(bench, &id).await?;
        if wrote.changed_bytes < MUCH_MIB << 20 {
            bail!("only {} bytes of the guest's memory have changed", wrote.changed_bytes);
        }
        eprintln!("pause {turn} of {MUCH}: {pause:.0} ms for {:.1} MB", wrote.mb());
        pauses.push(pause);
        written.push(wrote.mb());
        over_changed.push(wrote.over_changed());
        daemon.client.destroy(&id).await?;
    }
    daemon.settle().await?;
    Ok(vec![
        Measurement::new("pause, 100 MiB changed", "ms", &pauses).bar(400.0),
        Measurement::new("pause, 100 MiB changed: written", "MB", &written),
        Measurement::new("pause, 100 MiB changed: written over it", "times", &over_changed)
            .bar(1.05),
    ])
}

/// Pauses a sandbox that has nothing to do.
async fn pause(bench: &Bench, id: &str) -> Result<(f64, Written)> {
    let daemon = &bench.daemon;
    daemon.settle().await?;
    // Open files can be read when their directory is gone.
    let before = Lineage::open(&daemon.snapshot_dir(id)?)?;
    let started = Instant::now();
    daemon.client.pause(id).await?;
    let took = milliseconds(started);
    Ok((took, written(&before, &daemon.snapshot_dir(id)?)?))
}

async fn fill(bench: &Bench, id: &str) -> Result<()> {
    let client = &bench.daemon.client;
    let script = format!(
        "import os, time\n\
         held = bytearray({MUCH_MIB} << 20)\n\
         for at in range(0, len(held), 1 << 20):\n    \
             held[at:at + (1 << 20)] = os.urandom(1 << 20)\n\
         open('/tmp/filled', 'w').close()\n\
         time.sleep(86400)\n"
    );
    let line = format!("nohup python3 -c \"{script}\" >/dev/null 2>&1 </dev/null &");
    if client.shell(id, &line).await? != 0 {
        bail!("cannot start a process in the guest");
    }
    let started = Instant::now();
    while client.shell(id, "test -e /tmp/filled").await? != 0 {
        if started.elapsed() > FILL_LIMIT {
            bail!("the guest does not fill its memory");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Compares the bytes of the files that a pause has made with the pages that are not what they were
/// when the VM was restored. Those are found by reading both memories, whatever the header says of
/// them; pages that it does not name are the base's, as they were. Files: the new generation, header,
/// devices and manifest, but neither links to what was there before nor the disk's layers, which the
/// guest wrote. Changed pages that are zero count as changed, and cost nothing to write.
fn written(before: &Lineage, dir: &Path) -> Result<Written> {
    let snapshot = Snapshot::open(dir)?;
    let layers = &snapshot.manifest().layers;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (name, data) = (entry.file_name(), entry.metadata()?);
        let of_disk = layers.iter().any(|layer| name == *layer.file);
        bytes += if data.nlink() == 1 && !of_disk { data.len() } else { 0 };
    }
    if before.diffs() > 0 {
        bail!("the sandbox was not restored from a base alone");
    }
    let pages = changed_pages(before, snapshot.memory()).context("cannot compare memories")?;
    Ok(Written { bytes, changed_bytes: pages * PAGE_SIZE as u64 })
}

/// Counts the pages of `after` that are not those of its base `before`.
fn changed_pages(before: &Lineage, after: &Lineage) -> Result<u64> {
    let mut changed = 0;
    for (pages, _) in after.patches() {
        for start in pages.clone().step_by(BATCH as usize) {
            let run = start..pages.end.min(start + BATCH);
            let length = (run.end - run.start) as usize * PAGE_SIZE;
            let (mut old, mut new) = (vec![0; length], vec![0; length]);
            before.read(std::slice::from_ref(&run), &mut old)?;
            after.read(std::slice::from_ref(&run), &mut new)?;
            let both = old.chunks_exact(PAGE_SIZE).zip(new.chunks_exact(PAGE_SIZE));
            changed += both.filter(|(old, new)| old != new).count() as u64;
        }
    }
    Ok(changed)
}
