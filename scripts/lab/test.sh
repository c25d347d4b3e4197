#!/bin/sh
# Runs the tests on microVMs in the lab, under the real Firecracker. Arguments go to the tests, such
# as `pause:: --nocapture`. Leaves vm.log and what failed tests left in target/lab.
#
#   NESTBOX_HYPERVISOR    [default: firecracker]
#   NESTBOX_LAB_TIME      the longest it may take, in seconds [default: 5400]
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
nestbox=${tests%/deps/*}/nestbox
export NESTBOX_DATA_DIR="${NESTBOX_DATA_DIR:-.nestbox}"
"$nestbox" image build debian
images=$NESTBOX_DATA_DIR/images

out=target/lab
rm -rf "$out"
mkdir -p "$out/in" "$out/failed"
out=$(realpath "$out")
# Half as large without debug information; a panic names its line all the same.
strip --strip-debug -o "$out/in/nestbox" "$nestbox"
strip --strip-debug -o "$out/in/vm" "$tests"

# The daemon is where the tests were told that it is. The image goes without what was frozen from it.
set -- --disk "$out/in/nestbox:$nestbox" --disk "$out/in/vm:/lab/vm" \
    --disk "$images/kernels:/lab/images/kernels" \
    --disk "$images/initramfs:/lab/images/initramfs" \
    --results "$out/failed" --console "$out/console.log" --time "${NESTBOX_LAB_TIME:-5400}" \
    -- env NESTBOX_TEST_IMAGES=/lab/images NESTBOX_TEST_LEFT=/results \
    ${NESTBOX_TEST_CYCLES:+NESTBOX_TEST_CYCLES=$NESTBOX_TEST_CYCLES} \
    NESTBOX_HYPERVISOR="${NESTBOX_HYPERVISOR:-firecracker}" RUST_TEST_THREADS=2 /lab/vm "$@"
for file in "$images"/debian/*; do
    [ ! -f "$file" ] || set -- --disk "$file:/lab/images/debian/${file##*/}" "$@"
done

{
    code=0
    scripts/lab.sh run "$@" 2>&1 || code=$?
    echo "$code" >"$out/code"
} | tee "$out/vm.log"
rm -rf "$out/in"
exit "$(cat "$out/code")"
