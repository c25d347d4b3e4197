//! Headers of guest memory by somebody who can compute a checksum.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::measure;
use nestbox_fuzz::vmm::storage::memory::Header;
use sha2::{Digest, Sha256};

fuzz_target!(|content: &[u8]| {
    let mut bytes = Header::MAGIC[..7].to_vec();
    bytes.extend(content);
    bytes.extend(Sha256::digest(&bytes));
    let parsed = measure::within(16 * bytes.len() + 4096, || Header::parse(&bytes));
    if let Ok(header) = parsed {
        let again = header.encode().expect("what was read can be written");
        assert_eq!(Header::parse(&again), Ok(header));
    }
});
