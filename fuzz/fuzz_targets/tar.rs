//! Archives of a guest, unpacked: nothing is made elsewhere, and what was made packs and unpacks again.

#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use nestbox_archive::{LinksOut, Options, Owner, pack, unpack};
use nestbox_fuzz::measure;

const BLOCK: usize = 512;

const OPTIONS: Options = Options { owner: Owner::Unpacker, mode: 0o777, hidden: ".hidden-", links_out: LinksOut::LeaveOut };

/// What is said about one entry at most, twice while it is read, and a buffer.
const MEMORY: usize = 3 << 20;

/// One block's fields, as they are written.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    kind: u8,
    name: &'a [u8],
    target: &'a [u8],
    /// Octal digits, or whatever.
    mode: &'a [u8],
    /// If it is to say another one than that of its content.
    size: &'a [u8],
    /// Where POSIX has the beginning of a long name.
    prefix: &'a [u8],
    content: &'a [u8],
}

// The first byte says whether an archive follows, or entries to make one of.
fuzz_target!(|input: &[u8]| {
    let Some((form, rest)) = input.split_first() else { return };
    let archive = match form % 2 {
        0 => with_checksums(rest),
        _ => made(rest),
    };
    let outer = Outer::new();
    let unpacked = measure::within(MEMORY, || unpack(&archive[..], &outer.root, &OPTIONS, |_| ()));
    outer.is_untouched();
    let found = tree(&outer.root);
    // Another name of a file is no second content.
    let sizes: BTreeMap<_, _> = found.values().map(|it| (it.inode, it.content.len())).collect();
    assert!(sizes.values().sum::<usize>() <= archive.len(), "more than was sent");
    let Ok(summary) = unpacked else { return };
    assert!(summary.bytes <= archive.len() as u64);

    let mut packed = Vec::new();
    pack(&outer.root, &mut packed, OPTIONS.hidden, |_| ()).expect("what was unpacked can be packed");
    let other = Outer::new();
    unpack(&packed[..], &other.root, &OPTIONS, |_| ()).expect("what was packed can be unpacked");
    let mut back = tree(&other.root);
    for (path, it) in found {
        let hidden = |name: &OsStr| name.as_bytes().starts_with(OPTIONS.hidden.as_bytes());
        if !path.iter().any(hidden) {
            let back = back.remove(&path);
            assert!(back.as_ref() == Some(&it), "{path:?} is {it:?}, and comes back as {back:?}");
        }
    }
    assert!(back.is_empty(), "{back:?} was not there");
});

/// A directory to unpack into, in one that shows what leaves it.
struct Outer {
    root: PathBuf,
    dir: tempfile::TempDir,
}

impl Outer {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("a directory");
        fs::write(dir.path().join("outside"), "outside").expect("a file");
        Self { root, dir }
    }

    fn is_untouched(&self) {
        let names = fs::read_dir(self.dir.path()).expect("a list").flatten();
        let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
        let outside = self.dir.path().join("outside");
        assert_eq!(fs::read(&outside).expect("it is there"), b"outside");
        assert_eq!(fs::metadata(&outside).expect("it is there").nlink(), 1, "it has another name");
    }
}

#[derive(Debug)]
struct Found {
    inode: u64,
    mode: u32,
    modified: i64,
    content: Vec<u8>,
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        let parts = |it: &Self| (it.mode, it.modified);
        parts(self) == parts(other) && self.content == other.content
    }
}

/// `PATH_MAX`, less the longest name.
const LONGEST_PATH: usize = 4096 - 256;

/// All that is below a directory, as far as its paths are short enough, each of which may be there.
fn tree(root: &Path) -> BTreeMap<PathBuf, Found> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("a list").flatten() {
            let (path, meta) =
                (dir.join(entry.file_name()), entry.metadata().expect("it is there"));
            let (mut modified, mut content) = (0, Vec::new());
            if meta.is_file() {
                (modified, content) = (meta.mtime(), fs::read(entry.path()).unwrap_or_default());
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path()).expect("a link");
                leads_inside(&dir, &target);
                content = target.as_os_str().as_bytes().to_vec();
            } else {
                assert!(meta.is_dir(), "{path:?} is something else");
                // What is below has names that are too long for this, though not for who unpacks.
                if root.join(&path).as_os_str().len() < LONGEST_PATH {
                    dirs.push(path.clone());
                }
            }
            assert!(
                meta.is_symlink() || meta.mode() & 0o7000 == 0,
                "{path:?} is {:o}",
                meta.mode()
            );
            let (inode, mode) = (meta.ino(), meta.mode());
            all.insert(path, Found { inode, mode, modified, content });
        }
    }
    all
}

/// Whatever the names in it are links to.
fn leads_inside(dir: &Path, target: &Path) {
    let (mut left, mut named) = (dir.components().count(), false);
    for component in target.components() {
        match component {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir => {
                assert!(!named && left > 0, "{dir:?} has a link to {target:?}");
                left -= 1;
            }
            Component::RootDir | Component::Prefix(_) => panic!("a link to {target:?}"),
        }
    }
}

/// An archive whose headers all have the checksum that they need.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + BLOCK) {
        if block.iter().any(|byte| *byte != 0) {
            sum(block);
        }
        let digits = block[124..135].iter().take_while(|byte| byte.is_ascii_digit());
        let size = digits.fold(0_usize, |size, digit| size * 8 + usize::from(digit & 7));
        at = (at + BLOCK).saturating_add(size.saturating_add(BLOCK - 1) / BLOCK * BLOCK);
    }
    archive
}

fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// An archive of entries, each a line: its kind, and after it, with bars between them, its name, target,
/// mode, size, prefix and content. The content of an `x` is records, with semicolons between them, which
/// get their lengths here.
fn made(lines: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some((kind, fields)) = line.split_first() else { continue };
        let mut fields = fields.split(|byte| *byte == b'|');
        let mut next = || fields.next().unwrap_or_default();
        let (kind, name, target, mode) = (*kind, next(), next(), next());
        let (size, prefix, content) = (next(), next(), next());
        let records: Vec<u8> = match kind {
            b'x' => content.split(|byte| *byte == b';').flat_map(record).collect(),
            _ => content.to_vec(),
        };
        let content = &records;
        add(&mut archive, Entry { kind, name, target, mode, size, prefix, content });
    }
    archive.extend_from_slice(&[0; 2 * BLOCK]);
    archive
}

fn add(archive: &mut Vec<u8>, entry: Entry<'_>) {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, room: usize, text: &[u8]| {
        let length = text.len().min(room);
        block[at..at + length].copy_from_slice(&text[..length]);
    };
    let size = match entry.size {
        b"" => format!("{:011o}", entry.content.len()).into_bytes(),
        size => size.to_vec(),
    };
    put(0, 100, entry.name);
    put(100, 8, entry.mode);
    put(124, 12, &size);
    put(156, 1, &[entry.kind]);
    put(157, 100, entry.target);
    put(257, 8, b"ustar\x0000");
    put(345, 155, entry.prefix);
    sum(&mut block);
    archive.extend_from_slice(&block);
    archive.extend_from_slice(entry.content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

/// `key=value`, with its own length before it.
fn record(text: &[u8]) -> Vec<u8> {
    let rest = [b" ", text, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}
