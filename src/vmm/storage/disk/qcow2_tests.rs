use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const DISK: u64 = (3 << 20) + 512 * 5;
/// What no merge may ever read.
const SECRET: &[u8] = b"what only root may read";

/// A raw base and overlays on it, each written by the real thing.
struct Chain {
    dir: TempDir,
    size: u64,
    layers: Vec<Layer>,
}

impl Chain {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = Layer { file: "base".to_owned(), format: DiskFormat::Raw };
        let file = File::create(dir.path().join("base")).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[0xba; 300_000], 100_000).unwrap();
        fs::write(dir.path().join("secret"), SECRET.repeat(4000)).unwrap();
        Self { dir, size, layers: vec![base] }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn overlays(&self) -> &[Layer] {
        &self.layers[1..]
    }

    /// Adds an overlay as it is made here, and has QEMU's own code write to it.
    fn write(&mut self, commands: &[String]) -> &mut Self {
        let file = format!("overlay{}", self.layers.len());
        let below = self.layers.last().unwrap();
        write_overlay(&File::create(self.path(&file)).unwrap(), below, self.size).unwrap();
        let mut args =
            vec!["-f".to_owned(), "qcow2".to_owned(), "-d".to_owned(), "unmap".to_owned()];
        commands.iter().for_each(|command| args.extend(["-c".to_owned(), command.clone()]));
        args.push(file.clone());
        if !commands.is_empty() {
            run("qemu-io", &args, self.dir.path());
        }
        self.layers.push(Layer { file, format: DiskFormat::Qcow2 });
        self
    }

    fn merge(&self) -> Result<(), LayerError> {
        self.merge_unless(&|| false)
    }

    fn merge_unless(&self, cancelled: &dyn Fn() -> bool) -> Result<(), LayerError> {
        let open = |layer: &Layer| File::open(self.path(&layer.file)).unwrap();
        let files: Vec<File> = self.overlays().iter().map(open).collect();
        let sources: Vec<_> = self.overlays().iter().zip(&files).collect();
        let merged = Layer { file: "merged".to_owned(), format: DiskFormat::Qcow2 };
        let file = File::create(self.path("merged")).unwrap();
        flatten(&sources, &self.layers[0], self.size, (&merged, &file), cancelled)
    }

    /// What was merged is sound, and as the chain is, both as QEMU reads them.
    fn is_merged(&self) {
        let top = self.layers.last().unwrap().file.clone();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        run("qemu-img", &words("check -f qcow2 merged"), self.dir.path());
        let line = format!("compare -f qcow2 -F qcow2 merged {top}");
        run("qemu-img", &words(&line), self.dir.path());
        let header = Header::parse(&fs::read(self.path("merged")).unwrap()[..HEADER_LIMIT]);
        header.unwrap().check(&self.layers[0], self.size).unwrap();
    }
}

#[track_caller]
fn run(program: &str, args: &[String], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program} of qemu-utils: {error}"));
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Something that a guest does to its disk: in sectors.
fn step() -> impl Strategy<Value = String> {
    let what = prop_oneof![
        (1..255u8).prop_map(|byte| format!("write -q -P {byte}")),
        Just("write -q -z".to_owned()),
        Just("write -q -z -u".to_owned()),
        Just("discard -q".to_owned()),
        Just("write -q -P 0".to_owned()),
    ];
    let length = prop_oneof![1..200u64, Just(128), Just(256), 100..2000u64];
    let place = prop_oneof![0..DISK / 512, (0..DISK / CLUSTER).prop_map(|cluster| cluster * 128)];
    (what, place, length).prop_map(|(what, at, length)| {
        let length = length.min(DISK / 512 - at);
        format!("{what} {} {}", at * 512, length * 512)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Whatever QEMU has written into a chain, one overlay that is made of it is the same disk.
    #[test]
    fn a_chain_that_qemu_wrote_becomes_one_overlay_of_the_same_content(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..7), 1..4),
    ) {
        let mut chain = Chain::new(DISK);
        for steps in &layers {
            chain.write(steps);
        }
        chain.merge().unwrap();
        chain.is_merged();
    }
}

#[test]
fn a_disk_of_several_tables_is_merged_sparsely() {
    let mut chain = Chain::new((3 << 30) + 512);
    let words = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    chain.write(&words(&["write -q -P 1 0 1M", "write -q -P 2 1100M 70k", "write -q -P 3 3G 512"]));
    chain.write(&words(&["write -q -z 1100M 64k", "write -q -P 4 512M 4k", "discard -q 0 128k"]));
    chain.write(&[]);
    chain.merge().unwrap();
    chain.is_merged();
    use std::os::unix::fs::MetadataExt;
    let blocks = fs::metadata(chain.path("merged")).unwrap().blocks();
    assert!(blocks * 512 < 3 << 20, "{blocks} blocks");
}

#[test]
fn an_overlay_that_qemu_made_itself_is_read_as_well() {
    let mut chain = Chain::new(DISK);
    // Its header is longer, and names the features that it does not need.
    let line = format!("create -q -f qcow2 -b base -F raw overlay1 {DISK}");
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    run("qemu-img", &words, chain.dir.path());
    chain.layers.push(Layer { file: "overlay1".to_owned(), format: DiskFormat::Qcow2 });
    chain.write(&["write -q -P 7 1M 100k".to_owned()]);
    chain.merge().unwrap();
    chain.is_merged();
}

#[test]
fn nobody_waits_for_a_merge_that_nobody_wants() {
    let mut chain = Chain::new(DISK);
    chain.write(&["write -q -P 7 1M 100k".to_owned()]);
    let cancelled = chain.merge_unless(&|| true);
    assert!(matches!(cancelled, Err(LayerError::Cancelled)), "{cancelled:?}");
}

/// Where QEMU has put things in the overlay of [`attacked`].
const REFCOUNTS: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1: u64 = 3 * CLUSTER;
const L2: u64 = 4 * CLUSTER;
const DATA: u64 = 5 * CLUSTER;

/// A chain whose upper overlay is then changed as its VM's process could.
fn attacked(change: impl FnOnce(&File)) -> (Chain, Result<(), LayerError>) {
    let mut chain = Chain::new(DISK);
    chain.write(&["write -q -P 1 0 128k".to_owned()]);
    // Not on top of its like, where it would be the backing file that is another one.
    let file = File::options().read(true).write(true).open(chain.path("overlay1")).unwrap();
    let mut entry = [0; 8];
    file.read_exact_at(&mut entry, L2).unwrap();
    assert_eq!(u64::from_be_bytes(entry), DATA | 1 << 63, "QEMU puts things elsewhere");
    change(&file);
    let before = fs::read(chain.path("overlay1")).unwrap();
    let merged = chain.merge();
    assert!(fs::read(chain.path("overlay1")).unwrap() == before, "it was written to");
    let read = fs::read(chain.path("merged")).unwrap();
    assert!(!read.windows(SECRET.len()).any(|it| it == SECRET), "a secret was read");
    (chain, merged)
}

#[track_caller]
fn is_refused(why: &str, expected: &Problem, change: impl FnOnce(&File)) {
    match attacked(change).1 {
        Err(LayerError::Refused { file, problem }) => {
            assert_eq!((file.as_str(), &problem), ("overlay1", expected), "{why}");
        }
        other => panic!("{why}: {other:?}"),
    }
}

fn put(file: &File, at: u64, bytes: &[u8]) {
    file.write_all_at(bytes, at).unwrap();
}

fn put_u32(at: u64, value: u32) -> impl FnOnce(&File) {
    move |file| put(file, at, &value.to_be_bytes())
}

fn put_u64(at: u64, value: u64) -> impl FnOnce(&File) {
    move |file| put(file, at, &value.to_be_bytes())
}

/// The header names a file of the attacker's choice below it.
fn other_backing(name: &'static str) -> impl FnOnce(&File) {
    move |file| {
        put(file, 16, &(name.len() as u32).to_be_bytes());
        let mut at = [0; 8];
        file.read_exact_at(&mut at, 8).unwrap();
        put(file, u64::from_be_bytes(at), name.as_bytes());
    }
}

#[test]
fn no_name_in_a_header_is_followed() {
    is_refused("an absolute name", &Problem::Backing, other_backing("/etc/shadow"));
    is_refused("a file beside it", &Problem::Backing, other_backing("secret"));
    is_refused("a protocol", &Problem::Backing, other_backing("nbd:127.0.0.1:10809"));
    is_refused("JSON", &Problem::Backing, other_backing("json:{\"driver\":\"file\"}"));
    is_refused("no name", &Problem::Backing, put_u64(8, 0));
    is_refused("a longer name", &Problem::Malformed, put_u32(16, 1024));
    is_refused("a name elsewhere", &Problem::Malformed, put_u64(8, u64::MAX));
    is_refused("another format", &Problem::BackingFormat, |file| put(file, 112, b"vdi"));
    is_refused("no format", &Problem::BackingFormat, put_u64(104, 0));
    let kind = 0x4441_5441;
    is_refused("a data file", &Problem::ExternalData, put_u32(104, kind));
    is_refused("a data file", &Problem::ExternalData, put_u64(72, 4));
    is_refused("bitmaps", &Problem::Extension { kind: 0x2385_2875 }, put_u32(104, 0x2385_2875));
}

#[test]
fn a_header_with_anything_unknown_is_refused() {
    for bits in [8, 16, 1 << 63] {
        is_refused("a feature", &Problem::Features { bits }, put_u64(72, bits));
    }
    is_refused("another format", &Problem::NotQcow2, put_u32(0, 0x4b44_4d56));
    is_refused("the old version", &Problem::NotQcow2, put_u32(4, 2));
    let foreign = |what| Problem::Foreign { what };
    is_refused("clusters", &foreign("clusters of another size"), put_u32(20, 21));
    is_refused("encryption", &foreign("encryption"), put_u32(32, 2));
    is_refused("snapshots", &foreign("snapshots inside"), put_u32(60, 1));
    is_refused("bitmaps", &foreign("features that others clear"), put_u64(88, 1));
    is_refused("refcounts", &foreign("refcounts of another width"), put_u32(96, 6));
    is_refused("its length", &Problem::Malformed, put_u32(100, 4096));
    is_refused("its length", &Problem::Malformed, put_u32(100, 0));
    let size = |found| Problem::Size { found, expected: DISK };
    is_refused("a larger disk", &size(DISK + 512), put_u64(24, DISK + 512));
    is_refused("a smaller disk", &size(512), put_u64(24, 512));
    is_refused("a mark", &Problem::Corrupt, put_u64(72, 2));
}

#[test]
fn tables_that_lead_anywhere_else_are_refused() {
    let offset = |what, offset| Problem::Offset { what, offset };
    let (far, copied) = (1 << 40, 1 << 63);
    is_refused("huge L1", &Problem::Foreign { what: "an L1 table of another size" }, |file| {
        put(file, 36, &u32::MAX.to_be_bytes());
    });
    let other_size = Problem::Foreign { what: "a refcount table of another size" };
    is_refused("huge refcounts", &other_size, put_u32(56, u32::MAX));
    is_refused("L1 outside", &offset("its L1 table", far), put_u64(40, far));
    is_refused("L1 between", &offset("its L1 table", L1 + 512), put_u64(40, L1 + 512));
    is_refused("L1 at the end", &offset("its L1 table", !0xffff), put_u64(40, !0xffff));
    is_refused("L1 at refcounts", &Problem::Twice { offset: REFCOUNTS }, put_u64(40, REFCOUNTS));
    is_refused("no L1", &offset("its L1 table", 0), put_u64(40, 0));
    is_refused("blocks outside", &offset("a refcount block", far), put_u64(REFCOUNTS, far));

    is_refused("L2 outside", &offset("an L2 table", far), put_u64(L1, copied | far));
    is_refused("L2 at L1", &Problem::Twice { offset: L1 }, put_u64(L1, copied | L1));
    is_refused("L2 at the header", &Problem::Entry { entry: copied }, put_u64(L1, copied));
    is_refused("L2 bits", &Problem::Entry { entry: L2 | 1 }, put_u64(L1, L2 | 1));

    is_refused("data outside", &offset("data", far), put_u64(L2, copied | far));
    is_refused("data between", &offset("data", DATA + 512), put_u64(L2, DATA + 512));
    is_refused("data at the header", &Problem::Entry { entry: copied }, put_u64(L2, copied));
    is_refused("data at L1", &Problem::Twice { offset: L1 }, put_u64(L2, copied | L1));
    is_refused("data at L2", &Problem::Twice { offset: L2 }, put_u64(L2, copied | L2));
    is_refused("data twice", &Problem::Twice { offset: DATA }, put_u64(L2 + 8, copied | DATA));
    is_refused("zeros twice", &Problem::Twice { offset: DATA }, put_u64(L2 + 8, DATA | 1));
    is_refused("data bits", &Problem::Entry { entry: DATA | 2 }, put_u64(L2, DATA | 2));
    let compressed = Problem::Foreign { what: "compressed data" };
    is_refused("compressed", &compressed, put_u64(L2, 1 << 62 | DATA));

    for found in [0_u16, 2] {
        let at = REFCOUNT_BLOCK + 2 * (DATA / CLUSTER);
        is_refused("a lie", &Problem::Refcount { offset: DATA, found }, |file| {
            put(file, at, &found.to_be_bytes());
        });
    }
    let bytes = longest(DISK) + 1;
    is_refused("a long file", &Problem::TooLong { bytes }, |file| file.set_len(bytes).unwrap());
}

#[test]
fn marks_that_change_nothing_are_no_reason() {
    for bits in [1_u64, 0] {
        // Its refcounts may be behind then, which nobody needs for reading.
        let (chain, merged) = attacked(|file| {
            put(file, 72, &bits.to_be_bytes());
            put(file, 80, &1_u64.to_be_bytes());
        });
        merged.unwrap();
        let words = ["check", "-f", "qcow2", "merged"].map(str::to_owned);
        run("qemu-img", &words, chain.dir.path());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is written over an overlay, its merge ends, and what it makes is a whole overlay.
    #[test]
    fn an_overlay_that_was_written_over_is_refused_or_read(
        changes in prop::collection::vec(
            (prop_oneof![0..200u64, L1..L1 + 16, L2..L2 + 64, REFCOUNTS..REFCOUNTS + 8,
                REFCOUNT_BLOCK..REFCOUNT_BLOCK + 16], any::<u8>()),
            1..4,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (base, layer) = (
            Layer { file: "base".to_owned(), format: DiskFormat::Raw },
            Layer { file: "overlay1".to_owned(), format: DiskFormat::Qcow2 },
        );
        let open = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(dir.path().join(name))
        };
        let file = open("overlay1").unwrap();
        write_overlay(&file, &base, DISK).unwrap();
        put(&file, REFCOUNT_BLOCK, &[0, 1].repeat(7));
        put(&file, L1, &(L2 | 1 << 63).to_be_bytes());
        put(&file, L2, &(DATA | 1 << 63).to_be_bytes());
        put(&file, L2 + 8, &((DATA + CLUSTER) | 1 << 63).to_be_bytes());
        put(&file, DATA, &[9; 2 * CLUSTER as usize]);
        for (at, byte) in changes {
            put(&file, at, &[byte]);
        }
        let to = open("merged").unwrap();
        let merged = Layer { file: "merged".to_owned(), format: DiskFormat::Qcow2 };
        match flatten(&[(&layer, &file)], &base, DISK, (&merged, &to), &|| false) {
            Ok(()) => {
                let header = check(&merged, &to, &base, DISK).unwrap();
                let mut tables = tables::Tables::open(&to, header).unwrap();
                tables.read(0).unwrap();
            }
            Err(LayerError::Refused { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}
