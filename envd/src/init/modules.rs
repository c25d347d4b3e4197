//! Drivers that the kernel does not bring along.

use std::fs::{self, File};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::InitError;

/// File names in this directory, one a line, each after those it needs.
pub const ORDER: &str = "/lib/modules/order";

/// Loads all modules of the initramfs.
pub fn load_all() -> Result<(), InitError> {
    let read = |name: &str, source| InitError::ReadModule { name: name.to_owned(), source };
    let order = fs::read_to_string(ORDER).map_err(|source| read("order", source))?;
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = format!("/lib/modules/{name}");
        let file = File::open(path).map_err(|source| read(name, source))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(source) => return Err(InitError::LoadModule { name: name.to_owned(), source }),
        }
    }
    Ok(())
}
