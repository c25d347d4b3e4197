#!/bin/sh
# Builds the targets and runs them one after the other: fuzz/run.sh [SECONDS [TARGET...]], 600 seconds
# each by default. What is found on the way is kept in work/, crashes in artifacts/.
set -eu
cd "$(dirname "$0")"
seconds=${1:-600}
[ $# = 0 ] || shift
# The versions that the daemon has; cargo adds the fuzzer's own.
cp ../Cargo.lock .
# All of this is safe Rust: what an address sanitizer could find is not worth half of the speed.
cargo +nightly fuzz build --sanitizer none
for target in ${*:-$(cargo +nightly fuzz list)}; do
    mkdir -p "work/$target"
    # No answer may keep the daemon busy for seconds; memory is counted by the targets themselves.
    set -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1
    [ ! -e "dict/$target.dict" ] || set -- "$@" -dict="dict/$target.dict"
    # Files are made on the way.
    [ ! -w /dev/shm ] || export TMPDIR=/dev/shm
    echo "fuzz: $target"
    cargo +nightly fuzz run --sanitizer none "$target" "work/$target" "corpus/$target" -- "$@"
done
