//! Keeps a pager's resident memory to what it uses.

use std::ffi::{c_int, c_void};

use nix::libc;
use nix::unistd::{SysconfVar, sysconf};

/// Lets go of the program's own code and constants: what was needed once, to load the program and
/// to come here, and what the kernel had mapped beside it. What is needed again comes back out of
/// the page cache, which the daemon and all pagers share.
pub(super) fn let_go_of_code() {
    // SAFETY: the function is of the right type, and the pointer that it is given is not used.
    unsafe { libc::dl_iterate_phdr(Some(let_go_of_object), std::ptr::null_mut()) };
}

/// Does it for the program, or a library that it is linked with.
unsafe extern "C" fn let_go_of_object(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr(3) gives a description that is valid for this call.
    let object = unsafe { &*object };
    // The kernel's own object in every process has no file to come back from.
    if object.dlpi_phdr.is_null() || object.dlpi_addr == vdso() {
        return 0;
    }
    // SAFETY: the description says how many headers there are.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    let page_size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    for header in headers {
        // What can be written, at least until it was relocated, is not in the file as it is here.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = (object.dlpi_addr + header.p_vaddr) / page_size * page_size;
        let end = (object.dlpi_addr + header.p_vaddr + header.p_memsz).next_multiple_of(page_size);
        // SAFETY: the range is a private mapping of a file that nothing has written to, so its
        // pages are the same when they are read again. If it fails, they stay.
        unsafe {
            libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED);
        }
    }
    0
}

/// Where the kernel's own object is.
fn vdso() -> u64 {
    // SAFETY: getauxval(3) only looks a number up.
    unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) }
}

#[cfg(test)]
mod tests {
    use super::*;

    static CONSTANT: [u8; 8192] = [7; 8192];

    #[test]
    fn code_and_constants_come_back() {
        let before = std::hint::black_box(&CONSTANT).iter().map(|b| u32::from(*b)).sum::<u32>();
        let_go_of_code();
        let after = std::hint::black_box(&CONSTANT).iter().map(|b| u32::from(*b)).sum::<u32>();
        assert_eq!(before, after);
        assert_eq!(format!("{:?}", Some(1.5)), "Some(1.5)");
    }
}
