#![allow(clippy::single_range_in_vec_init, reason = "a run of pages is a range")]

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;

use super::*;
use crate::vmm::storage::memory::tests::Mapped;

fn base(mib: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(mib << 20).unwrap();
    file
}

#[test]
fn only_written_pages_are_changed() {
    let file = base(1);
    let mut vm = Mapped::new(&file);
    assert_eq!(vm.guest.changed().unwrap(), []);
    assert_eq!(vm.content().iter().map(|byte| u64::from(*byte)).sum::<u64>(), 0);
    assert_eq!(vm.guest.changed().unwrap(), [], "reading is no change");
    vm.fill(0, 1);
    vm.fill(7, 1);
    vm.fill(8, 1);
    vm.fill(255, 1);
    assert_eq!(vm.guest.changed().unwrap(), [0..1, 7..9, 255..256]);
}

#[test]
fn a_memory_in_several_mappings_is_one() {
    let file = base(3);
    let mut vm = Mapped::new(&file);
    let (page, start) = (1 << 20, vm.content().as_mut_ptr());
    // SAFETY: the addresses are within the mapping; another advice splits it and changes nothing.
    let result = unsafe { libc::madvise(start.add(page).cast(), page, libc::MADV_RANDOM) };
    assert_eq!(result, 0);
    let guest = GuestMemory::find(std::process::id() as i32, &file).unwrap();
    assert_eq!(guest.mappings.len(), 3);
    let across = 250..520;
    let bytes: Vec<u8> = (0..270 * PAGE_SIZE).map(|n| (n / 1000) as u8).collect();
    guest.write(std::slice::from_ref(&across), &bytes).unwrap();
    assert_eq!(guest.changed().unwrap(), std::slice::from_ref(&across));
    let mut read = vec![0; bytes.len()];
    guest.read(&[250..251, 251..520], &mut read).unwrap();
    assert!(read == bytes && vm.content()[250 * PAGE_SIZE..520 * PAGE_SIZE] == bytes);
}

#[test]
fn a_base_that_is_not_mapped_once_is_refused() {
    let pid = std::process::id() as i32;
    let file = base(1);
    assert!(matches!(GuestMemory::find(pid, &file), Err(MemoryError::NotMapped { .. })));
    let _one = Mapped::new(&file);
    file.set_len(2 << 20).unwrap();
    assert!(matches!(GuestMemory::find(pid, &file), Err(MemoryError::NotMapped { .. })));
    assert!(matches!(GuestMemory::find(i32::MAX, &file), Err(MemoryError::Io { .. })));
}

#[test]
fn the_memory_of_another_process_is_read_and_written_until_it_ends() {
    let file = base(1);
    let mut vm = Mapped::new(&file);
    vm.fill(3, 3);
    // SAFETY: the child only makes system calls, which is what a child of threads may do.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above. Only root may change its user, and then it is another one's process.
        unsafe {
            libc::setuid(12345);
            loop {
                libc::pause();
            }
        }
    }
    assert!(pid > 0);
    let guest = GuestMemory::find(pid, &file).unwrap();
    let mut page = [0; PAGE_SIZE];
    guest.read(&[3..4], &mut page).unwrap();
    assert_eq!(page, [3; PAGE_SIZE]);
    guest.write(&[200..201], &[4; PAGE_SIZE]).unwrap();
    assert_eq!(guest.changed().unwrap(), [3..4, 200..201]);
    assert_eq!(vm.guest.changed().unwrap(), [3..4], "the parent's own memory is as it was");

    let child = Pid::from_raw(pid);
    kill(child, Signal::SIGKILL).unwrap();
    waitpid(child, None).unwrap();
    assert!(matches!(guest.changed(), Err(MemoryError::Gone { .. })));
    assert!(matches!(guest.read(&[3..4], &mut page), Err(MemoryError::Gone { .. })));
    assert!(matches!(guest.write(&[3..4], &page), Err(MemoryError::Gone { .. })));
}

#[test]
fn lines_of_maps_are_read() {
    let private = "7f00000000-7f00200000 rw-p 00100000 fe:01 4711      /var/lib/a b (deleted)";
    let line = parse(private).unwrap();
    assert_eq!(line.file, FileId { dev: makedev(0xfe, 1), ino: 4711 });
    assert_eq!(line.mapping, Mapping { pages: 256..768, address: 0x7f_0000_0000 });
    for other in [
        "7f00000000-7f00200000 rw-s 00100000 fe:01 4711 /var/lib/memfile",
        "7f00000000-7f00200000 rw-p 00000000 00:00 0 [heap]",
        "",
        "7f00000000 rw-p",
    ] {
        assert!(parse(other).is_none(), "{other}");
    }
}

#[test]
fn batches_are_whole_and_not_too_large() {
    let runs = [0..100, 300..900, 1000..1001];
    let batches: Vec<_> = batches(runs.clone()).collect();
    assert_eq!(batches[0], [0..100, 300..456]);
    let pages: Vec<u64> = batches.iter().flatten().cloned().flatten().collect();
    assert_eq!(pages, runs.into_iter().flatten().collect::<Vec<_>>());
    assert_eq!(batches.len(), 3);
}
