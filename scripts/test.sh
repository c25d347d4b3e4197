#!/bin/sh
# Builds the tests, runs them, and says at the end how many passed, and which were skipped and why. Of
# each suite, target/tests/SUITE.log keeps what it said.
#
#   scripts/test.sh units           those beside the code, and who may use whom: no root, no services
#   scripts/test.sh all             every test there is, on real microVMs
#   scripts/test.sh all NAME...     suites that are called so
#   scripts/test.sh long            those that are nothing but long, and are no measurements
#
#   NESTBOX_TEST_STRICT=1   a test that cannot run fails, see tests/support/skip.rs
#   NESTBOX_TEST_SHOW=1     print what each suite has said, also when it has passed
#   NESTBOX_TEST_SIDES      how many suites run side by side [default: 2]
#   NESTBOX_TEST_TIME       the longest that a suite may take, in seconds [default: 3600]
set -eu
cd "$(dirname "$0")/.."

out=$PWD/target/tests
# Debian's users have not what root has, such as mke2fs.
export PATH="$PATH:/usr/sbin:/sbin"

# Runs one suite: its name, where, and its program. Never fails: what it came to is in a file.
if [ "${1:-}" = suite ]; then
    name=$2 dir=$3 program=$4
    began=$(date +%s) code=0
    (cd "$dir" && exec timeout "${NESTBOX_TEST_TIME:-3600}" "$program" $NESTBOX_TEST_ARGS) \
        >"$out/$name.log" 2>&1 </dev/null || code=$?
    took=$(($(date +%s) - began))
    result=$(sed -n 's/^test result: [A-Za-z]*\. \(.*\); finished in.*/\1/p' "$out/$name.log")
    [ -n "$result" ] || code="${code#0} without a result"
    if [ "$code" = 0 ]; then
        echo "$result" >"$out/$name.passed"
        [ -z "${NESTBOX_TEST_SHOW:-}" ] || cat "$out/$name.log"
        case $result in 0\ passed*) ;; *) echo "tests: $name: $result ($took s)" ;; esac
    else
        # All of it, as it is in a CI's log that the cause is looked for.
        cat "$out/$name.log"
        echo "tests: $name: FAILED, code $code ($took s): see target/tests/$name.log"
    fi
    exit 0
fi

what=${1:-}
[ $# = 0 ] || shift
args=''
case $what in
    units) select='--lib --bins --test layers' ;;
    all) select='' ;;
    long) select='--tests' args='--ignored takes_long' ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

rm -rf "$out"
mkdir -p "$out"
# An image is mostly waited for: it is made while the tests are built. `cargo build` would build the
# daemon, and most crates that it is made of, once more: tests ask other features of some.
if [ "$what" != units ]; then
    cargo test --workspace --no-run --quiet --test layers
    target/debug/nestbox image build debian >"$out/image.log" 2>&1 &
    image=$!
fi
# As `cargo test` builds them: beside the daemon that they start.
cargo test --workspace $select --no-run --message-format=json-render-diagnostics >"$out/built.json"
# Directory, kind, name and program of each. Long ones first, so that no long one is left in the end.
sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml","target":{"kind":\["\([^"]*\)"\].*"name":"\([^"]*\)","src_path".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*|\1 \2 \3 \4|p' \
    "$out/built.json" |
    while read -r dir kind name program; do
        package=${dir##*/}
        [ "$dir" != "$PWD" ] || package=nestbox
        case $kind in
            test) [ "$package" = nestbox ] || name=$package-$name ;;
            *) name=$package-$kind ;;
        esac
        case $name in vm) order=0 ;; browser) order=1 ;; api) order=2 ;; nestbox-lib | network) order=3 ;; *) order=4 ;; esac
        echo "$order $name $dir $program"
    done | sort -s -k1,1n | cut -d' ' -f2- >"$out/suites"
if [ $# != 0 ]; then
    for name; do grep "^$name " "$out/suites"; done >"$out/chosen" || true
    mv "$out/chosen" "$out/suites"
fi
[ -s "$out/suites" ] || { echo "tests: no suite is called so: $*" >&2; exit 1; }

if [ "$what" != units ]; then
    wait "$image" || { cat "$out/image.log" >&2; exit 1; }
fi

export NESTBOX_TEST_ARGS="$args" NESTBOX_TEST_SKIPPED="$out/skipped"
: >"$NESTBOX_TEST_SKIPPED"
began=$(date +%s)
xargs -P "${NESTBOX_TEST_SIDES:-2}" -L 1 "$0" suite <"$out/suites"

# What the harness takes for passed and was skipped did not pass.
skipped=$(wc -l <"$NESTBOX_TEST_SKIPPED")
passed=$(cat "$out"/*.passed 2>/dev/null | awk '{ n += $1 } END { print n + 0 }')
left=$(cut -d' ' -f1 "$out/suites" | while read -r name; do
    [ -e "$out/$name.passed" ] || printf ' %s' "$name"
done)
sort "$NESTBOX_TEST_SKIPPED"
echo "tests: $((passed - skipped)) passed, $skipped skipped, in $(($(date +%s) - began)) s"
if [ -n "$left" ]; then
    echo "tests: FAILED:$left" >&2
    exit 1
fi
