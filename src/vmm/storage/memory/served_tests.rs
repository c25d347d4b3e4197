//! Memory that a pager serves, without a pager.

use super::*;

/// What a VM is whose memory a pager serves: anonymous memory in the test's own process, and what
/// the pager would say about it.
struct Served {
    memory: *mut u8,
    given_back: Vec<bool>,
}

impl Served {
    fn new() -> Self {
        let (kind, protection) =
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), MIB, protection, kind, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        // SAFETY: the range is the mapping. Small pages only, as no neighbour may appear by itself.
        assert_eq!(unsafe { libc::madvise(memory, MIB, libc::MADV_NOHUGEPAGE) }, 0);
        Self { memory: memory.cast(), given_back: vec![false; PAGES as usize] }
    }

    fn guest(&self) -> GuestMemory {
        // In two parts, the second one first.
        let (address, half) = (self.memory as u64, MIB as u64 / 2);
        let part = |number| Region {
            address: address + number * half,
            bytes: half,
            offset: number * half,
        };
        let given_back = (0..PAGES).filter(|page| self.given_back[*page as usize]);
        let given_back = given_back.map(|page| page..page + 1).collect();
        GuestMemory::served(std::process::id() as i32, &[part(1), part(0)], given_back).unwrap()
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        // SAFETY: the page is one of the mapping, which lives as long as `self`.
        unsafe {
            std::slice::from_raw_parts_mut(self.memory.add(page as usize * PAGE_SIZE), PAGE_SIZE)
        }
    }

    /// Does what the pager does when a page is touched.
    fn touch(&mut self, page: u64, lineage: &Lineage) {
        if self.is_absent(page) {
            let mut bytes = [0; PAGE_SIZE];
            if !self.given_back[page as usize] {
                lineage.read(&[page..page + 1], &mut bytes).unwrap();
            }
            self.page(page).copy_from_slice(&bytes);
        }
    }

    fn write(&mut self, page: u64, byte: u8, lineage: &Lineage) {
        self.touch(page, lineage);
        self.page(page).fill(byte);
    }

    fn give_back(&mut self, page: u64) {
        let start = self.page(page).as_mut_ptr();
        // SAFETY: the page is one of the mapping, of which no reference is held.
        assert_eq!(unsafe { libc::madvise(start.cast(), PAGE_SIZE, libc::MADV_DONTNEED) }, 0);
        self.given_back[page as usize] = true;
    }

    fn is_absent(&self, page: u64) -> bool {
        !self.guest().changed().unwrap().iter().any(|run| run.contains(&page))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and no reference to it outlives `self`.
        unsafe { libc::munmap(self.memory.cast(), MIB) };
    }
}

type Take =
    fn(&GuestMemory, &Lineage, &Path, BuildId, Origin, Durability) -> Result<Captured, MemoryError>;

fn take_served(snapshots: &Snapshots, vm: &Served, parent: &Lineage, take: Take) -> Captured {
    let dir = snapshots.dir();
    let build = BuildId::random();
    take(&vm.guest(), parent, &dir, build, origin(), Durability::Cached).unwrap()
}

#[test]
fn pages_that_were_only_read_through_a_pager_are_not_written() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1), (2, 2), (3, 3)]);
    let mut vm = Served::new();
    (0..100).for_each(|page| vm.touch(page, &base));
    vm.write(2, 9, &base);
    vm.write(3, 0, &base);
    vm.give_back(1);
    let captured = take_served(&snapshots, &vm, &base, capture);
    assert_eq!((captured.pages_changed, captured.bytes_written), (3, PAGE_SIZE as u64));
    let content = content(&captured.lineage);
    let bytes: Vec<u8> = (0..5).map(|page| content[page * PAGE_SIZE]).collect();
    assert_eq!(bytes, [0, 0, 9, 0, 0]);
}

#[test]
fn pages_that_were_never_touched_stay_the_parents() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1), (2, 2)]);
    let mut first = Served::new();
    first.write(2, 7, &base);
    first.write(9, 8, &base);
    let parent = take_served(&snapshots, &first, &base, capture).lineage;
    let captured = take_served(&snapshots, &Served::new(), &parent, capture);
    assert_eq!((captured.pages_changed, captured.lineage.diffs()), (0, 1));
    assert!(content(&captured.lineage) == content(&parent));
}

#[test]
fn a_long_chain_is_folded_into_one_diff() {
    let snapshots = Snapshots::new();
    let (_, mut lineage) = snapshots.sealed(&[(1, 1)]);
    for page in 0..30 {
        let mut vm = Served::new();
        vm.write(2 * page, 1 + page as u8, &lineage);
        lineage = take_served(&snapshots, &vm, &lineage, capture).lineage;
    }
    assert_eq!(lineage.diffs(), 30);
    let mut vm = Served::new();
    (0..10).for_each(|page| vm.touch(page, &lineage));
    vm.write(3, 99, &lineage);
    let mut expected = content(&lineage);
    expected[3 * PAGE_SIZE..4 * PAGE_SIZE].fill(99);
    let merged = take_served(&snapshots, &vm, &lineage, capture_merged);
    assert_eq!((merged.lineage.diffs(), merged.pages_changed), (1, 1));
    assert_eq!(merged.bytes_written, 31 * PAGE_SIZE as u64);
    assert!(content(&merged.lineage) == expected);
}

#[test]
fn a_mapped_memory_can_be_folded_too() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(3, 9)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(10, 1);
    let (_, first) = snapshots.capture(&vm, &base);
    vm.fill(11, 2);
    vm.give_back(10);
    let dir = snapshots.dir();
    let build = BuildId::random();
    let merged =
        capture_merged(&vm.guest, &first.lineage, &dir, build, origin(), Durability::Cached);
    let merged = merged.unwrap();
    assert_eq!((merged.lineage.diffs(), merged.bytes_written), (1, PAGE_SIZE as u64));
    assert!(content(&merged.lineage) == vm.content());
}

#[test]
fn memory_that_is_not_where_a_pager_says_is_refused() {
    let vm = Served::new();
    let region = Region { address: vm.memory as u64, bytes: MIB as u64, offset: 0 };
    let served = |region| GuestMemory::served(std::process::id() as i32, &[region], vec![]);
    assert!(served(region).is_ok());
    let elsewhere = served(Region { address: 4096, ..region });
    assert!(matches!(elsewhere, Err(MemoryError::NotServed { address: 4096, .. })));
    let uneven = served(Region { offset: 1, ..region });
    assert!(matches!(uneven, Err(MemoryError::Regions { .. })));
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[]);
    let half = served(Region { bytes: MIB as u64 / 2, ..region }).unwrap();
    let build = BuildId::random();
    let short = capture(&half, &base, &snapshots.dir(), build, origin(), Durability::Cached);
    assert!(matches!(short, Err(MemoryError::OtherBase { .. })));
    assert!(inject(&base, &served(region).unwrap()).is_err(), "it would wait for the pager");
}

#[test]
fn a_memory_opens_from_its_files_alone() {
    let snapshots = Snapshots::new();
    let (dir, base) = snapshots.sealed(&[(1, 1), (200, 2)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 2);
    vm.fill(200, 0);
    let (_, captured) = snapshots.capture(&vm, &base);
    let files = |lineage: &Lineage| -> Vec<File> {
        lineage.files().iter().map(|file| file.try_clone().unwrap()).collect()
    };
    let header = captured.lineage.header().unwrap();
    let again = Lineage::from_files(header.as_deref(), files(&captured.lineage)).unwrap();
    assert!(content(&again) == vm.content());
    assert_eq!(again.data(0..PAGES).unwrap(), [1..3]);
    let short = Lineage::from_files(header.as_deref(), files(&base));
    assert!(matches!(short, Err(MemoryError::Incomplete { .. })), "{short:?}");

    let bare = Lineage::from_files(None, files(&base)).unwrap();
    assert!(content(&bare) == content(&base));
    assert_eq!(
        (bare.header().unwrap(), bare.data(0..PAGES).unwrap()),
        (None, vec![1..2, 200..201])
    );

    // What is cut off is not taken for a hole.
    File::options().write(true).open(dir.join("memfile")).unwrap().set_len(4096).unwrap();
    let cut = again.data(100..110);
    assert!(matches!(cut, Err(MemoryError::Length { found: 4096, .. })), "{cut:?}");
    let cut = Lineage::from_files(header.as_deref(), files(&captured.lineage));
    assert!(matches!(cut, Err(MemoryError::Length { found: 4096, .. })), "{cut:?}");
}

/// What happens to a VM whose memory a pager serves.
#[derive(Debug, Clone)]
enum Deed {
    Touch(u64),
    Write(u64, u8),
    GiveBack(u64),
    /// Captures it.
    Capture {
        /// The chain is folded.
        merged: bool,
        /// It builds on the last capture, not on what the pager serves.
        on_last: bool,
    },
    /// Restores it from the last snapshot.
    Restore,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => (0..PAGES).prop_map(Deed::Touch),
        6 => (0..PAGES, 0..4u8).prop_map(|(page, byte)| Deed::Write(page, byte)),
        3 => (0..PAGES).prop_map(Deed::GiveBack),
        2 => any::<(bool, bool)>()
            .prop_map(|(merged, on_last)| Deed::Capture { merged, on_last }),
        2 => Just(Deed::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whichever snapshot a capture builds on: what is read back is what the VM had.
    #[test]
    fn a_served_memory_agrees_with_the_model(
        base in prop::collection::vec((0..PAGES, 0..4u8), 0..100),
        deeds in prop::collection::vec(deed(), 1..120),
    ) {
        let snapshots = Snapshots::new();
        let (_, mut last) = snapshots.sealed(&base);
        let mut model = content(&last);
        // What the VM was restored from, which its pager goes on serving.
        let mut source = snapshots.dir();
        last.link_into(&source, Durability::Cached).unwrap();
        let mut served_from = Lineage::open(&source).unwrap();
        let mut vm = Served::new();
        for deed in deeds {
            let fill = |model: &mut Vec<u8>, page: u64, byte| {
                model[page as usize * PAGE_SIZE..][..PAGE_SIZE].fill(byte);
            };
            match deed {
                Deed::Touch(page) => vm.touch(page, &served_from),
                Deed::Write(page, byte) => {
                    vm.write(page, byte, &served_from);
                    fill(&mut model, page, byte);
                }
                Deed::GiveBack(page) => {
                    vm.give_back(page);
                    fill(&mut model, page, 0);
                }
                Deed::Capture { merged, on_last } => {
                    let take: Take = if merged { capture_merged } else { capture };
                    let parent = if on_last { &last } else { &served_from };
                    let captured = take_served(&snapshots, &vm, parent, take);
                    prop_assert!(!merged || captured.lineage.diffs() <= 1);
                    last = captured.lineage;
                    prop_assert!(content(&last) == model);
                }
                Deed::Restore => {
                    vm = Served::new();
                    source = snapshots.dir();
                    last.link_into(&source, Durability::Cached).unwrap();
                    served_from = Lineage::open(&source).unwrap();
                    model = content(&last);
                }
            }
        }
    }
}
