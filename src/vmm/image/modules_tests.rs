use super::*;

/// The smallest ELF object with a `.modinfo` section.
fn module(info: &[&str]) -> Vec<u8> {
    let names = b"\0.modinfo\0";
    let info: Vec<u8> = info.iter().flat_map(|s| s.bytes().chain([0])).collect();
    let (names_at, info_at) = (64, 64 + names.len());
    let table = info_at + info.len();
    let mut object = vec![0; 64];
    object[..6].copy_from_slice(b"\x7fELF\x02\x01");
    object[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
    object[0x3a..0x40].copy_from_slice(&[64, 0, 2, 0, 0, 0]);
    object.extend_from_slice(names);
    object.extend_from_slice(&info);
    for (name, at, length) in [(0_u32, names_at, names.len()), (1, info_at, info.len())] {
        let mut section = vec![0; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        section[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
        object.extend_from_slice(&section);
    }
    object
}

fn kernel(files: &[(&str, &[&str])], builtin: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("kernel/drivers/some")).unwrap();
    fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
    for (name, info) in files {
        fs::write(dir.path().join("kernel/drivers/some").join(name), module(info)).unwrap();
    }
    dir
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    choose(dir.path()).unwrap().into_iter().map(|m| m.file_name).collect()
}

#[test]
fn dependencies_come_first_and_once() {
    let dir = kernel(
        &[
            ("virtio_mmio.ko", &["license=GPL", "depends=virtio,virtio_ring"]),
            ("virtio_blk.ko", &["depends=virtio"]),
            ("virtio-rng.ko", &["depends=virtio"]),
            ("virtio.ko", &["depends=virtio_ring"]),
            ("virtio_ring.ko", &["depends="]),
            ("unwanted.ko", &["depends="]),
        ],
        "kernel/fs/ext4/ext4.ko\n",
    );
    assert_eq!(
        names(&dir),
        ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio_blk.ko", "virtio-rng.ko"]
    );
}

#[test]
fn soft_dependencies_are_loaded_before_where_they_exist() {
    let dir = kernel(
        &[
            ("virtio_mmio.ko", &["softdep=pre: crc32c-generic crypto-x post: late"]),
            ("virtio_blk.ko", &[]),
            ("crc32c-generic.ko", &[]),
            ("late.ko", &[]),
        ],
        "ext4.ko",
    );
    assert_eq!(names(&dir), ["crc32c-generic.ko", "virtio_mmio.ko", "virtio_blk.ko"]);
}

#[test]
fn a_kernel_without_a_disk_driver_is_refused_by_name() {
    let dir = kernel(&[("virtio_mmio.ko", &[])], "ext4.ko");
    let error = choose(dir.path()).err().unwrap();
    assert_eq!(error.to_string(), "the kernel has no module virtio_blk");
}

#[test]
fn a_missing_dependency_says_who_needs_it() {
    let dir = kernel(&[("virtio_mmio.ko", &["depends=virtio"])], "ext4.ko\nvirtio_blk.ko");
    let error = choose(dir.path()).err().unwrap();
    assert_eq!(error.to_string(), "the kernel has no module virtio, which virtio_mmio needs");
}

#[test]
fn a_circle_ends_with_an_error() {
    let dir = kernel(
        &[("virtio_mmio.ko", &["depends=virtio"]), ("virtio.ko", &["depends=virtio_mmio"])],
        "ext4.ko\nvirtio_blk.ko",
    );
    assert!(matches!(choose(dir.path()), Err(ModulesError::Circle { .. })));
}

#[test]
fn damaged_modules_are_refused_at_every_length() {
    let whole = module(&["depends=virtio"]);
    assert_eq!(dependencies(&modinfo(&whole).unwrap()), ["virtio"]);
    for length in 0..whole.len() {
        assert!(modinfo(&whole[..length]).is_none(), "{length} bytes");
    }
}
