#!/usr/bin/env bash
# kills.sh [N]: kills N conversions (1000 by default) and N programs that save a state with HUP, TERM or KILL at random
# times, over an old file or to a new name, on a disk and in memory, with and without files that have no name. Each must
# leave the old or the new file whole, and nothing else once the next run has ended. A disk that is full must leave the
# old file.
# Takes the programs from RWKV_QUANTIZE and RWKV_EDGE, or else from target/release.
set -euo pipefail
cd "$(dirname "$0")/../.."
kills=${1:-1000}
quantize=${RWKV_QUANTIZE:-target/release/rwkv-quantize}
edge=${RWKV_EDGE:-target/release/rwkv-edge}

# Runs a command for which no file system has files without a name: a filter of system calls says so.
no_unnamed_files='
import ctypes, os, platform, struct, sys
calls = {"x86_64": [(257, 2), (2, 1)], "aarch64": [(56, 2)], "armv7l": [(322, 2), (5, 1)]}[platform.machine()]
code = []
for number, flags in calls:
    code += [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16 + 8 * flags)]
    code += [(0x45, 0, 1, 0o20000000), (0x06, 0, 0, 0x50000 | 95)]
code.append((0x06, 0, 0, 0x7FFF0000))
filter = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in code))
program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(filter)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit("no filter: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])'

fail() {
    echo "kills.sh: $*" >&2
    exit 1
}

# Sets the signals, and the commands that write the old and the new file of kind $1; the path of the file follows. $2 is a folder.
choose() {
    local model=(models/fairy7.pth --tokenizer models/fairy_vocab.txt --start-token 0 --threads 1)
    case $1 in
        model)
            signals=(HUP TERM KILL)
            # The new file takes a second one beside it, whose model reads the text.
            echo "Once upon a time there was a king" >"$2/calibration.txt"
            write_old=("$quantize" "${model[@]}" --type int8)
            write_new=("$quantize" "${model[@]}" --type int4 --calib "$2/calibration.txt")
            ;;
        state)
            # The first two end only what has not begun to write.
            signals=(HUP TERM KILL KILL KILL KILL)
            echo "The old king" >"$2/prompt.old"
            echo "The young queen" >"$2/prompt.new"
            write_old=("$edge" bake models/fairy7-int8.rwkv --threads 1 -f "$2/prompt.old" -o)
            write_new=("$edge" bake models/fairy7-int8.rwkv --threads 1 -f "$2/prompt.new" -o)
            ;;
    esac
}

remove_folder() {
    rm -rf "$folder"
}

# A pipe that nobody writes to. Reading from it waits without the time that a process of `sleep` takes to start.
exec {nothing}<> <(:)

# Waits until process $1 runs the program $2. A signal before that goes to a copy of this script.
wait_for_program() {
    local name='' program=${2##*/}
    until [ "$name" = "${program:0:15}" ]; do
        # It may have ended already.
        { read -r name <"/proc/$1/comm"; } 2>/dev/null || return 0
    done
}

microseconds() {
    echo $(($(date +%s%N) / 1000))
}

# A random number below $1, in $random.
draw() {
    random=$(((RANDOM << 15 | RANDOM) % $1))
}

# A time of a run that takes $1 microseconds, in $pause: anywhere, or every other time near the end.
draw_pause() {
    if ((RANDOM % 2)); then
        draw $(($1 / 4))
        random=$((random + $1 * 85 / 100))
    else
        draw "$1"
    fi
    printf -v pause '%d.%06d' $((random / 1000000)) $((random % 1000000))
}

# Fails unless the folder $2 has, besides what a killed run left, the bytes of $1/new, or $1/old if there was one.
check_whole() {
    if [ ! -e "$2/file" ]; then
        ((had_old)) && fail "the old file is gone"
        none=$((none + 1))
    elif cmp -s "$1/new" "$2/file"; then
        new=$((new + 1))
    elif ((had_old)) && cmp -s "$1/old" "$2/file"; then
        old=$((old + 1))
    else
        fail "the file is neither the old nor the new one"
    fi
}

# Kills $1 programs in the folder $2.
kills_in() {
    local duration=1000000000 started had_old pause pid random signal none=0 old=0 new=0 removed=0
    mkdir "$2/out"
    "${write_old[@]}" "$2/old" 2>/dev/null
    # The shortest time: a kill after the end says nothing.
    for _ in 1 2 3; do
        "${write_new[@]}" "$2/new" 2>/dev/null &
        pid=$!
        wait_for_program "$pid" "${write_new[0]}"
        started=$(microseconds)
        wait "$pid"
        started=$(($(microseconds) - started))
        duration=$((started < duration ? started : duration))
    done
    for ((i = 0; i < $1; i++)); do
        rm -f "$2/out/file"
        had_old=$((RANDOM % 2))
        ((had_old)) && cp "$2/old" "$2/out/file"
        signal=${signals[RANDOM % ${#signals[@]}]}
        draw_pause "$duration"
        "${write_new[@]}" "$2/out/file" 2>/dev/null &
        pid=$!
        wait_for_program "$pid" "${write_new[0]}"
        read -r -t "$pause" -u "$nothing" || true
        {
            kill -s "$signal" "$pid" || true
            wait "$pid" || true
        } 2>/dev/null
        check_whole "$2" "$2/out"
        [ "$(find "$2/out" -mindepth 1 ! -name file)" ] || continue
        removed=$((removed + 1))
        "${write_new[@]}" "$2/out/file" 2>/dev/null
        cmp "$2/new" "$2/out/file"
        [ "$(ls -A "$2/out")" = file ] || fail "the next run leaves $(ls -A "$2/out")"
    done
    echo "$3 $2: $1 kills left $none times nothing, $old the old file, $new the new one;" \
        "$removed times a temporary file for the next run to remove"
}

# Kills $1 programs that write each kind of file, on all file systems.
kills_everywhere() {
    local places=("${TMPDIR:-/tmp}") place kind
    [ -d /dev/shm ] && places+=(/dev/shm)
    for place in "${places[@]}"; do
        for kind in model state; do
            folder=$(mktemp -d -p "$place")
            trap remove_folder EXIT
            choose "$kind" "$folder"
            kills_in $((($1 + ${#places[@]} - 1) / ${#places[@]})) "$folder" "$kind, $2"
            remove_folder
        done
    done
}

# Writes each kind of file to a disk that has room for the old file and half of the new one. Needs a mount namespace of
# its own.
full_disk() {
    local kind bytes
    for kind in model state; do
        folder=$(mktemp -d)
        trap remove_folder EXIT
        choose "$kind" "$folder"
        "${write_old[@]}" "$folder/old" 2>/dev/null
        "${write_new[@]}" "$folder/new" 2>/dev/null
        bytes=$(($(stat -c %s "$folder/old") + $(stat -c %s "$folder/new") / 2))
        mkdir "$folder/out"
        mount -t tmpfs -o "size=$bytes" tmpfs "$folder/out"
        cp "$folder/old" "$folder/out/file"
        ! "${write_new[@]}" "$folder/out/file" 2>"$folder/message" || fail "$kind: the disk was not full"
        cmp "$folder/old" "$folder/out/file"
        [ "$(ls -A "$folder/out")" = file ] || fail "a full disk leaves $(ls -A "$folder/out")"
        echo "$kind, full disk: $(tail -n 1 "$folder/message")"
        umount "$folder/out"
        remove_folder
    done
    trap - EXIT
}

case ${2:-} in
    named)
        kills_everywhere "$kills" "named files,"
        exit
        ;;
    full)
        full_disk
        exit
        ;;
esac
if unshare --map-root-user --mount true 2>/dev/null; then
    unshare --map-root-user --mount "$BASH" tests/scripts/kills.sh 0 full
else
    echo "kills.sh: this machine cannot make a small disk; none was filled" >&2
fi
if python3 -c "$no_unnamed_files" true; then
    kills_everywhere $((kills - kills / 2)) "files without a name,"
    python3 -c "$no_unnamed_files" "$BASH" tests/scripts/kills.sh $((kills / 2)) named
else
    echo "kills.sh: this machine cannot leave out files without a name; only those are tried" >&2
    kills_everywhere "$kills" "files without a name,"
fi
