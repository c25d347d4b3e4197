#!/bin/sh
# Runs one group of the tests that scripts/lab/test.sh has prepared, in a machine of its own. Leaves in
# target/lab/GROUP: vm.log; what failed tests left, in failed/; console.log of the machine; code.
#
#   scripts/lab/group.sh GROUP [ARGUMENT...]
set -eu
cd "$(dirname "$0")/../.."

group=$1
shift
in=target/lab/in
out=target/lab/$group
images=$NESTBOX_DATA_DIR/images
nestbox=$(cat "$in/place")

# Only what is for the tests: which they are is decided.
for argument; do
    shift
    case $argument in -*) set -- "$@" "$argument" ;; esac
done
for name in $(grep "^$group::" "$in/chosen"); do
    set -- "$@" "$name"
done

# One test at a time. Why one CPU, see docs/lab.md.
set -- --cpus "${NESTBOX_LAB_CPUS:-1}" --disk "$in/nestbox:$nestbox" --disk "$in/vm:/lab/vm" \
    --disk "$images/kernels:/lab/images/kernels" \
    --disk "$images/initramfs:/lab/images/initramfs" \
    --results "$out/failed" --console "$out/console.log" --time "${NESTBOX_LAB_TIME:-5400}" \
    -- env NESTBOX_TEST_IMAGES=/lab/images NESTBOX_TEST_LEFT=/results \
    ${NESTBOX_TEST_CYCLES:+NESTBOX_TEST_CYCLES=$NESTBOX_TEST_CYCLES} \
    ${NESTBOX_TEST_STRICT:+NESTBOX_TEST_STRICT=$NESTBOX_TEST_STRICT} \
    NESTBOX_HYPERVISOR="${NESTBOX_HYPERVISOR:-firecracker}" RUST_TEST_THREADS=1 \
    /lab/vm --exact "$@"
# The image goes without what was frozen from it.
for file in "$images"/debian/*; do
    [ ! -f "$file" ] || set -- --disk "$file:/lab/images/debian/${file##*/}" "$@"
done

mkdir -p "$out/failed"
began=$(date +%s)
{
    code=0
    scripts/lab.sh run "$@" 2>&1 || code=$?
    echo "$code" >"$out/code"
} | tee "$out/vm.log" | sed -u "s/^/$group: /"
code=$(cat "$out/code")
rmdir "$out/failed" 2>/dev/null || true
case $code in
    0) word=passed ;;
    124) word='its time was over' ;;
    125) word='its machine broke' ;;
    *) word="FAILED: see target/lab/$group" ;;
esac
echo "lab: $group: $word ($(($(date +%s) - began)) s)"
[ "$code" = 0 ]
