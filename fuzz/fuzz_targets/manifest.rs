//! What a snapshot says that it is.

#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::vmm::storage::disk::DiskFormat;
use nestbox_fuzz::vmm::storage::snapshot::{FORMAT, Manifest, ROOTFS, fuzzing};
use nestbox_fuzz::{measure, said::is_fit};
use tempfile::TempDir;

thread_local! {
    static DIR: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|text: &[u8]| {
    DIR.with(|dir| {
        let dir = dir.get_or_init(|| tempfile::tempdir().expect("a directory"));
        read(text, dir.path());
    });
});

fn read(text: &[u8], dir: &Path) {
    fs::write(dir.join("snapshot.json"), text).expect("it is written");
    let manifest = match measure::within(64 * text.len() + (64 << 10), || Manifest::read(dir)) {
        Ok(manifest) => manifest,
        Err(error) => {
            // Not in one line only: that the text is quoted is for logs.
            let _ = nestbox_fuzz::chain(&error).to_string();
            return;
        }
    };
    assert_eq!(manifest.format, FORMAT);
    let (base, above) = manifest.layers.split_first().expect("a disk");
    assert!(base.file == ROOTFS && base.format == DiskFormat::Raw);
    for (number, layer) in above.iter().enumerate() {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.';
        assert!(layer.file.bytes().all(plain) && layer.file.starts_with("overlay."), "{layer:?}");
        assert!(Path::new(&layer.file).components().count() == 1, "{layer:?}");
        assert!(layer.format == above[0].format && layer.format != DiskFormat::Raw);
        assert!(!above[..number].contains(layer), "{layer:?} twice");
    }
    fuzzing::write(&manifest, dir).expect("what was read can be written");
    let again = Manifest::read(dir).inspect_err(|error| is_fit(error));
    assert_eq!(again.expect("what was written can be read"), manifest);
}
