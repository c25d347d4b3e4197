//! An image of one's own: a tree that is nothing but a shell.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{Options, in_a_lab};

/// Copies a program of this machine into a tree, with the libraries that it needs.
fn install(tree: &Path, program: &str) {
    let source = nestbox::vmm::find_program(program).expect(program);
    let listed = Command::new("ldd").arg(&source).output().expect("ldd runs").stdout;
    let listed = String::from_utf8(listed).expect("text");
    let libraries =
        listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let copies = libraries.map(|path| (path.clone(), path));
    for (from, to) in copies.chain([(source, Path::new("/bin").join(program))]) {
        let to = tree.join(to.strip_prefix("/").expect("absolute"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        fs::copy(&from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
}

#[test]
fn an_imported_tree_without_users_boots_and_runs_as_root() {
    in_a_lab(1, async |lab| {
        let tree = lab.path("tree");
        for program in ["sh", "id", "cat", "hostname"] {
            install(&tree, program);
        }
        let images = lab.path("images");
        // The kernel of an image that is there is used again, so nothing has to be downloaded.
        let mut copied = Command::new("cp");
        copied.args(["-a", "--sparse=always"]).arg(lab.images()).arg(&images);
        assert!(copied.status().expect("cp runs").success());
        let (image_dir, rootfs) = (images.display().to_string(), tree.display().to_string());
        let import = ["image", "import", "--name", "tiny", "--image-dir", &image_dir];
        lab.cli_ok(&[&import[..], &["--rootfs", &rootfs]].concat());

        let mut daemon =
            lab.daemon_with(Options { images: Some(images.clone()), ..Options::default() }).await;
        let sandbox = daemon.create_with(json!({ "template": "tiny", "memory_mb": 256 })).await;
        let who = sandbox.exec(json!({ "cmd": "id -u; pwd; hostname" })).await;
        let lines: Vec<String> = who.text().lines().map(str::to_owned).collect();
        assert_eq!(lines.first().map(String::as_str), Some("0"), "{who:?}");
        assert_eq!(lines.last(), Some(&sandbox.id), "{who:?}");
        // It brings no modules, and gets those of its kernel all the same.
        let modules = "cat /lib/modules/$(cat /proc/sys/kernel/osrelease)/modules.devname";
        assert!(sandbox.sh(modules).await.contains("fuse c10:229"), "{modules}");
        sandbox.sh("[ -c /dev/fuse ]").await;
        sandbox.write("/root/file", "content").await;
        assert_eq!(sandbox.sh("cat /root/file").await, "content");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
