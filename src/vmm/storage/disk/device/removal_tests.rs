//! How devices are taken away, on a kernel that fails on order.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::fake_tests::{Bench, SIZE};
use super::kernel::{Kernel, Table};
use super::*;

#[tokio::test]
async fn a_stale_device_is_taken_away_first() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    drop(bench.create("a", &["warm"]).await.unwrap());
    std::fs::remove_file(bench.path("a.cow")).unwrap();
    let device = bench.create("a", &[]).await.unwrap();
    assert_eq!(bench.kernel.devices(), ["nestbox-0-a"]);
    drop(device);
    bench.kernel.put("nestbox-0-b", None);
    bench.create("b", &[]).await.unwrap();
}

#[tokio::test]
async fn a_busy_device_is_waited_for() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    bench.kernel.fail("remove nestbox-0-a", Errno::EBUSY);
    bench.kernel.fail("remove nestbox-0-a", Errno::EBUSY);
    device.remove(None).await.unwrap();
    // One for the stale one that was not there.
    assert_eq!(bench.kernel.calls("remove nestbox-0-a").len(), 4);
    assert!(bench.is_empty());
}

#[tokio::test]
async fn a_device_that_stays_busy_keeps_all_it_lies_on() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    let device = bench.create("a", &["warm"]).await.unwrap();
    let before = bench.kernel.loops();
    for _ in 0..100 {
        bench.kernel.fail("remove nestbox-0-a", Errno::EBUSY);
    }
    let error = device.remove(None).await.unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    assert!(error.to_string().contains("it stays with all its layers"), "{error}");
    assert_eq!((bench.kernel.devices().len(), bench.kernel.loops()), (2, before));
    assert!(bench.path("a.cow").exists());
}

#[tokio::test]
async fn another_error_is_told_at_once() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    bench.kernel.fail("remove nestbox-0-a", Errno::EIO);
    let calls = bench.kernel.calls("remove").len();
    let error = device.remove(None).await.unwrap_err();
    assert!(matches!(error, DeviceError::Kernel { verb: "remove", .. }), "{error}");
    assert_eq!(bench.kernel.calls("remove").len(), calls + 1);
    assert!(bench.path("a.cow").exists());
    bench.devices().discard("a").await.unwrap();
    bench.devices().discard("a").await.unwrap();
    assert!(bench.is_empty());
    assert!(bench.path("a.cow").exists(), "files are not discarded");
}

#[tokio::test]
async fn waiting_ends_when_it_is_cancelled_but_an_attempt_is_made() {
    let bench = Bench::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let device = bench.create("a", &[]).await.unwrap();
    device.remove(Some(&cancel)).await.unwrap();

    let mut device = bench.create("a", &[]).await.unwrap();
    device.devices.patience.total = Duration::from_secs(60);
    for _ in 0..10_000 {
        bench.kernel.fail("remove nestbox-0-a", Errno::EBUSY);
    }
    let cancel = CancellationToken::new();
    let (begun, soon) = (Instant::now(), cancel.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        soon.cancel();
    });
    let error = device.remove(Some(&cancel)).await.unwrap_err();
    assert!(matches!(error, DeviceError::Cancelled { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn what_a_daemon_died_over_is_listed_discarded_and_swept() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    bench.cow("more", &["warm"]).await;
    let used = bench.create("used", &["warm"]).await.unwrap();
    bench.kernel.put("nestbox-0-half", None);
    bench.kernel.put("nestbox-0+half", None);
    bench.kernel.put("nestbox-1-another", None);
    let gone = bench.create("gone", &["warm", "more"]).await.unwrap();
    bench.kernel.remove("nestbox-0-gone").unwrap();
    drop(gone);
    assert_eq!(bench.devices().list().unwrap(), ["half", "used"]);
    bench.devices().sweep().unwrap();
    bench.devices().discard("half").await.unwrap();
    assert_eq!(bench.kernel.devices().len(), 3, "{:?}", bench.kernel.devices());
    used.remove(None).await.unwrap();
    assert_eq!(bench.kernel.devices(), ["nestbox-1-another"]);
}

#[tokio::test]
async fn a_strangers_device_on_a_vms_disk_keeps_it() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    let table = Table { origin: device.number(), cow: 0, sectors: 8 };
    bench.kernel.put("stranger", Some(table));
    let error = device.remove(None).await.unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    assert!(bench.path("a.cow").exists());
}

#[tokio::test]
async fn a_layer_that_does_not_go_is_told_but_the_vms_own_file_goes() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    let device = bench.create("a", &["warm"]).await.unwrap();
    bench.kernel.fail("remove nestbox-0+", Errno::EIO);
    let error = device.remove(None).await.unwrap_err();
    assert!(matches!(error, DeviceError::Kernel { verb: "remove", .. }), "{error}");
    assert!(!bench.path("a.cow").exists());
    assert_eq!(bench.kernel.devices().len(), 1);
    // Opened for a moment, as udev does with every new device, it is waited for.
    let device = bench.create("a", &["warm"]).await.unwrap();
    bench.kernel.fail("remove nestbox-0+", Errno::EBUSY);
    device.remove(None).await.unwrap();
    assert!(bench.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn siblings_may_come_and_go_at_once() {
    let bench = Bench::new();
    bench.cow("warm", &[]).await;
    let devices = bench.devices();
    let layers = bench.layers(&["warm"]);
    let lives = (0..8).map(|index| {
        let (devices, layers) = (devices.clone(), layers.clone());
        let name = format!("s{index}");
        let overlay = bench.path(&name);
        tokio::spawn(async move {
            for _ in 0..20 {
                let device = devices.create(&name, &layers, &overlay, SIZE).await.unwrap();
                device.remove(None).await.unwrap();
            }
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.unwrap();
    }
    assert!(bench.is_empty(), "{:?}", bench.kernel.devices());
}
