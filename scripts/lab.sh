#!/bin/sh
# A machine in software that has what Firecracker needs: /dev/kvm, device-mapper, userfaultfd.
#
#   scripts/lab.sh prepare                     makes it, once
#   scripts/lab.sh run [OPTIONS] -- COMMAND    boots it, runs COMMAND in it as root, ends it; the exit
#                                              code is COMMAND's, 124 after the time limit, 125 if the
#                                              machine itself failed
#   scripts/lab.sh shell [OPTIONS]             the same with a shell; `exit` ends the machine
#
#   --disk PATH:/PLACE  a copy of a file or directory is at /PLACE. May be given again. Places below
#                       /lab are on one filesystem with its $TMPDIR and several GB of room
#   --results DIR       what is in /results at the end comes to DIR
#   --time SECONDS      the longest it may take, at least 30 [default: 600]
#   --cpus N            [default: 2]
#   --memory MIB        [default: 6144]
#   --console FILE      keep the kernel's messages [default: shown if the machine failed]
#
# firecracker and jailer are in it if they are on PATH, or where NESTBOX_FIRECRACKER says.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
lab=${NESTBOX_DATA_DIR:-$here/../.nestbox}/lab

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

verb=${1:-}
[ $# = 0 ] || shift
case $verb in
    prepare) exec "$here/lab/prepare.sh" "$lab" ;;
    run | shell) ;;
    *) usage ;;
esac

machine=$("$here/lab/prepare.sh" "$lab")
lab=$(cd "$lab" && pwd)
# Of runs that were killed.
for old in "$lab"/run-*; do
    [ ! -d "$old" ] || kill -0 "${old##*-}" 2>/dev/null || rm -rf "$old"
done

run=$lab/run-$$
qemu='' tail=''
clean_up() {
    status=$?
    trap - EXIT
    for pid in $qemu $tail; do kill "$pid" 2>/dev/null || true; done
    [ -z "$qemu" ] || wait "$qemu" 2>/dev/null || true
    [ -z "${terminal:-}" ] || stty "$terminal"
    rm -rf "$run"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

stage=$run/stage
inside=$stage/.lab
mkdir -p "$inside/things"
: >"$inside/binds"
cp "$here/lab/init.sh" "$inside/init"
chmod +x "$inside/init"

# put SOURCE PLACE: linked, if it is on the same filesystem; nobody writes to it.
things=0
put() {
    case $2 in
        /lab/*) target=$stage/${2#/lab/} ;;
        /*)
            things=$((things + 1))
            target=$inside/things/$things
            echo "/lab/.lab/things/$things $2" >>"$inside/binds"
            ;;
        *) echo "lab: $2 is not an absolute path" >&2 && exit 2 ;;
    esac
    mkdir -p "$(dirname "$target")"
    source=$(realpath "$1")
    cp -al "$source" "$target" 2>/dev/null ||
        { rm -rf "$target" && cp -a --sparse=always "$source" "$target"; }
}

limit=600 cpus=2 memory=6144 results='' console=''
while [ $# -gt 0 ]; do
    case $1 in
        --) shift && break ;;
        --disk) put "${2%%:*}" "${2#*:}" ;;
        --results) results=$2 ;;
        --time) limit=$2 ;;
        --cpus) cpus=$2 ;;
        --memory) memory=$2 ;;
        --console) console=$2 ;;
        *) usage ;;
    esac
    shift 2
done
if [ "$limit" -lt 30 ]; then
    echo "lab: it takes half a minute to start and end: --time $limit is too short" >&2
    exit 2
fi
firecracker=$(command -v "${NESTBOX_FIRECRACKER:-firecracker}" || true)
if [ -n "$firecracker" ]; then
    put "$firecracker" /usr/local/bin/firecracker
    jailer=$(dirname "$firecracker")/jailer
    [ ! -e "$jailer" ] || put "$jailer" /usr/local/bin/jailer
fi

if [ "$verb" = run ]; then
    [ $# -gt 0 ] || usage
    for word in "$@"; do
        printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"
    done >"$inside/command"
    echo >>"$inside/command"
    echo "$limit" >"$inside/limit"
    talk=''
else
    limit=86400
    echo "export TERM='${TERM:-vt100}'; stty -F /dev/hvc0 $(stty size | sed 's/\(.*\) /rows \1 cols /')" \
        >"$inside/terminal"
    terminal=$(stty -g)
    talk='-chardev stdio,id=shell,signal=off -device virtconsole,chardev=shell'
fi
[ -z "$results" ] || : >"$inside/results"

truncate -s 24G "$run/data.ext4"
mke2fs -q -F -t ext4 -m 0 -O ^metadata_csum -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 \
    -d "$stage" "$run/data.ext4"
rm -rf "$stage"

port() {
    echo "-chardev file,id=$1,path=$run/$1 -device virtserialport,chardev=$1,name=$1"
}
: >"$run/output"
# Without erms and fsrm: `rep movsb` is emulated byte by byte, see docs/lab.md.
# Words, unquoted on purpose: $talk and what port says.
start() {
    TMPDIR=$run exec setpriv --pdeathsig TERM timeout --foreground --kill-after 5 "$limit" \
        "$machine/run" -M q35 -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp "$cpus" -m "$memory" \
        -display none -monitor none -no-reboot -nodefaults -net none -device virtio-rng-pci \
        -kernel "$machine/kernel" -initrd "$machine/initramfs" \
        -append 'console=ttyS0 panic=-1 quiet tsc=reliable' -serial "file:$run/console" \
        -drive "file=$machine/root.ext4,format=raw,if=virtio,cache=unsafe,snapshot=on" \
        -drive "file=$run/data.ext4,format=raw,if=virtio,cache=unsafe,discard=unmap" \
        -device virtio-serial-pci $talk $(port output) $(port results) $(port status)
}
if [ "$verb" = run ]; then
    start </dev/null &
    qemu=$!
    tail -n +1 -f -s 0.1 --pid=$qemu "$run/output" &
    tail=$!
else
    # What runs in the background gets no standard input but by another name.
    exec 3<&0
    start <&3 &
    qemu=$!
fi
code=0
wait "$qemu" || code=$?
qemu=''
[ -z "$tail" ] || wait "$tail" || true
tail=''

[ -z "$console" ] || cp "$run/console" "$console"
if [ -n "$results" ] && [ -s "$run/results" ]; then
    mkdir -p "$results"
    tar -C "$results" --no-same-owner -xf "$run/results"
fi
[ ! -s "$run/status" ] || code=$(cat "$run/status")
[ "$code" != 124 ] || echo "lab: ended after its time limit of $limit s" >&2
if [ -s "$run/status" ] || [ "$code" = 124 ]; then
    exit "$code"
fi
echo "lab: the machine ended before the command did (QEMU: $code); the last of its console:" >&2
tail -n 30 "$run/console" >&2
exit 125
