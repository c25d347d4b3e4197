//! Composes the initramfs: the guest agent as `/init`, and the modules it loads.
//!
//! Format: newc cpio, uncompressed (Linux `Documentation/driver-api/early-userspace/
//! buffer-format.rst`): unpacking costs more than reading under software emulation.

use std::io::{self, Write};

/// Where the agent finds its modules in the initramfs.
const MODULES_DIR: &str = "lib/modules";
const DIRECTORY: u32 = 0o040755;
const PROGRAM: u32 = 0o100755;
const FILE: u32 = 0o100644;

/// Writes an initramfs with `init` and the `modules` (file name and ELF object), in load order.
///
/// # Errors
/// Those of writing to `out`.
pub fn write(out: &mut impl Write, init: &[u8], modules: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = Archive { out, inode: 0 };
    for dir in ["dev", "proc", "sys", "newroot", "lib", MODULES_DIR] {
        archive.entry(dir, DIRECTORY, &[])?;
    }
    archive.entry("init", PROGRAM, init)?;
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.entry(&format!("{MODULES_DIR}/order"), FILE, order.as_bytes())?;
    for (name, object) in modules {
        archive.entry(&format!("{MODULES_DIR}/{name}"), FILE, object)?;
    }
    archive.entry("TRAILER!!!", 0, &[])
}

struct Archive<'a, W> {
    out: &'a mut W,
    inode: u32,
}

impl<W: Write> Archive<'_, W> {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // inode, mode, uid, gid, links, time, size, device and its twin, name's size, checksum. No
        // times: the same parts give the same bytes.
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_reads_back_in_order() {
        let modules = vec![("b.ko".to_owned(), vec![1; 5]), ("a.ko".to_owned(), vec![2; 8])];
        let mut archive = Vec::new();
        write(&mut archive, b"#!agent", &modules).unwrap();
        let (mut names, mut rest) = (Vec::new(), archive.as_slice());
        loop {
            assert_eq!(&rest[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&rest[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&rest[110..110 + name_size - 1]).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            let content = rest[start..start + size].to_vec();
            rest = &rest[(start + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                break;
            }
            names.push((name.to_owned(), mode, content));
        }
        assert!(rest.is_empty());
        let files: Vec<_> = names.iter().filter(|(_, mode, _)| *mode != 0o040755).collect();
        assert_eq!(files[0], &("init".to_owned(), 0o100755, b"#!agent".to_vec()));
        assert_eq!(files[1].2, b"b.ko\na.ko\n");
        assert_eq!(files[2], &("lib/modules/b.ko".to_owned(), 0o100644, vec![1; 5]));
        assert_eq!(names.len(), 6 + 4);
    }
}
