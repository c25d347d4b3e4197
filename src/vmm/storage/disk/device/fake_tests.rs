//! The rules of devices, on a kernel that fails on order.

use std::fs::File;
use std::time::Duration;

use nix::errno::Errno;

use super::fake::Fake;
use super::files;
use super::kernel::Table;
use super::*;
use crate::vmm::storage::disk::DiskFormat::{Cow, Qcow2, Raw};

pub(super) const SIZE: u64 = 1 << 20;
const PATIENCE: Patience = Patience {
    first: Duration::from_millis(1),
    longest: Duration::from_millis(4),
    total: Duration::from_millis(60),
};

/// A kernel, an image's root disk, and a directory for everything else.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    pub kernel: Fake,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("rootfs")).unwrap().set_len(SIZE).unwrap();
        Self { dir, kernel: Fake::default() }
    }

    /// A daemon; a second one knows nothing of the first.
    pub fn devices(&self) -> Devices {
        Devices::with(Arc::new(self.kernel.clone()), "nestbox-0".to_owned(), PATIENCE)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn layers(&self, cows: &[&str]) -> Vec<(PathBuf, DiskFormat)> {
        let base = (self.path("rootfs"), Raw);
        std::iter::once(base).chain(cows.iter().map(|name| (self.path(name), Cow))).collect()
    }

    pub async fn create(&self, name: &str, cows: &[&str]) -> Result<Device, DeviceError> {
        let overlay = self.path(&format!("{name}.cow"));
        self.devices().create(name, &self.layers(cows), &overlay, SIZE).await
    }

    /// A file that a VM has written and let go of.
    pub async fn cow(&self, name: &str, below: &[&str]) {
        let device = self.create("maker", below).await.unwrap();
        std::fs::hard_link(device.overlay(), self.path(name)).unwrap();
        device.remove(None).await.unwrap();
    }

    pub fn is_empty(&self) -> bool {
        self.kernel.devices().is_empty() && self.kernel.loops() == 0
    }
}

#[tokio::test]
async fn a_device_is_made_and_taken_away_with_its_file() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    assert_eq!(bench.kernel.devices(), ["nestbox-0-a"]);
    assert_eq!(bench.kernel.loops(), 2);
    assert_eq!(bench.devices().list().unwrap(), ["a"]);
    assert!(device.bytes_in_use().unwrap() <= 8192);
    device.remove(None).await.unwrap();
    assert!(bench.is_empty());
    assert!(!bench.path("a.cow").exists());
}

#[tokio::test]
async fn siblings_share_layers_until_the_last_one_goes() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    bench.cow("more", &["warm"]).await;
    let first = bench.create("a", &["warm", "more"]).await.unwrap();
    assert_eq!((bench.kernel.devices().len(), bench.kernel.loops()), (3, 4));
    let second = bench.create("b", &["warm", "more"]).await.unwrap();
    let third = bench.create("c", &["warm"]).await.unwrap();
    // Only their own devices and files were added.
    assert_eq!((bench.kernel.devices().len(), bench.kernel.loops()), (5, 6));
    first.remove(None).await.unwrap();
    second.remove(None).await.unwrap();
    assert_eq!(bench.kernel.devices().len(), 2, "what the third lies on is there");
    third.remove(None).await.unwrap();
    assert!(bench.is_empty());
}

#[tokio::test]
async fn a_file_that_a_vm_writes_to_is_nobodys_layer() {
    let bench = Bench::new();
    let writer = bench.create("a", &[]).await.unwrap();
    let error = bench.create("b", &["a.cow"]).await.unwrap_err();
    assert!(matches!(error, DeviceError::InUse { .. }), "{error}");
    assert_eq!(bench.kernel.devices(), ["nestbox-0-a"]);
    assert!(!bench.path("b.cow").exists());

    std::fs::hard_link(bench.path("a.cow"), bench.path("kept")).unwrap();
    writer.remove(None).await.unwrap();
    let reader = bench.create("b", &["kept"]).await.unwrap();
    assert!(!files::is_locked(&bench.path("kept")).unwrap(), "others may read it too");
    let lock = File::open(bench.path("kept")).unwrap().try_lock();
    assert!(lock.is_err(), "but nobody may have it alone");
    reader.remove(None).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_there_is_never_overwritten() {
    let bench = Bench::new();
    std::fs::write(bench.path("a.cow"), "precious").unwrap();
    let error = bench.create("a", &[]).await.unwrap_err();
    assert!(matches!(error, DeviceError::File { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(bench.path("a.cow")).unwrap(), "precious");
    assert!(bench.is_empty());
}

#[tokio::test]
async fn only_one_raw_disk_with_cows_on_it_is_a_disk() {
    let bench = Bench::new();
    bench.cow("x", &[]).await;
    let (raw, cow) = ((bench.path("rootfs"), Raw), (bench.path("x"), Cow));
    let qcow2 = (bench.path("x"), Qcow2);
    let wrong =
        [vec![], vec![cow.clone()], vec![raw.clone(), raw.clone()], vec![raw.clone(), qcow2]];
    for layers in wrong {
        let made = bench.devices().create("a", &layers, &bench.path("a.cow"), SIZE).await;
        assert!(matches!(made, Err(DeviceError::Layers { .. })), "{layers:?}");
    }
    for size in [SIZE + 512, 1000] {
        let made = bench
            .devices()
            .create("a", std::slice::from_ref(&raw), &bench.path("a.cow"), size)
            .await;
        assert!(matches!(made, Err(DeviceError::Layers { .. })), "{size}");
    }
    std::fs::write(bench.path("bad"), [0; 8192]).unwrap();
    let error = bench.create("a", &["bad"]).await.unwrap_err();
    assert!(matches!(error, DeviceError::Layer(_)), "{error}");
    assert!(bench.is_empty() && !bench.path("a.cow").exists());
}

#[tokio::test]
async fn whatever_fails_a_create_leaves_nothing() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    for step in ["attach", "create nestbox-0+", "load nestbox-0+", "resume nestbox-0+"]
        .into_iter()
        .chain(["create nestbox-0-", "load nestbox-0-", "resume nestbox-0-"])
    {
        bench.kernel.fail(step, Errno::EIO);
        bench.create("a", &["warm"]).await.unwrap_err();
        assert!(bench.is_empty(), "{step}: {:?}", bench.kernel.devices());
        assert!(!bench.path("a.cow").exists(), "{step}");
    }
}

#[tokio::test]
async fn a_switch_keeps_the_number_and_lets_the_former_file_go() {
    let bench = Bench::new();
    let mut device = bench.create("a", &[]).await.unwrap();
    let number = device.number();
    std::fs::hard_link(bench.path("a.cow"), bench.path("kept")).unwrap();
    device.switch(&bench.layers(&["kept"]), &bench.path("a2.cow")).await.unwrap();
    assert_eq!(device.number(), number);
    assert_eq!(device.overlay(), bench.path("a2.cow"));
    assert!(!files::is_locked(&bench.path("kept")).unwrap());
    assert!(File::open(bench.path("kept")).unwrap().try_lock().is_err(), "it is a layer");
    let child = bench.create("b", &["kept"]).await.unwrap();
    assert_eq!((bench.kernel.devices().len(), bench.kernel.loops()), (3, 4));
    device.remove(None).await.unwrap();
    child.remove(None).await.unwrap();
    assert!(bench.is_empty());
}

#[tokio::test]
async fn a_switch_that_fails_leaves_the_device_as_it_was() {
    let bench = Bench::new();
    let mut device = bench.create("a", &[]).await.unwrap();
    let table = bench.kernel.table("nestbox-0-a").unwrap();
    let new = bench.path("new.cow");
    let layers = bench.layers(&["a.cow"]);
    for step in ["sync", "attach", "suspend", "create nestbox-0+", "load nestbox-0+"]
        .into_iter()
        .chain(["resume nestbox-0+", "load nestbox-0-"])
    {
        bench.kernel.fail(step, Errno::EIO);
        device.switch(&layers, &new).await.unwrap_err();
        assert_eq!(bench.kernel.table("nestbox-0-a").unwrap(), table, "{step}");
        let found = bench.kernel.find("nestbox-0-a").unwrap().unwrap();
        assert_eq!(found.state, kernel::State::Active, "{step}");
        assert_eq!((bench.kernel.devices().len(), bench.kernel.loops()), (1, 2), "{step}");
        assert!(!new.exists(), "{step}");
        assert_eq!(device.overlay(), bench.path("a.cow"));
    }
    device.switch(&layers, &new).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_was_read_before_the_last_write_is_read_again() {
    let bench = Bench::new();
    let mut device = bench.create("a", &[]).await.unwrap();
    let (layers, new) = (bench.layers(&["a.cow"]), bench.path("new.cow"));
    // The switch fails, and so does taking its layer away.
    bench.kernel.fail("load nestbox-0-", Errno::EIO);
    bench.kernel.fail("remove nestbox-0+", Errno::EBUSY);
    device.switch(&layers, &new).await.unwrap_err();
    assert_eq!(bench.kernel.devices().len(), 2);
    let made = bench.kernel.calls("create nestbox-0+").len();
    device.switch(&layers, &new).await.unwrap();
    assert_eq!(bench.kernel.calls("create nestbox-0+").len(), made + 1);
}

#[tokio::test]
async fn a_broken_disk_is_neither_flushed_nor_switched() {
    let bench = Bench::new();
    let mut device = bench.create("a", &[]).await.unwrap();
    device.health().unwrap();
    device.flush().await.unwrap();
    // One that is full has all that it took.
    bench.kernel.say("nestbox-0-a", "Overflow");
    device.flush().await.unwrap();
    for status in ["Invalid", "Merge failed", "Unknown", ""] {
        bench.kernel.say("nestbox-0-a", status);
        let broken = |result| matches!(result, Err(DeviceError::Broken { .. }));
        assert!(broken(device.health()), "{status}");
        assert!(broken(device.flush().await), "{status}");
        let layers = bench.layers(&["a.cow"]);
        assert!(broken(device.switch(&layers, &bench.path("new")).await), "{status}");
    }
}

#[tokio::test]
async fn another_file_than_the_vms_own_is_not_switched_to() {
    let bench = Bench::new();
    bench.cow("other", &[]).await;
    let mut device = bench.create("a", &[]).await.unwrap();
    let error = device.switch(&bench.layers(&["other"]), &bench.path("new")).await.unwrap_err();
    assert!(matches!(error, DeviceError::Layers { .. }), "{error}");
}

#[tokio::test]
async fn a_device_is_adopted_with_the_file_that_it_writes_to() {
    let bench = Bench::new();
    let mut device = bench.create("a", &[]).await.unwrap();
    device.switch(&bench.layers(&["a.cow"]), &bench.path("a2.cow")).await.unwrap();
    let number = device.number();
    drop(device);
    let mut adopted = bench.devices().adopt("a").await.unwrap();
    assert_eq!(adopted.number(), number);
    assert_eq!(adopted.overlay(), bench.path("a2.cow"));
    let layers = bench.layers(&["a.cow", "a2.cow"]);
    adopted.switch(&layers, &bench.path("a3.cow")).await.unwrap();
    adopted.remove(None).await.unwrap();
    assert!(bench.is_empty());
}

#[tokio::test]
async fn a_switch_that_a_daemon_died_over_has_not_happened() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    drop(device);
    let table = bench.kernel.table("nestbox-0-a").unwrap();
    bench.kernel.suspend("nestbox-0-a").unwrap();
    let adopted = bench.devices().adopt("a").await.unwrap();
    assert_eq!(adopted.overlay(), bench.path("a.cow"));
    assert_eq!(bench.kernel.table("nestbox-0-a").unwrap(), table);
    let found = bench.kernel.find("nestbox-0-a").unwrap().unwrap();
    assert_eq!(found.state, kernel::State::Active);
}

#[tokio::test]
async fn what_is_not_whole_is_not_adopted() {
    let bench = Bench::new();
    let not_whole = |result| matches!(result, Err(DeviceError::NotWhole { .. }));
    assert!(not_whole(bench.devices().adopt("a").await), "nothing");
    bench.kernel.put("nestbox-0-a", None);
    assert!(not_whole(bench.devices().adopt("a").await), "no table");
    let device = bench.create("a", &[]).await.unwrap();
    std::fs::rename(bench.path("a.cow"), bench.path("moved")).unwrap();
    let adopted = bench.devices().adopt("a").await.unwrap();
    assert_eq!(adopted.overlay(), bench.path("moved"));
    std::fs::remove_file(bench.path("moved")).unwrap();
    bench.devices().adopt("a").await.unwrap_err();
    device.remove(None).await.unwrap();
}

#[tokio::test]
async fn a_half_made_layer_is_made_again() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    let device = bench.create("a", &["warm"]).await.unwrap();
    let layer = bench.kernel.devices().into_iter().find(|name| name.contains('+')).unwrap();
    device.remove(None).await.unwrap();
    bench.kernel.put(&layer, None);
    bench.create("a", &["warm"]).await.unwrap();
    let table: Option<Table> = bench.kernel.table(&layer).unwrap();
    assert!(table.is_some());
}

#[tokio::test]
async fn a_file_whose_writer_is_about_to_let_go_is_waited_for() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    let writer = File::open(bench.path("warm")).unwrap();
    writer.try_lock().unwrap();
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(writer);
    });
    bench.create("a", &["warm"]).await.unwrap();
    closing.join().unwrap();
}
