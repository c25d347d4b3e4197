//! What a guest can do beyond booting: the modules of its kernel, loaded by hand and by need, and the
//! programs that one counts on.

use serde_json::json;

use crate::support::{Sandbox, in_a_lab};

/// What the default image brings besides what every Debian has.
const PROGRAMS: &str = "git curl wget unzip ssh nano sudo pip modprobe python3";

/// Whether the kernel counts no time as suspended: two clocks, read one after the other, that are the
/// same then. Between some two of many readings nothing else runs.
const NEVER_SUSPENDED: &str = "
import time
def apart(): return abs(time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC))
print(min(apart() for _ in range(100)) < 0.05)
";

/// Each with what it says when it has worked. Run as root, in one sandbox; none needs the internet.
const WORKS: &[(&str, &str)] = &[
    ("modprobe overlay && grep -c ^overlay /proc/modules", "1"),
    // By need: the kernel runs modprobe.
    (
        "mkdir -p /mnt/l /mnt/o && mount -t tmpfs none /mnt/o && mkdir /mnt/o/u /mnt/o/w /mnt/o/m && \
         echo low > /mnt/l/f && \
         mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/o/u,workdir=/mnt/o/w none /mnt/o/m && \
         echo up > /mnt/o/m/f && cat /mnt/l/f /mnt/o/u/f",
        "low\nup",
    ),
    (
        "truncate -s 8M /var/disk && mkfs.ext4 -q /var/disk && mkdir /mnt/d && \
         mount -o loop /var/disk /mnt/d && echo in > /mnt/d/f && umount /mnt/d && \
         mount -o loop,ro /var/disk /mnt/d && cat /mnt/d/f",
        "in",
    ),
    (
        "ip link add br0 type bridge && ip link add v0 type veth peer v1 && \
         ip link set v0 master br0 && ip -br link show master br0 | cut -d@ -f1",
        "v0",
    ),
    ("ip link add wg0 type wireguard && ip -br link show wg0 | cut -d' ' -f1", "wg0"),
    ("ip tuntap add tap0 mode tap && ip -br link show tap0 | cut -d' ' -f1", "tap0"),
    ("modprobe -a nf_tables nft_chain_nat xt_MASQUERADE && grep -c ^nf_tables /proc/modules", "1"),
];

/// A FUSE mount without a program to serve it: the kernel's part of it. Any user opens the device.
const FUSE: &str = "
import ctypes, os
fd = os.open('/dev/fuse', os.O_RDWR)
os.makedirs('/mnt/fuse')
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()
if libc.mount(b'probe', b'/mnt/fuse', b'fuse', 0, options):
    raise OSError(ctypes.get_errno())
print(any(' /mnt/fuse fuse ' in line for line in open('/proc/mounts')))
libc.umount2(b'/mnt/fuse', 2)
";

#[test]
fn a_guest_has_the_modules_and_programs_that_real_work_takes() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let missing = format!("for p in {PROGRAMS}; do command -v $p > /dev/null || echo $p; done");
        assert_eq!(sandbox.sh(&missing).await, "", "missing");
        assert_eq!(sandbox.sh("python3 -c 'import ensurepip'; locale charmap").await, "UTF-8");
        let open = "exec 3<>/dev/fuse 4<>/dev/net/tun && stat -c '%a %n' /dev/fuse /dev/net/tun";
        assert_eq!(sandbox.sh(open).await, "666 /dev/fuse\n666 /dev/net/tun");
        works(&sandbox).await;
        sandbox.pause().await;
        sandbox.resume().await;
        let clocks = json!({ "cmd": "python3", "args": ["-c", NEVER_SUSPENDED] });
        assert_eq!(sandbox.exec(clocks).await.text(), "True", "as docs/operations.md says");
        let after = "echo more > /mnt/o/m/g && cat /mnt/o/u/g /mnt/d/f";
        assert_eq!(sandbox.sh_as_root(after).await, "more\nin", "after a pause");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

async fn works(sandbox: &Sandbox) {
    for (line, said) in WORKS {
        assert_eq!(&sandbox.sh_as_root(line).await, said, "{line}");
    }
    let fuse = json!({ "cmd": "python3", "args": ["-c", FUSE], "user": "root" });
    assert_eq!(sandbox.exec(fuse).await.text(), "True");
}
