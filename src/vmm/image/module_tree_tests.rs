use std::process::Command;
use std::sync::Mutex;

use super::*;
use crate::vmm::image::Silent;

const VERSION: &str = "6.9.0-test";

/// A packed tree of one module, made without depmod: what is in it is no module at all.
fn packed(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("kernel/fs/one")).unwrap();
    fs::write(tree.join("kernel/fs/one/one.ko.xz"), vec![1; 3 << 20]).unwrap();
    fs::write(tree.join("modules.dep.bin"), "index").unwrap();
    let file = dir.join("modules.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&file).arg("-C").arg(&tree).arg(".");
    assert!(tar.status().unwrap().success());
    file
}

/// A filesystem of `mib` MiB that holds `tree`.
fn disk(dir: &Path, tree: &Path, mib: u64) -> PathBuf {
    let disk = dir.join("a disk.ext4");
    File::create(&disk).unwrap().set_len(mib << 20).unwrap();
    let mut format = Command::new("mke2fs");
    format.args(["-q", "-F", "-t", "ext4", "-d"]).args([tree, &disk]);
    assert!(format.status().unwrap().success());
    disk
}

fn read(disk: &Path, file: &str) -> String {
    let read = Command::new("debugfs").args(["-R", &format!("cat {file}")]).arg(disk).output();
    String::from_utf8(read.unwrap().stdout).unwrap()
}

fn put(dir: &Path, disk: &Path, progress: &dyn Progress) -> Result<(), ModuleTreeError> {
    let work = tempfile::tempdir().unwrap();
    let packed = packed(dir);
    let result = install(&packed, VERSION, disk, work.path(), progress);
    let mut check = Command::new("e2fsck");
    let sound = check.args(["-f", "-n"]).arg(disk).output().unwrap();
    assert!(sound.status.success(), "{sound:?}");
    result
}

#[test]
fn modules_go_where_the_image_keeps_its_libraries() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::create_dir_all(image.join("usr/lib")).unwrap();
    symlink("usr/lib", image.join("lib")).unwrap();
    let disk = disk(dir.path(), &image, 32);
    put(dir.path(), &disk, &Silent).unwrap();
    assert_eq!(read(&disk, &format!("/usr/lib/modules/{VERSION}/modules.dep.bin")), "index");
    let module = read(&disk, &format!("/lib/modules/{VERSION}/kernel/fs/one/one.ko.xz"));
    assert_eq!(module.len(), 3 << 20);
}

#[test]
fn a_full_filesystem_grows_and_one_without_libraries_gets_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::create_dir_all(image.join("bin")).unwrap();
    let disk = disk(dir.path(), &image, 3);
    put(dir.path(), &disk, &Silent).unwrap();
    assert_eq!(read(&disk, &format!("/lib/modules/{VERSION}/modules.dep.bin")), "index");
}

/// Keeps what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn step(&self, _: &str) {}

    fn detail(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn an_image_keeps_its_own_modules_and_links_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for (name, reason) in [("own", "of its own"), ("link", "no place for modules")] {
        let image = dir.path().join(name);
        fs::create_dir_all(image.join("lib")).unwrap();
        if name == "own" {
            fs::create_dir_all(image.join("lib/modules").join(VERSION)).unwrap();
            fs::write(image.join("lib/modules").join(VERSION).join("mine"), "mine").unwrap();
        } else {
            symlink(&outside, image.join("lib/modules")).unwrap();
        }
        let disk = disk(dir.path(), &image, 32);
        let told = Told::default();
        put(dir.path(), &disk, &told).unwrap();
        let told = told.0.into_inner().unwrap();
        assert!(told.iter().any(|text| text.contains(reason)), "{name}: {told:?}");
        let index = format!("/lib/modules/{VERSION}/modules.dep.bin");
        assert_eq!(read(&disk, &index), "", "{name}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_release_that_is_no_plain_name_is_refused() {
    for version in ["", "..", "6.1/../../etc", "6.1 x", "6.1\nrm /bin", "\"6\""] {
        assert!(matches!(plain(version), Err(ModuleTreeError::Name { .. })), "{version:?}");
    }
    assert_eq!(plain("6.1.0-57-cloud-amd64").unwrap(), "6.1.0-57-cloud-amd64");
}
