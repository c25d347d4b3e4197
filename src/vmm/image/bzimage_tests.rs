use super::*;

/// A bzImage with one setup sector and the given payload.
fn bzimage(body: &[u8], unpacked_length: usize) -> Vec<u8> {
    let mut file = vec![0; 2 * 512 + 16];
    file[SETUP_SECTS] = 1;
    file[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
    file[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
    file[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
    let length = body.len() as u32 + 4;
    file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
    file.extend_from_slice(body);
    file.extend_from_slice(&(unpacked_length as u32).to_le_bytes());
    file
}

fn lz4_legacy(content: &[u8]) -> Vec<u8> {
    let mut frame = LZ4_LEGACY_MAGIC.to_vec();
    for block in content.chunks(LZ4_LEGACY_BLOCK) {
        let packed = lz4_flex::block::compress(block);
        frame.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        frame.extend_from_slice(&packed);
    }
    frame
}

fn elf(length: usize) -> Vec<u8> {
    let mut kernel = ELF_MAGIC.to_vec();
    kernel.resize(length, 7);
    kernel
}

#[test]
fn an_lz4_kernel_of_several_blocks_is_unpacked() {
    let kernel = elf(LZ4_LEGACY_BLOCK + 12_345);
    assert_eq!(vmlinux(bzimage(&lz4_legacy(&kernel), kernel.len())).unwrap(), kernel);
}

#[test]
fn a_gzip_kernel_is_unpacked_by_gzip() {
    let mut spool = tempfile::tempfile().unwrap();
    spool.write_all(&elf(1000)).unwrap();
    spool.seek(SeekFrom::Start(0)).unwrap();
    let body = Tool::new("gzip", "gzip").arg("-c").filter(spool).unwrap();
    assert_eq!(vmlinux(bzimage(&body, 1000)).unwrap(), elf(1000));
}

#[test]
fn an_elf_kernel_is_taken_as_it_is() {
    assert_eq!(vmlinux(elf(100)).unwrap(), elf(100));
}

#[test]
fn other_compression_is_named() {
    let error = vmlinux(bzimage(b"BZh91AY", 10)).unwrap_err();
    assert!(error.to_string().contains("bzip2"), "{error}");
}

#[test]
fn what_is_no_kernel_is_refused() {
    assert!(matches!(vmlinux(b"#!/bin/sh".to_vec()), Err(KernelFileError::NotAKernel)));
    assert!(matches!(vmlinux(vec![0; 4096]), Err(KernelFileError::NotAKernel)));
}

#[test]
fn damaged_kernels_are_refused_at_every_length() {
    let whole = bzimage(&lz4_legacy(&elf(5000)), 5000);
    for length in 0..whole.len() {
        assert!(vmlinux(whole[..length].to_vec()).is_err(), "{length} bytes");
    }
    assert!(vmlinux(bzimage(&lz4_legacy(&elf(5000)), 6000)).is_err());
    assert!(vmlinux(bzimage(&lz4_legacy(&elf(5000)), usize::MAX >> 33)).is_err());
}

#[test]
fn the_release_is_read_from_the_banner() {
    let kernel = b"\x7fELF\0Linux version %s (x)\0..Linux version 6.1.0-9-amd64 (debian)\0";
    assert_eq!(release(kernel).as_deref(), Some("6.1.0-9-amd64"));
    assert_eq!(release(b"\x7fELF"), None);
}
