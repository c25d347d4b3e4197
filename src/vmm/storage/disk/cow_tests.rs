use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

/// A disk's chunks, each filled with one byte: the model that everything is compared with.
pub(crate) type Chunks = BTreeMap<u64, u8>;

/// Stores chunks in the given order, one after the other, as the kernel does.
pub(crate) fn cow_of(chunks: &[(u64, u8)]) -> Vec<u8> {
    let mut image = vec![0; 2 * 4096];
    image[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    let mut table = 4096;
    let mut used = 0;
    for (disk, fill) in chunks {
        let at = image.len() as u64 / 4096;
        image.extend_from_slice(&[*fill; 4096]);
        image[table + used * 16..][..8].copy_from_slice(&disk.to_le_bytes());
        image[table + used * 16 + 8..][..8].copy_from_slice(&at.to_le_bytes());
        used += 1;
        if used == 256 {
            (table, used) = (image.len(), 0);
            image.extend_from_slice(&[0; 4096]);
        }
    }
    image
}

fn file_of(image: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    file
}

pub(crate) fn read(path: &Path) -> Result<Chunks, CowError> {
    let cow = Cow::open(path)?;
    let fill = |pair: &Pair| {
        let mut data = [0; 4096];
        cow.file.read_exact_at(&mut data, pair.file * 4096).unwrap();
        assert!(data.iter().all(|byte| *byte == data[0]), "chunks are mixed up");
        (pair.disk, data[0])
    };
    Ok(cow.pairs()?.iter().map(fill).collect())
}

fn flatten_all(layers: &[Vec<(u64, u8)>]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = layers.iter().map(|layer| file_of(&cow_of(layer))).collect();
    let paths: Vec<&Path> = files.iter().map(tempfile::NamedTempFile::path).collect();
    let to = dir.path().join("merged.cow");
    flatten(&paths, &to, &|| false).unwrap();
    (dir, to)
}

/// A layer: chunks in the order in which they were written, each once.
fn layer() -> impl Strategy<Value = Vec<(u64, u8)>> {
    prop::collection::btree_map(0_u64..600, any::<u8>(), 0..540)
        .prop_map(|chunks| chunks.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_newest_of_every_chunk_is_kept(layers in prop::collection::vec(layer(), 1..4)) {
        let model: Chunks = layers.iter().flatten().copied().collect();
        let (_dir, to) = flatten_all(&layers);
        prop_assert_eq!(read(&to).unwrap(), model);
    }

    #[test]
    fn a_file_of_garbage_is_refused_and_never_panics(
        garbage in prop::collection::vec(any::<u8>(), 0..20_000),
    ) {
        prop_assert!(read(file_of(&garbage).path()).is_err());
    }

    #[test]
    fn tables_of_garbage_never_panic(
        chunks in layer(),
        changes in prop::collection::vec((0_usize..8192, any::<u8>()), 1..40),
    ) {
        let mut image = cow_of(&chunks);
        for (at, byte) in changes {
            image[at] = byte;
        }
        let file = file_of(&image);
        if let Ok(cow) = Cow::open(file.path()) {
            let _ = cow.pairs();
        }
    }
}

#[test]
fn a_full_table_is_followed_by_an_empty_one() {
    for count in [0, 1, 255, 256, 257, 512, 513] {
        let layer: Vec<(u64, u8)> = (0..count).map(|at| (at * 3, at as u8)).collect();
        let (_dir, to) = flatten_all(std::slice::from_ref(&layer));
        assert_eq!(read(&to).unwrap(), layer.into_iter().collect(), "{count} chunks");
    }
}

#[test]
fn zeros_take_no_space_but_hide_what_is_below() {
    let below = (0..200).map(|at| (at, 7)).collect();
    let above = (0..200).map(|at| (at, 0)).collect();
    let (_dir, to) = flatten_all(&[below, above]);
    assert_eq!(read(&to).unwrap(), (0..200).map(|at| (at, 0)).collect());
    assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 64 * 1024);
}

#[test]
fn an_invalidated_file_is_refused_by_name() {
    let mut image = cow_of(&[(1, 1)]);
    image[4] = 0;
    let file = file_of(&image);
    let error = Cow::open(file.path()).unwrap_err();
    assert!(matches!(error, CowError::Invalidated { .. }), "{error}");
}

#[test]
fn what_no_kernel_writes_is_refused() {
    let good = cow_of(&[(1, 1), (2, 2)]);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let pair = |disk: u64, file: u64| [disk.to_le_bytes(), file.to_le_bytes()].concat();
    for (what, image) in [
        ("empty", vec![]),
        ("short", good[..10].to_vec()),
        ("another format", with(0, b"QFI\xfb")),
        ("another version", with(8, &[2])),
        ("other chunks", with(12, &[16])),
        ("no table", good[..4096].to_vec()),
        ("data behind the end", with(4096, &pair(1, 99))),
        ("data in a table", with(4096, &pair(1, 1))),
        ("a chunk twice", with(4096, &pair(2, 2))),
        ("a chunk that no disk has", with(4096, &pair(u64::MAX, 2))),
    ] {
        let error = read(file_of(&image).path()).unwrap_err();
        assert!(matches!(error, CowError::Malformed { .. }), "{what}: {error}");
    }
}

#[test]
fn what_is_cancelled_or_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("merged.cow");
    let good = file_of(&cow_of(&[(1, 1)]));
    let bad = file_of(b"bad");
    let error = flatten(&[good.path()], &to, &|| true).unwrap_err();
    assert!(matches!(error, CowError::Cancelled), "{error}");
    flatten(&[good.path(), bad.path()], &to, &|| false).unwrap_err();
    flatten(&[&dir.path().join("missing")], &to, &|| false).unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_capacity_has_room_for_every_chunk() {
    for size in [512, 4096, 255 * 4096, 256 * 4096, 257 * 4096, 4 << 30] {
        let layer: u64 = size_of_full(size);
        assert!(capacity(size) > layer, "{size}");
        assert!(capacity(size) < size + size / 200 + 5 * 4096, "{size}");
    }
}

/// Bytes of a file that has all chunks of a disk, with the table that is begun when one is full.
fn size_of_full(size: u64) -> u64 {
    let data = size.div_ceil(4096);
    (1 + data + data / 256 + 1) * 4096
}
