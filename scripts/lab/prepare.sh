#!/bin/sh
# Makes the lab's machine: Debian's kernel for virtual machines, an initramfs, a root filesystem; and
# what runs it, a QEMU of its own.
#
#   scripts/lab/prepare.sh DIR      prints where it is; makes it if DIR lacks it
#
# Named after what it is made from, which is all in this file.
set -eu

suite=bookworm
# Each with the reason. What tests and the daemon call, and what makes a machine of a tree.
#   busybox-static        the initramfs, and the end of the machine
#   kmod, procps          modules; ps and sysctl, for people
#   dmsetup               what device-mapper has, for people and tests
#   nftables, iproute2    a sandbox's network
#   e2fsprogs, qemu-utils disks: debugfs, mke2fs, qemu-img
#   qemu-system-x86       the other hypervisor, which `auto` may fall back to
#   curl                  an API by hand
#   strace, less          looking closer
packages="busybox-static,kmod,procps,dmsetup,nftables,iproute2,e2fsprogs,qemu-utils"
packages="$packages,qemu-system-x86,curl,strace,less,ca-certificates"
kernel=linux-image-cloud-amd64
# Debian 12's own QEMU, 7.2, is older than its mends of nested guests. Neither emulates SVM without
# errors: see docs/lab.md.
qemu_suite=trixie

key=$(sha256sum "$0" | cut -c -12)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
machine=$dir/machine-$key

if [ -d "$machine" ]; then
    echo "$machine"
    exit
fi
if [ "$(id -u)" != 0 ]; then
    echo "lab: only root can make the machine" >&2
    exit 1
fi
exec 9>"$dir/.lock"
flock 9
if [ -d "$machine" ]; then
    echo "$machine"
    exit
fi

work=$(mktemp -d "$dir/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
tree=$work/tree

# The mirror that this machine's apt uses, which may be a near one.
mirror() {
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 "/$1/\$") ||
        uri=http://deb.debian.org/$1
    echo "$uri"
}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cat >"$work/sources.list" <<END
deb [signed-by=$keyring] $(mirror debian) $suite main
deb [signed-by=$keyring] $(mirror debian) $suite-updates main
deb [signed-by=$keyring] $(mirror debian-security) $suite-security main
END

# The kernel is unpacked, not installed: its scripts would make an initramfs for hardware.
cat >"$work/kernel.sh" <<END
#!/bin/sh
set -eu
export APT_CONFIG="\$MMDEBSTRAP_APT_CONFIG"
package=\$(apt-cache depends $kernel | sed -n 's/^ *Depends: \\(linux-image-.*\\)/\\1/p' | head -n 1)
mkdir "$work/kernel" && cd "$work/kernel"
apt-get -q -o APT::Sandbox::User=root download "\$package"
dpkg-deb --extract ./*.deb .
END
chmod +x "$work/kernel.sh"

cat >"$work/qemu.list" <<END
deb [signed-by=$keyring] $(mirror debian) $qemu_suite main
deb [signed-by=$keyring] $(mirror debian) $qemu_suite-backports main
END

# bootstrap SUITE TREE SOURCES [OPTION...]
bootstrap() {
    suite_=$1 tree_=$2 sources_=$3
    shift 3
    if ! mmdebstrap --mode=root --format=directory --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$@" "$suite_" "$tree_" "$sources_" >"$work/log" 2>&1 </dev/null; then
        cat "$work/log" >&2
        exit 1
    fi
}
echo "lab: making the machine: Debian $suite, some minutes" >&2
bootstrap "$suite" "$tree" "$work/sources.list" --variant=minbase --include="$packages" \
    --customize-hook="$work/kernel.sh"
# Unpacked, not installed: it runs beside this machine's own, with its own libraries.
bootstrap "$qemu_suite" "$work/qemu" "$work/qemu.list" --variant=extract \
    --aptopt="APT::Default-Release \"$qemu_suite-backports\"" --include=qemu-system-x86
version=$(ls "$work/kernel/lib/modules")
mv "$work/kernel/lib/modules" "$tree/usr/lib/"
chroot "$tree" depmod "$version"
mkdir "$tree/lab" "$tree/results"
echo lab >"$tree/etc/hostname"
echo '127.0.0.1 localhost lab' >"$tree/etc/hosts"
: >"$tree/etc/resolv.conf"

echo "lab: packing it" >&2
mkdir "$work/machine" "$work/initramfs"
cp "$work/kernel/boot/vmlinuz-$version" "$work/machine/kernel"
(
    cd "$work/initramfs"
    mkdir bin dev modules root
    cp "$tree/usr/bin/busybox" bin/ 2>/dev/null || cp "$tree/bin/busybox" bin/
    # In the order in which they need each other.
    for module in virtio_pci virtio_blk ext4; do
        chroot "$tree" modprobe --set-version "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
        cp "$tree$file" modules/
        echo "/modules/${file##*/}" >>modules/order
    done
    cat >init <<'END'
#!/bin/busybox sh
export PATH=/bin
busybox mount -t devtmpfs dev /dev
while read -r module; do busybox insmod "$module"; done </modules/order
busybox mount -t ext4 /dev/vda /root
busybox mount -t ext4 /dev/vdb /root/lab
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /lab/.lab/init
END
    chmod +x init
    find . | bin/busybox cpio -o -H newc 2>/dev/null >"$work/machine/initramfs"
)
# Room for what is written to the root by accident; the lab's own disk is another.
truncate -s $(($(du -sm "$tree" | cut -f 1) * 3 / 2 + 512))M "$work/machine/root.ext4"
mke2fs -q -F -t ext4 -m 0 -L lab -E lazy_itable_init=0,root_owner=0:0 -d "$tree" \
    "$work/machine/root.ext4"

mkdir "$work/machine/qemu"
mv "$work/qemu/usr" "$work/machine/qemu/"
cat >"$work/machine/run" <<'END'
#!/bin/sh
usr=$(dirname "$0")/qemu/usr
lib=$usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$lib/qemu exec "$usr/lib64/ld-linux-x86-64.so.2" --library-path "$lib" \
    "$usr/bin/qemu-system-x86_64" -L "$usr/share/seabios" -L "$usr/share/qemu" "$@"
END
chmod +x "$work/machine/run"

mv "$work/machine" "$machine"
# Others are of another version of this file. A machine that runs keeps what it has open.
for other in "$dir"/machine-*; do
    [ "$other" = "$machine" ] || rm -rf "$other"
done
echo "$machine"
