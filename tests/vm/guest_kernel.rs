//! What a guest's kernel can do beyond booting: its modules, loaded by hand and by need.

use serde_json::json;

use crate::support::{Sandbox, in_a_lab};

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
fn a_guest_has_the_modules_of_its_kernel() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let open = "exec 3<>/dev/fuse 4<>/dev/net/tun && stat -c '%a %n' /dev/fuse /dev/net/tun";
        assert_eq!(sandbox.sh(open).await, "666 /dev/fuse\n666 /dev/net/tun");
        works(&sandbox).await;
        sandbox.pause().await;
        sandbox.resume().await;
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
