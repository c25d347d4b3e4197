//! Chains of overlays, as QEMU may have left them and then changed by whoever has taken it over. What
//! is merged is the same disk, read by another reader than the daemon's: one that believes all it reads.

#![no_main]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::measure;
use nestbox_fuzz::vmm::storage::disk::qcow2::{check, flatten, write_overlay};
use nestbox_fuzz::vmm::storage::disk::{DiskFormat, Layer, LayerError};
use nix::sys::memfd::{MFdFlags, memfd_create};

const CLUSTER: u64 = 64 << 10;
const TABLE: u64 = CLUSTER / 8;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// A buffer of 1 MiB, and a few tables for each overlay.
const MEMORY: usize = 8 << 20;

const MOST_OVERLAYS: usize = 4;
const MOST_WRITES: usize = 12;
const MOST_CHANGES: usize = 6;

#[derive(Debug, Arbitrary)]
struct Input {
    size: Size,
    /// In sectors beyond that.
    sectors: u8,
    overlays: Vec<Vec<Write>>,
    changes: Vec<Change>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Size {
    /// Of one table.
    Small,
    /// Just over the end of the first table.
    TwoTables,
    /// Of a table that ends with a disk.
    Whole,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Write {
    cluster: u16,
    what: What,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum What {
    /// This byte in one page of it, all others are zero.
    Page { page: u8, byte: u8 },
    /// Nothing but this byte.
    All { byte: u8 },
    /// Zeros, without a place.
    Zero,
    /// Zeros, with a place that keeps what it had.
    Kept { byte: u8 },
    /// A cluster that is not used any more.
    Dropped,
}

/// Something in a file that is another than QEMU would have there.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Change {
    overlay: u8,
    place: Place,
    value: Value,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Place {
    Header(u8),
    RefcountTable(u8),
    Refcounts(u8),
    L1(u8),
    L2(u16),
    Anywhere(u32),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Value {
    Byte(u8),
    /// A place in the file, as an entry of a table has it.
    Cluster {
        number: u8,
        copied: bool,
        zero: bool,
    },
    Number(u64),
}

fuzz_target!(|input: Input| {
    let size = u64::from(input.sectors) * 512
        + match input.size {
            Size::Small => 3 << 20,
            Size::TwoTables => TABLE * CLUSTER,
            Size::Whole => TABLE * CLUSTER - 255 * 512,
        };
    let base = Layer { file: "base".to_owned(), format: DiskFormat::Raw };
    let mut overlays = Vec::new();
    let mut below = base.clone();
    for (number, writes) in input.overlays.iter().take(MOST_OVERLAYS).enumerate() {
        let layer = Layer { file: format!("overlay{number}"), format: DiskFormat::Qcow2 };
        let overlay = Overlay::new(&below, size, writes);
        overlays.push((layer.clone(), overlay));
        below = layer;
    }
    let mut changed = false;
    for change in input.changes.iter().take(MOST_CHANGES) {
        if let Some((_, overlay)) = overlays.get(usize::from(change.overlay)) {
            overlay.change(*change);
            changed = true;
        }
    }

    let sources: Vec<_> = overlays.iter().map(|(layer, it)| (layer, &it.file)).collect();
    let to = (Layer { file: "merged".to_owned(), format: DiskFormat::Qcow2 }, file());
    let merge = || flatten(&sources, &base, size, (&to.0, &to.1), &|| false);
    match measure::within(MEMORY, merge) {
        Ok(()) => {}
        Err(LayerError::Refused { problem, .. }) => {
            assert!(changed, "refused as it was made: it {problem}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    }
    check(&to.0, &to.1, &base, size).expect("a header as it is made here");
    let merged = Tables::read(&to.1, size);
    merged.are_sound(&to.1);
    let chain: Vec<_> = overlays.iter().map(|(_, it)| Tables::read(&it.file, size)).collect();
    for number in 0..size.div_ceil(CLUSTER) {
        let entry = |tables: &Tables| tables.entry(number);
        if chain.iter().all(|tables| entry(tables) == 0) {
            assert_eq!(entry(&merged), 0, "cluster {number} was nowhere");
            continue;
        }
        let top = chain.iter().zip(&overlays).rev().find(|(tables, _)| entry(tables) != 0);
        let (tables, (_, overlay)) = top.expect("it is somewhere");
        let (found, expected) =
            (merged.content(&to.1, number), tables.content(&overlay.file, number));
        assert!(found.is_some() && found == expected, "cluster {number} is another one");
    }
});

fn file() -> File {
    memfd_create(c"fuzz", MFdFlags::empty()).expect("a file").into()
}

/// An overlay as QEMU leaves it: each cluster at the end of the file when it was written first.
struct Overlay {
    file: File,
}

impl Overlay {
    fn new(below: &Layer, size: u64, writes: &[Write]) -> Self {
        let file = file();
        write_overlay(&file, below, size).expect("it is written");
        let overlay = Self { file };
        let clusters = size.div_ceil(CLUSTER);
        for write in writes.iter().take(MOST_WRITES) {
            // Most of them near the beginning, and some near the end.
            let cluster = match write.cluster {
                near @ 0..0x8000 => u64::from(near) % clusters.min(64),
                far => clusters - 1 - u64::from(far) % clusters.min(64),
            };
            overlay.write(cluster, write.what);
        }
        overlay
    }

    fn write(&self, cluster: u64, what: What) {
        let l1 = number(&self.file, 40);
        let entry_at = l1 + cluster / TABLE * 8;
        let mut l2 = number(&self.file, entry_at) & OFFSET;
        if l2 == 0 {
            l2 = self.take();
            put(&self.file, entry_at, l2 | COPIED);
        }
        let entry_at = l2 + cluster % TABLE * 8;
        let entry = number(&self.file, entry_at);
        let here = || match entry & OFFSET {
            0 => self.take(),
            at => at,
        };
        let fill = |at: u64, byte: u8| {
            self.file.write_all_at(&[byte; CLUSTER as usize], at).expect("it is written");
        };
        let entry = match what {
            What::Page { page, byte } => {
                let at = here();
                fill(at, 0);
                let page = u64::from(page % 16) * 4096;
                self.file.write_all_at(&[byte; 4096], at + page).expect("it is written");
                at | COPIED
            }
            What::All { byte } => {
                let at = here();
                fill(at, byte);
                at | COPIED
            }
            What::Zero => {
                self.free(entry & OFFSET);
                ZERO
            }
            What::Kept { byte } => {
                let at = here();
                fill(at, byte);
                at | COPIED | ZERO
            }
            What::Dropped => {
                self.free(entry & OFFSET);
                0
            }
        };
        put(&self.file, entry_at, entry);
    }

    /// A new cluster at the end of the file, which is counted.
    fn take(&self) -> u64 {
        let at = self.file.metadata().expect("its length").len().next_multiple_of(CLUSTER);
        self.file.set_len(at + CLUSTER).expect("it grows");
        self.count(at, 1);
        at
    }

    fn free(&self, at: u64) {
        if at != 0 {
            self.count(at, 0);
        }
    }

    /// All are counted in the first block.
    fn count(&self, at: u64, uses: u16) {
        let block = number(&self.file, number(&self.file, 48));
        let at = block + at / CLUSTER * 2;
        self.file.write_all_at(&uses.to_be_bytes(), at).expect("it is written");
    }

    fn change(&self, change: Change) {
        let l2 = number(&self.file, 3 * CLUSTER) & OFFSET;
        let at = match change.place {
            Place::Header(at) => u64::from(at),
            Place::RefcountTable(entry) => CLUSTER + u64::from(entry) * 8,
            Place::Refcounts(entry) => 2 * CLUSTER + u64::from(entry) * 2,
            Place::L1(entry) => 3 * CLUSTER + u64::from(entry) * 8,
            Place::L2(entry) => l2 + u64::from(entry) % TABLE * 8,
            Place::Anywhere(at) => u64::from(at) % (2 << 20),
        };
        match change.value {
            Value::Byte(byte) => self.file.write_all_at(&[byte], at).expect("it is written"),
            Value::Cluster { number, copied, zero } => {
                let (copied, zero) = (u64::from(copied) << 63, u64::from(zero));
                put(&self.file, at, u64::from(number) * CLUSTER | copied | zero);
            }
            Value::Number(number) => put(&self.file, at, number),
        }
    }
}

fn number(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    read(file, &mut bytes, at);
    u64::from_be_bytes(bytes)
}

fn put(file: &File, at: u64, number: u64) {
    file.write_all_at(&number.to_be_bytes(), at).expect("it is written");
}

/// What is behind the end is zero.
fn read(file: &File, mut buffer: &mut [u8], mut at: u64) {
    while !buffer.is_empty() {
        match file.read_at(buffer, at).expect("it is read") {
            0 => return buffer.fill(0),
            read => {
                buffer = &mut buffer[read..];
                at += read as u64;
            }
        }
    }
}

/// Where the clusters of a disk are, by a file that is believed.
struct Tables {
    size: u64,
    /// Where they are themselves, with the entries of each.
    tables: Vec<Option<(u64, Vec<u64>)>>,
}

impl Tables {
    fn read(file: &File, size: u64) -> Self {
        let l1 = number(file, 40);
        let table = |index: u64| {
            let at = number(file, l1 + index * 8) & OFFSET;
            if at == 0 {
                return None;
            }
            let mut bytes = vec![0; CLUSTER as usize];
            read(file, &mut bytes, at);
            let entries = bytes.as_chunks().0.iter().map(|it| u64::from_be_bytes(*it));
            Some((at, entries.collect()))
        };
        Self { size, tables: (0..size.div_ceil(TABLE * CLUSTER)).map(table).collect() }
    }

    fn entry(&self, cluster: u64) -> u64 {
        let table = self.tables[(cluster / TABLE) as usize].as_ref();
        table.map_or(0, |(_, entries)| entries[(cluster % TABLE) as usize])
    }

    /// What a cluster has; nothing if that is what is below.
    fn content(&self, file: &File, cluster: u64) -> Option<Vec<u8>> {
        let entry = self.entry(cluster);
        if entry == 0 {
            return None;
        }
        let mut content = vec![0; CLUSTER as usize];
        if entry & ZERO == 0 {
            read(file, &mut content, entry & OFFSET);
        }
        Some(content)
    }

    /// Each cluster of the file is used for one thing, and counted so; and it has no others.
    fn are_sound(&self, file: &File) {
        let length = file.metadata().expect("its length").len();
        assert!(length.is_multiple_of(CLUSTER));
        let mut used = vec![0_u16; (length / CLUSTER) as usize];
        let mut take = |at: u64| {
            assert!(at.is_multiple_of(CLUSTER), "something at {at:#x}");
            used[(at / CLUSTER) as usize] += 1;
        };
        take(0);
        take(number(file, 40));
        let (refcounts, blocks) = (number(file, 48), (length / CLUSTER).div_ceil(CLUSTER / 2));
        take(refcounts);
        (0..blocks).for_each(|block| take(number(file, refcounts + block * 8)));
        for (at, entries) in self.tables.iter().flatten() {
            take(*at);
            entries.iter().map(|entry| entry & OFFSET).filter(|at| *at != 0).for_each(&mut take);
        }
        for (cluster, uses) in used.iter().enumerate() {
            let block = number(file, refcounts + cluster as u64 / (CLUSTER / 2) * 8);
            let mut counted = [0; 2];
            read(file, &mut counted, block + cluster as u64 % (CLUSTER / 2) * 2);
            assert_eq!((*uses, u16::from_be_bytes(counted)), (1, 1), "cluster {cluster}");
        }
        assert!(self.tables.len() as u64 == self.size.div_ceil(TABLE * CLUSTER));
        assert!(file.metadata().expect("its blocks").blocks() * 512 <= length);
    }
}
