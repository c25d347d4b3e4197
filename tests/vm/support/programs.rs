//! Programs of a test's own, which a daemon finds before the usual ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::engine::Engine;

/// Open to the VM's user, as programs are, and the lab's alone.
const DIR: &str = "/run/programs";

/// Has daemons find a script instead of the hypervisor. It can say `exec "$HYPERVISOR" "$@"`.
///
/// Firecracker itself starts in a jail without a shell: there it is its jailer that the script stands
/// in for, and Firecracker where it is asked for its version.
pub fn hypervisor_script(script: &str) {
    let engine = Engine::present();
    let program = nestbox::vmm::find_program(engine.program()).expect("it is installed");
    let path = |program: &Path| program.display().to_string();
    install(engine.program(), &format!("HYPERVISOR={}\n{script}", path(&program)));
    if engine == Engine::Firecracker {
        let jailer = program.with_file_name("jailer");
        let real = format!(
            "for word; do shift; [ \"$word\" = {DIR}/firecracker ] && word={}; \
             set -- \"$@\" \"$word\"; done",
            path(&program)
        );
        install("jailer", &format!("HYPERVISOR={}\n{real}\n{script}", path(&jailer)));
    }
}

fn install(name: &str, script: &str) {
    fs::create_dir_all(DIR).expect("a directory");
    let path = Path::new(DIR).join(name);
    // In one step: a daemon may be about to start it.
    let new = path.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).expect("a program");
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("it can be executed");
    fs::rename(&new, &path).expect("a program");
}

/// Where such a daemon looks for programs.
pub fn path_with() -> String {
    format!("{DIR}:{}", std::env::var("PATH").expect("a path"))
}
