//! Takes the ELF kernel out of a bzImage.
//!
//! Layout: Linux `Documentation/arch/x86/boot.rst`. The setup header names where the compressed
//! payload lies; its last four bytes are the length of what comes out.

use std::io::{Seek, SeekFrom, Write};

use super::command::{CommandError, Tool};

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// Offset of `setup_sects`: how many sectors of real-mode code come before the payload's base.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the magic number `HdrS`.
const HEADER_MAGIC: usize = 0x202;
/// Offset of the boot protocol's version; the payload is described from 2.08 on.
const PROTOCOL_VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Magic of an LZ4 legacy frame, which is what the kernel's build makes; `lz4_flex` reads frames of
/// the newer kind only, but the blocks inside are the same.
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Every block of a legacy frame holds this many bytes once unpacked, the last one fewer.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// No kernel is larger unpacked; a damaged length must not take all memory.
const MAX_KERNEL_BYTES: usize = 512 << 20;

/// Why a file is no kernel that Nestbox can start.
#[derive(Debug, thiserror::Error)]
pub enum KernelFileError {
    /// Neither an ELF file nor a bzImage.
    #[error("this is neither an ELF kernel nor a bzImage")]
    NotAKernel,
    /// A bzImage whose header points outside the file, or whose payload ends too early.
    #[error("the bzImage is damaged: {what}")]
    Damaged {
        /// What does not fit.
        what: &'static str,
    },
    /// The payload's compression is one that Nestbox does not unpack.
    #[error("the kernel is compressed with {format}, which is not supported; give its vmlinux")]
    Unsupported {
        /// Name of the format, or its first bytes.
        format: String,
    },
    /// An LZ4 block that does not unpack.
    #[error("cannot unpack the kernel's LZ4 payload")]
    Lz4(#[source] lz4_flex::block::DecompressError),
    /// The program that unpacks the payload failed.
    #[error("cannot unpack the kernel's payload")]
    Unpack(#[source] CommandError),
    /// The payload could not be handed to the program that unpacks it.
    #[error("cannot write the kernel's payload to a temporary file")]
    Spool(#[source] std::io::Error),
}

/// Returns the ELF kernel in `file`, which may be one already.
///
/// # Errors
/// [`KernelFileError`] says what the file is instead.
pub fn vmlinux(file: Vec<u8>) -> Result<Vec<u8>, KernelFileError> {
    if file.starts_with(ELF_MAGIC) {
        return Ok(file);
    }
    let kernel = unpack(payload(&file)?)?;
    match kernel.starts_with(ELF_MAGIC) {
        true => Ok(kernel),
        false => Err(KernelFileError::Damaged { what: "its payload is not an ELF file" }),
    }
}

/// Returns the release an ELF kernel calls itself, such as `6.1.0-40-cloud-amd64`.
pub fn release(vmlinux: &[u8]) -> Option<String> {
    // The banner is a string constant of every kernel; `%s` in its twin for /proc/version is no
    // release.
    const BANNER: &[u8] = b"Linux version ";
    let starts = vmlinux.windows(BANNER.len()).enumerate().filter(|(_, w)| *w == BANNER);
    for (at, _) in starts {
        let rest = &vmlinux[at + BANNER.len()..];
        let word: Vec<u8> =
            rest.iter().copied().take(65).take_while(|b| b.is_ascii_graphic()).collect();
        let is_release = word.first().is_some_and(u8::is_ascii_digit);
        if let (true, Ok(text)) = (is_release, String::from_utf8(word)) {
            return Some(text);
        }
    }
    None
}

fn payload(file: &[u8]) -> Result<&[u8], KernelFileError> {
    if file.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(KernelFileError::NotAKernel);
    }
    let outside = KernelFileError::Damaged { what: "its header lies outside the file" };
    let (Some(version), Some(offset), Some(length)) = (
        file.get(PROTOCOL_VERSION..PROTOCOL_VERSION + 2),
        word(file, PAYLOAD_OFFSET),
        word(file, PAYLOAD_LENGTH),
    ) else {
        return Err(outside);
    };
    if u16::from_le_bytes([version[0], version[1]]) < 0x208 {
        return Err(KernelFileError::Damaged { what: "its boot protocol is older than 2.08" });
    }
    // Zero means four, from the days of the first boot loaders.
    let setup_sectors = if file[SETUP_SECTS] == 0 { 4 } else { usize::from(file[SETUP_SECTS]) };
    let start = (setup_sectors + 1) * 512 + offset;
    file.get(start..start + length)
        .ok_or(KernelFileError::Damaged { what: "its payload lies outside the file" })
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>, KernelFileError> {
    let short = || KernelFileError::Damaged { what: "its payload is too short" };
    let trailer = payload.len().checked_sub(4).ok_or_else(short)?;
    let length = word(payload, trailer).ok_or_else(short)?;
    let body = &payload[..trailer];
    if length > MAX_KERNEL_BYTES {
        return Err(KernelFileError::Damaged { what: "its unpacked length is absurd" });
    }
    match body {
        [0x02, 0x21, 0x4c, 0x18, ..] => unpack_lz4_legacy(body, length),
        [0x1f, 0x8b, ..] => filter(Tool::new("gzip", "gzip"), body),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => filter(Tool::new("zstd", "zstd"), body),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => filter(Tool::new("xz", "xz-utils"), body),
        b if b.starts_with(b"BZh") => unsupported("bzip2"),
        [0x5d, 0, 0, ..] => unsupported("lzma"),
        [0x89, b'L', b'Z', b'O', ..] => unsupported("lzo"),
        other => unsupported(&format!("{:02x?}", &other[..other.len().min(4)])),
    }
}

fn unsupported(format: &str) -> Result<Vec<u8>, KernelFileError> {
    Err(KernelFileError::Unsupported { format: format.to_owned() })
}

fn unpack_lz4_legacy(frame: &[u8], length: usize) -> Result<Vec<u8>, KernelFileError> {
    debug_assert!(frame.starts_with(&LZ4_LEGACY_MAGIC));
    let mut out = vec![0; length];
    let (mut filled, mut rest) = (0, &frame[LZ4_LEGACY_MAGIC.len()..]);
    while filled < length {
        let size = word(rest, 0).ok_or(KernelFileError::Damaged { what: "it ends too early" })?;
        let block = rest
            .get(4..4 + size)
            .ok_or(KernelFileError::Damaged { what: "a block of it lies outside the file" })?;
        let end = (filled + LZ4_LEGACY_BLOCK).min(length);
        let n = lz4_flex::block::decompress_into(block, &mut out[filled..end])
            .map_err(KernelFileError::Lz4)?;
        if n == 0 {
            return Err(KernelFileError::Damaged { what: "a block of it is empty" });
        }
        filled += n;
        rest = &rest[4 + size..];
    }
    Ok(out)
}

/// Unpacks through the program everybody has for it, rather than with one more library each.
fn filter(tool: Tool, body: &[u8]) -> Result<Vec<u8>, KernelFileError> {
    let mut spool = tempfile::tempfile().map_err(KernelFileError::Spool)?;
    spool.write_all(body).map_err(KernelFileError::Spool)?;
    spool.seek(SeekFrom::Start(0)).map_err(KernelFileError::Spool)?;
    tool.arg("-dc").filter(spool).map_err(KernelFileError::Unpack)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().expect("the slice has four bytes")) as usize)
}

#[cfg(test)]
#[path = "bzimage_tests.rs"]
mod tests;
