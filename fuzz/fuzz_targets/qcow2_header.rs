//! The header of an overlay, by whoever has taken its QEMU over.

#![no_main]

use std::fs::File;

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::measure;
use nestbox_fuzz::vmm::storage::disk::qcow2::{HEADER_LIMIT, Header, check, write_overlay};
use nestbox_fuzz::vmm::storage::disk::{DiskFormat, Layer};
use nix::sys::memfd::{MFdFlags, memfd_create};

fuzz_target!(|content: &[u8]| {
    let mut bytes = content.to_vec();
    bytes.resize(HEADER_LIMIT, 0);
    // A name of at most 1023 bytes is all that is kept.
    let Ok(header) = measure::within(4096, || Header::parse(&bytes)) else { return };
    assert!(header.size > 0 && header.size.is_multiple_of(512));
    assert!(header.backing.len() <= 1023 && header.backing_format != DiskFormat::Cow);
    let Ok(file) = String::from_utf8(header.backing.clone()) else { return };
    let below = Layer { file, format: header.backing_format };
    header.check(&below, header.size).expect("it says so");
    let other = Layer { file: format!("{}x", below.file), ..below.clone() };
    assert!(header.check(&other, header.size).is_err());
    assert!(header.check(&below, header.size + 512).is_err());

    let memory = memfd_create(c"overlay", MFdFlags::empty()).expect("a file");
    let (file, layer) =
        (File::from(memory), Layer { file: "overlay".to_owned(), format: DiskFormat::Qcow2 });
    write_overlay(&file, &below, header.size).expect("what was read can be written");
    let again = check(&layer, &file, &below, header.size).expect("and read again");
    assert_eq!((again.size, again.backing), (header.size, header.backing));
    assert!(!again.dirty && !again.corrupt);
});
