//! Snapshots that must not be restored: another version of the hypervisor made them, or they are not
//! what was written. They are refused with a clear word, and stay as they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{
    Daemon, Engine, Lab, Options, Sandbox, Witness, hypervisor_script, in_a_lab, path_with, run,
};

/// Has a daemon find a hypervisor that says that it is another version when it is started the next time.
fn install_other_version(daemon: &mut Daemon) {
    let engine = Engine::present();
    let said = engine.says(engine.other_version());
    hypervisor_script(&format!(
        "[ \"$1\" = --version ] && echo '{said}' && exit\nexec \"$HYPERVISOR\" \"$@\""
    ));
    daemon.set_path(Some(path_with()));
}

/// Images of the test's own with all warm snapshots: a version that takes others' away as outdated
/// does that here only.
fn own_images(lab: &Lab) -> PathBuf {
    let images = lab.path("images");
    let copied = Command::new("cp").arg("-al").arg(lab.images()).arg(&images).status();
    assert!(copied.expect("cp runs").success());
    images
}

/// Names, lengths and times of all files below a directory.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let data = entry.metadata().expect("a file");
        match data.is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => {
                found.insert(entry.path(), (data.len(), data.modified().expect("a time")));
            }
        }
    }
    found
}

/// The warm snapshots of an image.
fn warm(images: &Path) -> Vec<String> {
    let entries = fs::read_dir(images.join("debian/warm")).expect("warm snapshots").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("1x256-")).collect()
}

async fn restart(daemon: &mut Daemon) {
    daemon.stop().await;
    daemon.start_again().await;
}

#[test]
fn what_another_version_has_made_is_refused_and_kept() {
    in_a_lab(2, async |lab| {
        let images = own_images(lab);
        let options = Options { images: Some(images.clone()), slot_pool: 0, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let idle = daemon.census();
        let (paused, running) = tokio::join!(daemon.create(), daemon.create());
        let mut seen = Witness::start(&paused).await;
        paused.snapshot("kept").await;
        paused.pause().await;
        let mut other_seen = Witness::start(&running).await;
        let (snapshot, known) = (paused.snapshot_dir(), warm(&images));
        let named = lab.data_dir().join("snapshots/named");
        let files = (files_below(&snapshot), files_below(&named));

        install_other_version(&mut daemon);
        restart(&mut daemon).await;
        let (paused, running) = (paused.through(daemon.api()), running.through(daemon.api()));
        // Its VM is still one of the version that it was started with.
        other_seen.goes_on(&running).await;
        running.pause().await;
        for sandbox in [&paused, &running] {
            refuses_to_resume(sandbox).await;
        }
        let refused = daemon.try_create(json!({ "template": "kept" })).await;
        names_both(refused.is_error(409, "invalid_state").message());
        assert_eq!(daemon.snapshot_names().await, ["kept"]);
        assert_eq!(daemon.ids().await.len(), 2, "no trace of what was refused");
        assert_eq!((files_below(&snapshot), files_below(&named)), files);

        // From an image all can be made anew.
        let new = daemon.create().await;
        assert_eq!(new.sh("echo on").await, "on");
        new.destroy().await;
        let now = warm(&images);
        assert!(now.len() == 1 && !known.contains(&now[0]), "{now:?} after {known:?}");

        daemon.set_path(None);
        restart(&mut daemon).await;
        let (paused, running) = (paused.through(daemon.api()), running.through(daemon.api()));
        let copy = daemon.create_with(json!({ "template": "kept" })).await;
        seen.clone().goes_on(&copy).await;
        copy.destroy().await;
        for (sandbox, witness) in [(&paused, &mut seen), (&running, &mut other_seen)] {
            sandbox.resume().await;
            witness.goes_on(sandbox).await;
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("kept").await;
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

/// It is told which versions do not fit, and stays paused.
async fn refuses_to_resume(sandbox: &Sandbox) {
    let refused = sandbox.try_resume().await;
    names_both(refused.is_error(409, "invalid_state").message());
    assert_eq!(sandbox.state().await, "paused");
}

#[track_caller]
fn names_both(message: &str) {
    let engine = Engine::present();
    let (one, other) = (engine.version(), engine.other_version());
    assert!(message.contains(&one) && message.contains(other), "{message}");
}

#[test]
fn a_damaged_snapshot_is_refused_and_can_be_destroyed() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let mut sandbox = daemon.create().await;
        let mut witness = Witness::start(&sandbox).await;
        sandbox.pause().await;

        let header = sandbox.snapshot_dir().join("memfile.header");
        for at in [0, 100, fs::metadata(&header).expect("a header").len() - 1] {
            flip(&header, at);
            is_damaged(&daemon, &sandbox, "memfile.header").await;
            flip(&header, at);
        }
        sandbox.resume().await;
        witness.goes_on(&sandbox).await;
        sandbox.pause().await;

        let base = || sandbox.snapshot_dir().join("memfile");
        take_for_itself(&base());
        sandbox.resume().await;
        witness.goes_on(&sandbox).await;
        sandbox.pause().await;
        flip(&base(), 4096);
        is_damaged(&daemon, &sandbox, "was changed after it was written").await;
        restart(&mut daemon).await;
        sandbox = sandbox.through(daemon.api());
        is_damaged(&daemon, &sandbox, "was changed after it was written").await;
        sandbox.destroy().await;
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

/// The caller hears that it is damaged, the log says what, and it stays paused.
async fn is_damaged(daemon: &Daemon, sandbox: &Sandbox, what: &str) {
    let known = daemon.log().matches(what).count();
    let refused = sandbox.try_resume().await;
    let message = refused.is_error(500, "internal").message();
    assert!(message.contains("damaged"), "{message}");
    assert!(daemon.log().matches(what).count() > known, "the log names {what}");
    assert_eq!(sandbox.state().await, "paused");
}

/// Changes one byte of a file.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[!byte[0]], at).expect("written");
}

/// Makes a file of a sandbox its own, the same and as old: others have it too.
fn take_for_itself(path: &Path) {
    let copy = path.with_extension("copy");
    run(&format!("cp -p --sparse=always {} {}", path.display(), copy.display()));
    fs::rename(&copy, path).expect("renamed");
}
