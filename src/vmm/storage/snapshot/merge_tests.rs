use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use chrono::Utc;

use super::*;
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::shape::Shape;
use crate::skip::is_root;
use crate::vmm::storage::disk::Overlay;
use crate::vmm::storage::disk::cow::tests::{Chunks, cow_of, read};
use crate::vmm::storage::snapshot::{FORMAT, Manifest, ROOTFS};

/// A snapshot whose disk was captured this often, with all that the overlays have together.
fn captured(dir: &Path, times: usize) -> Chunks {
    let mut all = Chunks::new();
    let mut layers = vec![Layer { file: ROOTFS.to_owned(), format: DiskFormat::Raw }];
    for index in 0..times {
        let chunks = [(100 + index as u64, 1), (7, index as u8), (900 - index as u64, 2)];
        let layer = overlay(BuildId::random(), DiskFormat::Cow);
        fs::write(dir.join(&layer.file), cow_of(&chunks)).unwrap();
        layers.push(layer);
        all.extend(chunks);
    }
    put(dir, layers);
    all
}

/// A snapshot with these layers on an empty root disk.
fn put(dir: &Path, layers: Vec<Layer>) {
    File::create(dir.join(ROOTFS)).unwrap().set_len(4 << 20).unwrap();
    File::create(dir.join("memfile")).unwrap().set_len(1 << 20).unwrap();
    let manifest = Manifest {
        format: FORMAT,
        build: BuildId::random(),
        created_at: Utc::now(),
        sandbox_id: SandboxId::random(),
        image: "debian".parse().unwrap(),
        shape: Shape { vcpus: 1, memory_mib: 1 },
        engine: Engine::QemuTcg,
        layers,
        disk_size: 4 << 20,
        rates: Default::default(),
        access_token: None,
        envs: Default::default(),
    };
    manifest.write(dir).unwrap();
}

#[test]
fn many_overlays_of_the_kernel_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let all = captured(dir.path(), MAX_OVERLAYS + 2);
    merge(dir.path(), &|| false).unwrap();
    let layers = Snapshot::open(dir.path()).unwrap().manifest.layers;
    assert_eq!(layers.len(), 2, "{layers:?}");
    assert_eq!((layers[0].format, layers[1].format), (DiskFormat::Raw, DiskFormat::Cow));
    assert_eq!(read(&dir.path().join(&layers[1].file)).unwrap(), all);
    let files = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 4, "the manifest, the memory and two layers");
}

#[test]
fn few_overlays_stay_and_a_damaged_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    captured(dir.path(), MAX_OVERLAYS);
    merge(dir.path(), &|| false).unwrap();
    let layers = Snapshot::open(dir.path()).unwrap().manifest.layers;
    assert_eq!(layers.len(), 1 + MAX_OVERLAYS);

    let dir = tempfile::tempdir().unwrap();
    captured(dir.path(), MAX_OVERLAYS + 1);
    let layers = Snapshot::open(dir.path()).unwrap().manifest.layers;
    fs::write(dir.path().join(&layers[3].file), "damaged").unwrap();
    merge(dir.path(), &|| false).unwrap_err();
    assert_eq!(Snapshot::open(dir.path()).unwrap().manifest.layers, layers);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 + layers.len());
}

/// A snapshot on whose disk many overlays of QEMU's lie.
fn captured_by_qemu(dir: &tempfile::TempDir) {
    let mut layers = vec![Layer { file: ROOTFS.to_owned(), format: DiskFormat::Raw }];
    File::create(dir.path().join(ROOTFS)).unwrap().set_len(4 << 20).unwrap();
    for number in 0..MAX_OVERLAYS + 1 {
        let layer = overlay(BuildId::random(), DiskFormat::Qcow2);
        let below = layers.last().unwrap();
        let path = dir.path().join(&layer.file);
        Overlay::create(&path, below, 4 << 20).unwrap();
        qemu_io(&path, &format!("write -q -P {} {}k 64k", number + 1, number * 64));
        layers.push(layer);
    }
    put(dir.path(), layers);
}

fn qemu_io(overlay: &Path, command: &str) {
    let done = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(overlay).status();
    assert!(done.expect("qemu-io is installed: package qemu-utils").success());
}

#[test]
fn many_overlays_of_qemu_become_one() {
    if !is_root("writing to an overlay that is sealed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    captured_by_qemu(&dir);
    merge(dir.path(), &|| false).unwrap();
    let layers = Snapshot::open(dir.path()).unwrap().manifest.layers;
    assert_eq!(layers.len(), 2, "{layers:?}");
    let merged = dir.path().join(&layers[1].file);
    assert!(merged.extension().is_some_and(|extension| extension == "qcow2"));
    let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&merged).output();
    let info: serde_json::Value = serde_json::from_slice(&info.unwrap().stdout).unwrap();
    assert_eq!(info["backing-filename"], ROOTFS);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    assert_eq!(fs::metadata(&merged).unwrap().mode() & 0o777, 0o400);
    for number in 0..MAX_OVERLAYS + 1 {
        qemu_io(&merged, &format!("read -q -P {} {}k 64k", number + 1, number * 64));
    }
}

/// Names a file of the attacker's choice in the header of an overlay, as its VM's process can.
fn name_below(overlay: &Path, name: &str) {
    let file = File::options().read(true).write(true).open(overlay).unwrap();
    let mut at = [0; 8];
    file.read_exact_at(&mut at, 8).unwrap();
    file.write_all_at(&(name.len() as u32).to_be_bytes(), 16).unwrap();
    file.write_all_at(name.as_bytes(), u64::from_be_bytes(at)).unwrap();
}

/// The files of a directory, with their inodes.
fn inodes(dir: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino())).collect()
}

#[test]
fn a_header_that_names_another_file_is_not_followed_and_all_stays() {
    const SECRET: &[u8] = b"what only root may read";
    for (number, format) in [(1, "raw"), (6, "qcow2"), (MAX_OVERLAYS + 1, "qcow2")] {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        fs::write(&secret, SECRET.repeat(10_000)).unwrap();
        captured_by_qemu(&dir);
        let layers = Snapshot::open(dir.path()).unwrap().manifest.layers;
        let evil = &layers[number];
        let name = match format {
            // The lowest one's is read as it is.
            "raw" => secret.display().to_string(),
            _ => format!(
                "json:{{\"driver\":\"raw\",\"file.driver\":\"file\",\"file.filename\":\"{}\"}}",
                secret.display()
            ),
        };
        name_below(&dir.path().join(&evil.file), &name);
        let before = inodes(dir.path());

        let refused = merge(dir.path(), &|| false).unwrap_err();
        let said = crate::chain(&refused).to_string();
        let expected = format!("layer {} names another backing file", evil.file);
        assert!(said.contains(&expected), "{said}");
        assert_eq!(inodes(dir.path()), before, "all stays as it was");
        assert_eq!(Snapshot::open(dir.path()).unwrap().manifest.layers, layers);
        for file in before.keys() {
            let content = fs::read(dir.path().join(file)).unwrap();
            assert!(!content.windows(SECRET.len()).any(|it| it == SECRET), "{file:?}");
        }
    }
}

#[test]
fn nothing_is_given_to_others_that_is_not_sealed_or_not_as_it_was() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    captured_by_qemu(&dir);
    fs::write(dir.path().join("devices"), "state").unwrap();
    let snapshot = Snapshot::open(dir.path()).unwrap();
    let top = snapshot.manifest.layers.last().unwrap().file.clone();
    let opened = snapshot.open_layers();
    let not_sealed =
        matches!(&opened, Err(SnapshotError::Disk { source: LayerError::NotSealed { .. }, .. }));
    assert!(not_sealed, "{opened:?}");

    // Its VM still has the topmost one open.
    let path = dir.path().join(&top);
    let writer = File::options().write(true).open(&path).unwrap();
    let given = snapshot.link_into(&outside.path().join("given"), Durability::Cached).unwrap();
    assert_eq!(given.open_layers().unwrap().len(), snapshot.manifest.layers.len());
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&given.dir.join(&top)), inode(&path), "it is shared");
    assert_ne!(inode(&path), writer.metadata().unwrap().ino());
    let before = fs::read(given.dir.join(&top)).unwrap();
    writer.write_all_at(&[0xee; 512], 0).unwrap();
    assert!(fs::read(given.dir.join(&top)).unwrap() == before);

    // What was changed before it was sealed is not given to anybody.
    let dir = tempfile::tempdir().unwrap();
    captured_by_qemu(&dir);
    let snapshot = Snapshot::open(dir.path()).unwrap();
    let top = dir.path().join(&snapshot.manifest.layers.last().unwrap().file);
    name_below(&top, "/etc/shadow");
    let to = outside.path().join("refused");
    let refused = snapshot.link_into(&to, Durability::Cached).unwrap_err();
    assert!(crate::chain(&refused).to_string().contains("names another backing file"));
    assert!(!to.exists() && !to.with_extension("new").exists());
}
