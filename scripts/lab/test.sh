#!/bin/sh
# Runs the tests on microVMs in the lab, under the real Firecracker: each module of tests/vm in a
# machine of its own. Arguments choose tests, such as `pause:: fork::`; those that begin with `-` go to
# the tests, such as `--nocapture`. Leaves in target/lab/GROUP what scripts/lab/group.sh says.
#
#   NESTBOX_HYPERVISOR    [default: firecracker]
#   NESTBOX_LAB_MACHINES  how many run at a time [default: 2]
#   NESTBOX_LAB_CPUS      of each [default: 1]
#   NESTBOX_LAB_TIME      the longest a machine may take, in seconds [default: 5400]
set -eu
cd "$(dirname "$0")/../.."

firecracker=${NESTBOX_FIRECRACKER:-firecracker}
if ! command -v "$firecracker" >/dev/null; then
    echo "lab: skipped: no firecracker binary: put one on PATH or name it in NESTBOX_FIRECRACKER"
    exit 0
fi

scripts/setup.sh tests
# As it is delivered: emulated, a program without optimisation is what one waits for. Builds the daemon
# too, beside which Cargo puts the tests.
tests=$(cargo test --release --no-run --test vm --message-format=json-render-diagnostics |
    sed -n 's/.*"kind":\["test"\].*"name":"vm".*"executable":"\([^"]*\)".*/\1/p')
if [ -z "$tests" ]; then
    echo "lab: cargo has built no tests" >&2
    exit 1
fi
# That they are only to be named is for here, not for the tests, which take it once.
list=''
for argument; do
    shift
    case $argument in --list) list=yes ;; *) set -- "$@" "$argument" ;; esac
done
chosen=$("$tests" --list --format terse "$@" | sed -n 's/: test$//p')
groups=$(echo "$chosen" | sed 's/::.*//' | sort -u)
if [ -z "$groups" ]; then
    echo "lab: no test is called so: $*" >&2
    exit 1
fi
if [ -n "$list" ]; then
    echo "$chosen"
    exit
fi

nestbox=${tests%/deps/*}/nestbox
export NESTBOX_DATA_DIR="${NESTBOX_DATA_DIR:-.nestbox}"
"$nestbox" image build debian
scripts/lab.sh prepare >/dev/null

out=target/lab
rm -rf "$out"
mkdir -p "$out/in"
# Half as large without debug information; a panic names its line all the same.
strip --strip-debug -o "$out/in/nestbox" "$nestbox"
strip --strip-debug -o "$out/in/vm" "$tests"
# The daemon is where the tests were told that it is.
echo "$nestbox" >"$out/in/place"
echo "$chosen" >"$out/in/chosen"

code=0
echo "$groups" | xargs -P "${NESTBOX_LAB_MACHINES:-2}" -I '{}' scripts/lab/group.sh '{}' "$@" || code=1
rm -rf "$out/in"
[ "$code" = 0 ] || echo "lab: not all passed: $(grep -Lx 0 "$out"/*/code | sed 's|/code$||' | xargs)"
exit "$code"
