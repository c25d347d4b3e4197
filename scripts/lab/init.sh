#!/bin/sh
# The first process of the lab's machine: makes it ready, runs the command, ends the machine.
# In /lab/.lab: `binds`, what goes where; `command`, or none for a shell; `limit`, its time in seconds;
# `results`, if they are wanted.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TMPDIR=/lab/tmp LANG=C.UTF-8 NESTBOX_IN_LAB=1

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /run/lock /lab/tmp
ln -sf /proc/self/fd /dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -sf "/proc/self/fd/${n%:*}" "/dev/${n#*:}"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
hostname lab
ip link set lo up

# Nothing has to be loaded later, so that what a test leaves behind is the test's.
modprobe -a virtio_console virtio_rng kvm-amd dm-snapshot tun veth overlay \
    nft_masq nft_nat nft_chain_nat nft_ct nft_limit nft_reject_inet nft_fib_inet
modprobe loop max_loop=0
# As udev does it.
getent group kvm >/dev/null || groupadd --system kvm
chgrp kvm /dev/kvm
chmod 660 /dev/kvm
chmod 666 /dev/net/tun

# No udev: the names are in sysfs.
port() {
    for dir in /sys/class/virtio-ports/*; do
        [ "$(cat "$dir/name")" != "$1" ] || echo "/dev/${dir##*/}"
    done
}

while read -r place target; do
    if [ -d "$place" ]; then
        mkdir -p "$target"
    else
        mkdir -p "${target%/*}"
        [ -e "$target" ] || : >"$target"
    fi
    mount --bind "$place" "$target"
done </lab/.lab/binds

cd /lab || true
read -r up _ </proc/uptime
echo "lab: ready after $up s" >/dev/console
if [ -e /lab/.lab/command ]; then
    # Through a pipe: a port can be opened once only, and programs open /dev/stderr.
    mkfifo /run/lab-output
    cat /run/lab-output >"$(port output)" &
    pump=$!
    # Some seconds are left to bring the results out.
    setsid --wait timeout --kill-after 2 $(($(cat /lab/.lab/limit) - ${up%.*} - 15)) \
        sh /lab/.lab/command </dev/null >/run/lab-output 2>&1
    status=$?
    # What the command left running may hold the pipe open.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$pump" 2>/dev/null || break
        sleep 0.1
    done
else
    . /lab/.lab/terminal
    PS1='lab:\w# ' setsid --ctty --wait bash --norc -i </dev/hvc0 >/dev/hvc0 2>&1
    status=$?
fi
if [ -e /lab/.lab/results ]; then
    tar -C /results -cf - . >"$(port results)"
fi
echo "$status" >"$(port status)"
# A write to a port returns before the other side has it.
sleep 0.3
busybox poweroff -f
