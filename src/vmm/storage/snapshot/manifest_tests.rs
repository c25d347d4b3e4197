use serde_json::{Value, json};

use super::*;

const OVERLAYS: [&str; 2] = ["overlay.0123456789abcdef.qcow2", "overlay.fedcba9876543210.qcow2"];

fn layers(all: &[(&str, &str)]) -> Value {
    all.iter().map(|(file, format)| json!({ "file": file, "format": format })).collect()
}

/// Reads a manifest with these layers, as anybody may have written it.
fn read(layers: Value) -> Result<Manifest, SnapshotError> {
    let dir = tempfile::tempdir().unwrap();
    let manifest = json!({
        "format": FORMAT,
        "build": "0123456789abcdef",
        "created_at": "2026-01-01T00:00:00Z",
        "sandbox_id": SandboxId::random(),
        "image": "debian",
        "shape": Shape::DEFAULT,
        "engine": Engine::QemuTcg,
        "layers": layers,
        "disk_size": 1 << 20,
        "access_token": null,
        "envs": {},
    });
    fs::write(dir.path().join(FILE), manifest.to_string()).unwrap();
    Manifest::read(dir.path())
}

#[test]
fn the_layers_of_a_disk_are_named_by_their_builds() {
    let whole = [("rootfs", "raw"), (OVERLAYS[0], "qcow2"), (OVERLAYS[1], "qcow2")];
    for count in 1..=whole.len() {
        assert_eq!(read(layers(&whole[..count])).unwrap().layers.len(), count);
    }
    read(layers(&[("rootfs", "raw"), ("overlay.0123456789abcdef.cow", "cow")])).unwrap();
}

#[test]
fn a_name_that_is_no_layers_is_refused_where_it_is_read() {
    for name in [
        "",
        ".",
        "..",
        "/etc/shadow",
        "../../other/snapshot-0123456789abcdef/overlay.0123456789abcdef.qcow2",
        "./overlay.0123456789abcdef.qcow2",
        "overlay.0123456789abcdef.qcow2/..",
        "overlay.0123456789abcdef.cow",
        "overlay.0123456789ABCDEF.qcow2",
        "overlay.0123456789abcde.qcow2",
        "overlay.0123456789abcdef.qcow2\0",
        "overlay.0123456789abcdef.qcow2 ",
        "overlay.0123456789abcdef.x.qcow2",
        "memfile",
        "rootfs",
    ] {
        let refused = read(layers(&[("rootfs", "raw"), (name, "qcow2")]));
        assert!(
            matches!(&refused, Err(SnapshotError::Layers { file, .. }) if file == name),
            "{name:?}: {refused:?}"
        );
        let refused = read(layers(&[(name, "raw")]));
        assert_eq!(refused.is_ok(), name == "rootfs", "{name:?}");
    }
}

#[test]
fn layers_that_cannot_lie_on_each_other_are_refused() {
    let [one, other] = OVERLAYS;
    let cow = "overlay.0123456789abcdef.cow";
    for wrong in [
        &[][..],
        &[(one, "qcow2")],
        &[("rootfs", "qcow2")],
        &[("rootfs", "raw"), (one, "raw")],
        &[("rootfs", "raw"), (one, "qcow2"), (one, "qcow2")],
        &[("rootfs", "raw"), (cow, "cow"), (other, "qcow2")],
    ] {
        let refused = read(layers(wrong));
        assert!(matches!(refused, Err(SnapshotError::Layers { .. })), "{wrong:?}: {refused:?}");
    }
}
