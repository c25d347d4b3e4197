use std::fs::File;

use chrono::Utc;

use super::*;
use crate::domain::id::SandboxId;
use crate::domain::shape::Shape;
use crate::vmm::disk::Overlay;
use crate::vmm::disk::cow::tests::{Chunks, cow_of, read};
use crate::vmm::hypervisor::Engine;
use crate::vmm::snapshot::{FORMAT, Manifest, ROOTFS};

/// A snapshot whose disk was captured this often, with all that the overlays have together.
fn captured(dir: &Path, times: usize) -> Chunks {
    let mut all = Chunks::new();
    let mut layers = vec![Layer { file: ROOTFS.to_owned(), format: DiskFormat::Raw }];
    for index in 0..times {
        let chunks = [(100 + index as u64, 1), (7, index as u8), (900 - index as u64, 2)];
        let file = layer_name(BuildId::random(), DiskFormat::Cow);
        fs::write(dir.join(&file), cow_of(&chunks)).unwrap();
        layers.push(Layer { file, format: DiskFormat::Cow });
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

#[test]
fn many_overlays_of_qemu_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut layers = vec![Layer { file: ROOTFS.to_owned(), format: DiskFormat::Raw }];
    File::create(dir.path().join(ROOTFS)).unwrap().set_len(4 << 20).unwrap();
    for _ in 0..MAX_OVERLAYS + 1 {
        let file = layer_name(BuildId::random(), DiskFormat::Qcow2);
        let below = layers.last().unwrap();
        Overlay::create(&dir.path().join(&file), below, 4 << 20).unwrap();
        layers.push(Layer { file, format: DiskFormat::Qcow2 });
    }
    put(dir.path(), layers);
    merge(dir.path(), &|| false).unwrap();
    let layers = Snapshot::open(dir.path()).unwrap().manifest.layers;
    assert_eq!(layers.len(), 2, "{layers:?}");
    let merged = dir.path().join(&layers[1].file);
    assert!(merged.extension().is_some_and(|extension| extension == "qcow2"));
    let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&merged).output();
    let info: serde_json::Value = serde_json::from_slice(&info.unwrap().stdout).unwrap();
    assert_eq!(info["backing-filename"], ROOTFS);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}
