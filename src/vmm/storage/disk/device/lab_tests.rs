//! The same on a real kernel. Without device-mapper these tests are skipped.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::kernel::Access;
use super::*;
use crate::skip::{belongs_elsewhere, skip};
use crate::vmm::storage::disk::DiskFormat::{Cow, Raw};
use crate::vmm::storage::disk::cow::flatten;

pub(super) const MIB: usize = 1 << 20;
pub(super) const SIZE: usize = 64 * MIB;

/// Whether this kernel has the device mapper, loaded or not.
fn kernel_could() -> bool {
    let devices = std::fs::read_to_string("/proc/misc").unwrap();
    let module = || {
        let asked = Command::new("modprobe").args(["--dry-run", "--quiet", "dm-snapshot"]).status();
        asked.is_ok_and(|status| status.success())
    };
    devices.contains("device-mapper") || module()
}

pub(super) struct Lab {
    dir: tempfile::TempDir,
    pub devices: Devices,
}

impl Lab {
    /// A daemon of its own, with an image's root disk.
    pub fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let devices = match Devices::open(dir.path()) {
            Ok(devices) => devices,
            Err(error) => {
                let inside = std::env::var_os("NESTBOX_IN_LAB").is_some();
                assert!(!inside, "{}", crate::chain(&error));
                let reason = crate::chain(&error);
                match kernel_could() {
                    true => skip(&format!("{reason}: `modprobe dm-snapshot`, as root")),
                    false => {
                        belongs_elsewhere(&format!("{reason}: the lab's kernel is made for it"))
                    }
                }
                return None;
            }
        };
        // By the sector: by the byte it takes a minute where all is emulated.
        let mut base = vec![0; SIZE];
        for (at, sector) in base.chunks_mut(512).enumerate() {
            sector.fill((at % 251) as u8);
        }
        std::fs::write(dir.path().join("rootfs"), base).unwrap();
        Some(Self { dir, devices })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn layers(&self, cows: &[&str]) -> Vec<(PathBuf, DiskFormat)> {
        let base = (self.path("rootfs"), Raw);
        std::iter::once(base).chain(cows.iter().map(|name| (self.path(name), Cow))).collect()
    }

    async fn create(&self, name: &str, cows: &[&str]) -> Device {
        let overlay = self.path(&format!("{name}.cow"));
        self.devices.create(name, &self.layers(cows), &overlay, SIZE as u64).await.unwrap()
    }

    /// What is left in the kernel of this daemon's.
    pub fn remains(&self) -> Vec<String> {
        let stack = &self.devices.stack;
        let prefix = stack.top("");
        let prefix = prefix.trim_end_matches('-');
        let all = stack.kernel.list().unwrap().into_iter().map(|(name, _)| name);
        let mut remains: Vec<String> = all.filter(|name| name.starts_with(prefix)).collect();
        for number in loops::bound().unwrap() {
            if stack.kernel.backing(number).is_ok_and(|backing| backing.tag == prefix) {
                remains.push(format!("loop {number}"));
            }
        }
        remains
    }
}

pub(super) fn open(device: &Device) -> File {
    node::open(device.number(), &mapper::node_path(device.number()), Access::Write).unwrap()
}

/// Everything that a device shows, past what the page cache of an earlier reader may have.
pub(super) fn content(device: &Device) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    open(device).read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn write(device: &Device, model: &mut [u8], at: usize, bytes: usize, fill: u8) {
    let file = open(device);
    file.write_all_at(&vec![fill; bytes], at as u64).unwrap();
    model[at..at + bytes].fill(fill);
}

fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(std::fs::read(path).unwrap()).to_vec()
}

#[tokio::test]
async fn dm_what_is_written_is_read_and_the_base_stays() {
    let Some(lab) = Lab::new() else { return };
    let before = digest(&lab.path("rootfs"));
    let mut model = std::fs::read(lab.path("rootfs")).unwrap();
    let device = lab.create("a", &[]).await;
    assert!(content(&device) == model, "the base shows through");
    write(&device, &mut model, 5 * MIB + 512, 8 * MIB, 0xaa);
    write(&device, &mut model, SIZE - 512, 512, 0xbb);
    device.flush().await.unwrap();
    assert!(content(&device) == model);
    assert_eq!(digest(&lab.path("rootfs")), before);
    let used = device.bytes_in_use().unwrap();
    assert!((8 * MIB as u64..12 * MIB as u64).contains(&used), "{used}");
    // The file alone has it.
    std::fs::hard_link(device.overlay(), lab.path("kept")).unwrap();
    device.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
    let again = lab.create("b", &["kept"]).await;
    assert!(content(&again) == model);
    again.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_every_chunk_of_a_disk_can_be_written() {
    let Some(lab) = Lab::new() else { return };
    let mut model = vec![0; SIZE];
    let device = lab.create("a", &[]).await;
    write(&device, &mut model, 0, SIZE, 0x5a);
    device.flush().await.unwrap();
    device.health().unwrap();
    assert!(content(&device) == model);
    device.remove(None).await.unwrap();
}

#[tokio::test]
async fn dm_a_layer_is_read_only_and_never_changes() {
    let Some(lab) = Lab::new() else { return };
    let mut model = std::fs::read(lab.path("rootfs")).unwrap();
    let device = lab.create("a", &[]).await;
    write(&device, &mut model, 0, 3 * MIB, 1);
    device.flush().await.unwrap();
    std::fs::hard_link(device.overlay(), lab.path("kept")).unwrap();
    device.remove(None).await.unwrap();
    let before = digest(&lab.path("kept"));

    let child = lab.create("b", &["kept"]).await;
    let kernel = &lab.devices.stack.kernel;
    let layer = kernel.list().unwrap().into_iter().find(|(name, _)| name.contains('+'));
    let (_, number) = layer.unwrap();
    let file = node::open(number, &mapper::node_path(number), Access::Write);
    let written = file.and_then(|file| {
        file.write_all_at(&[9; 4096], 0)?;
        file.sync_all()
    });
    assert!(written.is_err(), "the layer itself takes no write");
    write(&child, &mut model, MIB, 4 * MIB, 2);
    child.flush().await.unwrap();
    assert!(content(&child) == model);
    child.remove(None).await.unwrap();
    assert_eq!(digest(&lab.path("kept")), before);
}

#[tokio::test]
async fn dm_siblings_share_layers_and_differ() {
    let Some(lab) = Lab::new() else { return };
    let mut model = std::fs::read(lab.path("rootfs")).unwrap();
    let maker = lab.create("maker", &[]).await;
    write(&maker, &mut model, 0, 2 * MIB, 1);
    maker.flush().await.unwrap();
    std::fs::hard_link(maker.overlay(), lab.path("kept")).unwrap();
    maker.remove(None).await.unwrap();

    let (mut one, mut two) = (model.clone(), model);
    let first = lab.create("a", &["kept"]).await;
    let second = lab.create("b", &["kept"]).await;
    assert_eq!(lab.remains().len(), 3 + 4, "{:?}", lab.remains());
    write(&first, &mut one, MIB, 2 * MIB, 0x11);
    write(&second, &mut two, MIB, 2 * MIB, 0x22);
    first.flush().await.unwrap();
    second.flush().await.unwrap();
    assert!(content(&first) == one && content(&second) == two);
    first.remove(None).await.unwrap();
    assert!(content(&second) == two);
    second.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_switch_under_load_keeps_every_byte() {
    let Some(lab) = Lab::new() else { return };
    let model = std::fs::read(lab.path("rootfs")).unwrap();
    let mut device = lab.create("a", &[]).await;
    let number = device.number();
    let file = open(&device);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // Writes on without a break, as no frozen VM would.
    let writer = std::thread::spawn(move || {
        let mut model = model;
        for round in 0_usize.. {
            let at = (round * 7919 % (SIZE / 4096 - 64)) * 4096 + 512;
            let bytes = 512 + round % 32 * 4096;
            file.write_all_at(&vec![round as u8; bytes], at as u64).unwrap();
            model[at..at + bytes].fill(round as u8);
            if round % 50 == 0 {
                file.sync_data().unwrap();
            }
            if stopped.is_cancelled() {
                return (file, model, round);
            }
        }
        unreachable!("it ends when it is stopped");
    });
    let mut cows = vec!["a.cow".to_owned()];
    let mut times = Vec::new();
    for index in 1..=5 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let names: Vec<&str> = cows.iter().map(String::as_str).collect();
        let next = format!("a{index}.cow");
        let begun = Instant::now();
        device.switch(&lab.layers(&names), &lab.path(&next)).await.unwrap();
        times.push(begun.elapsed());
        cows.push(next);
    }
    stop.cancel();
    let (file, model, rounds) = writer.join().unwrap();
    eprintln!("5 switches under {rounds} writes: {times:?}");
    drop(file);
    device.flush().await.unwrap();
    assert_eq!(device.number(), number);
    assert!(content(&device) == model);

    // The files that are left make the same disk, one by one and as one.
    std::fs::hard_link(device.overlay(), lab.path("top")).unwrap();
    device.remove(None).await.unwrap();
    *cows.last_mut().unwrap() = "top".to_owned();
    let names: Vec<&str> = cows.iter().map(String::as_str).collect();
    let stack = lab.create("b", &names).await;
    assert!(content(&stack) == model);
    stack.remove(None).await.unwrap();
    let paths: Vec<PathBuf> = names.iter().map(|name| lab.path(name)).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    flatten(&paths, &lab.path("flat"), &|| false).unwrap();
    let flat = lab.create("c", &["flat"]).await;
    assert!(content(&flat) == model);
    flat.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_device_is_adopted_after_the_daemon_is_gone() {
    let Some(lab) = Lab::new() else { return };
    let mut model = std::fs::read(lab.path("rootfs")).unwrap();
    let device = lab.create("a", &[]).await;
    let (number, file) = (device.number(), open(&device));
    file.write_all_at(&[3; 4096], 0).unwrap();
    model[..4096].fill(3);
    drop(device);
    let devices = Devices::open(lab.dir.path()).unwrap();
    assert_eq!(devices.list().unwrap(), ["a"]);
    let mut adopted = devices.adopt("a").await.unwrap();
    assert_eq!(adopted.number(), number);
    assert_eq!(adopted.overlay(), lab.path("a.cow"));
    assert!(File::open(lab.path("a.cow")).unwrap().try_lock_shared().is_err(), "still locked");
    adopted.switch(&lab.layers(&["a.cow"]), &lab.path("a2.cow")).await.unwrap();
    assert!(content(&adopted) == model);

    // Once more, and this time the daemon has died in the middle of a switch.
    drop(adopted);
    lab.devices.stack.kernel.suspend(&lab.devices.stack.top("a")).unwrap();
    let adopted = Devices::open(lab.dir.path()).unwrap().adopt("a").await.unwrap();
    assert_eq!(adopted.overlay(), lab.path("a2.cow"));
    assert!(content(&adopted) == model);
    drop(file);
    adopted.remove(None).await.unwrap();
    devices.discard("a").await.unwrap();
    devices.discard("never there").await.unwrap();
    assert!(matches!(devices.adopt("a").await, Err(DeviceError::NotWhole { .. })));
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_hundred_devices_leave_nothing() {
    let Some(lab) = Lab::new() else { return };
    let maker = lab.create("maker", &[]).await;
    std::fs::hard_link(maker.overlay(), lab.path("kept")).unwrap();
    maker.remove(None).await.unwrap();
    let (mut making, mut removing) = (Duration::ZERO, Duration::ZERO);
    for round in 0..100 {
        let begun = Instant::now();
        let device = lab.create("a", &["kept"]).await;
        making += begun.elapsed();
        if round % 10 == 0 {
            open(&device).write_all_at(&[1; 4096], 0).unwrap();
        }
        let begun = Instant::now();
        device.remove(None).await.unwrap();
        removing += begun.elapsed();
    }
    eprintln!("made in {:?}, removed in {:?} on average", making / 100, removing / 100);
    let keeper = lab.create("keeper", &["kept"]).await;
    let begun = Instant::now();
    let device = lab.create("a", &["kept"]).await;
    eprintln!("made on layers that are there in {:?}", begun.elapsed());
    device.remove(None).await.unwrap();
    keeper.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dm_siblings_may_come_and_go_at_once() {
    let Some(lab) = Lab::new() else { return };
    let maker = lab.create("maker", &[]).await;
    std::fs::hard_link(maker.overlay(), lab.path("kept")).unwrap();
    maker.remove(None).await.unwrap();
    let lives = (0..6).map(|index| {
        let (devices, layers) = (lab.devices.clone(), lab.layers(&["kept"]));
        let name = format!("s{index}");
        let overlay = lab.path(&name);
        tokio::spawn(async move {
            for _ in 0..8 {
                let device = devices.create(&name, &layers, &overlay, SIZE as u64).await.unwrap();
                let file = open(&device);
                file.write_all_at(&[index as u8; 8192], 4096 * index as u64).unwrap();
                device.flush().await.unwrap();
                drop(file);
                device.remove(None).await.unwrap();
            }
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.unwrap();
    }
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_stale_device_gives_way_and_one_in_use_does_not() {
    let Some(mut lab) = Lab::new() else { return };
    drop(lab.create("a", &[]).await);
    std::fs::remove_file(lab.path("a.cow")).unwrap();
    let device = lab.create("a", &[]).await;
    let vm = open(&device);
    lab.devices.patience.total = Duration::from_millis(300);
    let remains = lab.remains();
    let again = lab.path("again.cow");
    let error = lab.devices.create("a", &lab.layers(&[]), &again, SIZE as u64).await.unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    assert!(!again.exists());
    let busy = Device { devices: lab.devices.clone(), ..device };
    let error = busy.remove(None).await.unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    assert_eq!(lab.remains(), remains, "loop devices stay with it");
    vm.write_all_at(&[1; 4096], 0).unwrap();
    vm.sync_all().unwrap();

    // Waited for, and gone once it is closed.
    lab.devices.patience.total = Duration::from_secs(5);
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(250));
        drop(vm);
    });
    let begun = Instant::now();
    lab.devices.adopt("a").await.unwrap().remove(None).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    closing.join().unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_host_that_is_full_at_once_breaks_the_disk_and_it_says_so() {
    let Some(lab) = Lab::new() else { return };
    // A file system with no room for what the VM writes.
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    let options = "size=4m";
    use nix::mount::{MsFlags, mount, umount};
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
    let overlay = small.join("a.cow");
    let device = lab.devices.create("a", &lab.layers(&[]), &overlay, SIZE as u64).await.unwrap();
    let file = open(&device);
    let _ = file.write_all_at(&vec![7; 16 * MIB], 0);
    let _ = file.sync_all();
    drop(file);
    let error = device.health().unwrap_err();
    assert!(matches!(error, DeviceError::Broken { .. }), "{error}");
    eprintln!("{error}");
    device.flush().await.unwrap_err();
    std::fs::copy(&overlay, lab.path("kept")).unwrap();
    device.remove(None).await.unwrap();
    umount(&small).unwrap();
    let layers = lab.layers(&["kept"]);
    let made = lab.devices.create("b", &layers, &lab.path("b.cow"), SIZE as u64).await;
    eprintln!("{}", crate::chain(&made.unwrap_err()));
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_killed_user_is_waited_for() {
    let Some(lab) = Lab::new() else { return };
    let mut waits = Vec::new();
    for round in 0..10 {
        let device = lab.create("a", &[]).await;
        let top = device.top();
        let dev = device.number();
        let (major, minor) = (nix::libc::major(dev), nix::libc::minor(dev));
        let node = lab.path("node");
        let script = format!(
            "mknod {0} b {major} {minor}; exec dd if=/dev/zero of={0} bs=64k status=none",
            node.display()
        );
        let mut user = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        user.kill().unwrap();
        if round % 2 == 0 {
            user.wait().unwrap();
        }
        let begun = Instant::now();
        // What one attempt would have come to.
        let first = lab.devices.stack.remove_now(&top).map_err(|error| error.raw_os_error());
        device.remove(None).await.unwrap();
        waits.push((first, begun.elapsed()));
        let _ = user.wait();
        std::fs::remove_file(node).unwrap();
    }
    eprintln!("removed after a kill, waited for and not by turns: {waits:#?}");
    assert_eq!(lab.remains(), Vec::<String>::new());
}
