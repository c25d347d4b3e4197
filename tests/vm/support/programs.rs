//! Programs of a test's own, which a daemon finds before the usual ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Open to the VM's user, as programs are, and the lab's alone.
const DIR: &str = "/run/programs";

const QEMU: &str = "qemu-system-x86_64";

/// Has daemons find a script instead of QEMU. It can say `exec "$QEMU" "$@"`.
pub fn qemu_script(script: &str) {
    let qemu = nestbox::vmm::find_program(QEMU).expect("QEMU is installed");
    fs::create_dir_all(DIR).expect("a directory");
    let path = Path::new(DIR).join(QEMU);
    let text = format!("#!/bin/sh\nQEMU={}\n{script}\n", qemu.display());
    // In one step: a daemon may be about to start it.
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a program");
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("it can be executed");
    fs::rename(&new, &path).expect("a program");
}

/// Where such a daemon looks for programs.
pub fn path_with() -> String {
    format!("{DIR}:{}", std::env::var("PATH").expect("a path"))
}
