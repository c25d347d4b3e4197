use std::fs::File;

use chrono::Utc;

use super::*;
use crate::domain::id::SandboxId;
use crate::domain::shape::Shape;
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
    fs::write(dir.join(ROOTFS), "").unwrap();
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
    all
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
