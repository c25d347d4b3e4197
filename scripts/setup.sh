#!/bin/sh
# Installs what Nestbox needs and this machine lacks. Never asks; says nothing when nothing is missing.
#
#   scripts/setup.sh          what the daemon calls
#   scripts/setup.sh tests    that, and what the tests need besides
#   scripts/setup.sh check    what the daemon calls, what unit tests call besides, and cargo-deny
set -eu

# Each with the reason; nothing here that the code does not call.
#   qemu-system-x86  the hypervisor            mmdebstrap  the root filesystem's tree
#   e2fsprogs        mke2fs, e2fsck            nftables    a sandbox's network rules
#   iproute2         `ip`, for people and tests
#   kmod, xz-utils   depmod and xz, which pack a kernel's modules for guests
#   gcc, libc6-dev   the linker that Rust uses
#   libdevmapper-dev, libclang-dev, pkg-config
#                    what the crates of device-mapper and userfaultfd are built with; nothing of it
#                    is needed when the daemon runs
packages="qemu-system-x86 mmdebstrap e2fsprogs nftables iproute2 kmod xz-utils gcc libc6-dev"
packages="$packages libdevmapper-dev libclang-dev pkg-config"
if [ "${1:-}" = tests ]; then
    # postgresql: the same tests on it.
    # chromium, chromium-driver: tests of the browser page. fonts-dejavu-core: letters for it.
    # python3-venv: what makes requests from the API's description. bubblewrap: where it does so.
    packages="$packages postgresql chromium chromium-driver fonts-dejavu-core"
    packages="$packages python3-venv bubblewrap"
fi
case ${1:-} in tests | check)
    # qemu-utils: qemu-img and qemu-io, which say whether what is written for QEMU is what it reads.
    packages="$packages qemu-utils" ;;
esac

find_missing() {
    missing=
    for package in $packages; do
        status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing="$missing $package"
    done
}

find_missing
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: these packages are missing and only root can install them:$missing" >&2
        exit 1
    fi
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT

    # libdevmapper-dev needs libudev-dev, of which the newest would bring an upgrade of the running
    # systemd with it: the one that fits what is installed does as well.
    udev=$(dpkg-query --show --showformat '${Version}' libudev1 2>/dev/null || true)
    pin_udev() {
        case " $missing " in *" libdevmapper-dev "*) ;; *) return 0 ;; esac
        if [ -n "$udev" ] && apt-cache madison libudev-dev | grep -qF " $udev "; then
            missing="$missing libudev-dev=$udev"
        fi
    }

    # Unquoted where it is used: one word for each package. Recommended packages would bring a
    # desktop's worth of display and sound libraries.
    install() {
        apt-get install -y -q --no-install-recommends \
            -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300 $missing \
            >"$log" 2>&1 </dev/null
    }
    update() {
        apt-get update -q >"$log" 2>&1 </dev/null
    }
    # Lists that were never fetched, or that are older than the archive, make the first try fail.
    install_missing() {
        pin_udev
        if ! install; then
            update || { sleep 3; update; } || { cat "$log" >&2; exit 1; }
            pin_udev
            install || { sleep 3; install; } || { cat "$log" >&2; exit 1; }
        fi
    }
    install_missing
    # One of another suite may have had to give way: qemu-utils from Debian's backports does to this
    # suite's QEMU. Then it comes back in the version that fits.
    find_missing
    [ -z "$missing" ] || install_missing
fi

if ! command -v cargo >/dev/null 2>&1; then
    cat >&2 <<'END'
setup: cargo is missing. Rust's own installer provides it, and the version in rust-toolchain.toml comes
with the first call:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain none
    . "$HOME/.cargo/env"
END
    exit 1
fi

# Requests made from the API's description: tests/api/contract.rs. The stamp is last, so that an
# installation which broke off is made again.
schemathesis=4.32.5
venv=$(dirname "$0")/../target/schemathesis
if [ "${1:-}" = tests ] && [ ! -e "$venv/$schemathesis" ]; then
    echo "setup: installing schemathesis $schemathesis into target/schemathesis"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "schemathesis==$schemathesis"
    touch "$venv/$schemathesis"
fi

# Checks licences and origins of crates. Unoptimised it is installed in half the time, and what it does is
# little. Cargo's own place is left to its owner.
cargo_deny=0.20.2
tools=$(dirname "$0")/../target/tools
if [ "${1:-}" = check ]; then
    said=$(PATH="$tools/bin:$PATH" cargo deny --version 2>/dev/null || true)
    if [ "$said" != "cargo-deny $cargo_deny" ]; then
        echo "setup: installing cargo-deny $cargo_deny into target/tools"
        cargo install --quiet --locked --debug --root "$tools" "cargo-deny@$cargo_deny"
    fi
fi
