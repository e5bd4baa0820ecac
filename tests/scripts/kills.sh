#!/usr/bin/env bash
# kills.sh [N]: kills N conversions (1000 by default) with HUP, TERM or KILL at random times, over an old model or to a
# new name, on a disk and in memory, with and without files that have no name. Each must leave the old or the new file
# whole, and nothing else once the next run has ended.
# Takes the program from RWKV_QUANTIZE, or else from target/release.
set -euo pipefail
cd "$(dirname "$0")/../.."
kills=${1:-1000}
quantize=${RWKV_QUANTIZE:-target/release/rwkv-quantize}
signals=(HUP TERM KILL)

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

int8=(models/fairy7.pth --type int8 --tokenizer models/fairy_vocab.txt --start-token 0 --threads 1)

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

# Fails unless the folder $2 has, besides what a killed run left, the model $1/new, or $1/old if there was one.
check_whole() {
    if [ ! -e "$2/m.rwkv" ]; then
        ((had_old)) && fail "the old file is gone"
        none=$((none + 1))
    elif cmp -s "$1/new" "$2/m.rwkv"; then
        new=$((new + 1))
    elif ((had_old)) && cmp -s "$1/old" "$2/m.rwkv"; then
        old=$((old + 1))
    else
        fail "the file is neither the old nor the new one"
    fi
}

# Kills $1 conversions in the folder $2.
kills_in() {
    local duration had_old pause pid random signal none=0 old=0 new=0 removed=0
    mkdir "$2/out"
    "$quantize" "${int8[@]/int8/int4}" "$2/old" 2>/dev/null
    duration=$(microseconds)
    "$quantize" "${int8[@]}" "$2/new" 2>/dev/null
    duration=$(($(microseconds) - duration))
    for ((i = 0; i < $1; i++)); do
        rm -f "$2/out/m.rwkv"
        had_old=$((RANDOM % 2))
        ((had_old)) && cp "$2/old" "$2/out/m.rwkv"
        signal=${signals[RANDOM % 3]}
        draw_pause "$duration"
        "$quantize" "${int8[@]}" "$2/out/m.rwkv" 2>/dev/null &
        pid=$!
        sleep "$pause"
        {
            kill -s "$signal" "$pid" || true
            wait "$pid" || true
        } 2>/dev/null
        check_whole "$2" "$2/out"
        [ "$(find "$2/out" -mindepth 1 ! -name m.rwkv)" ] || continue
        removed=$((removed + 1))
        "$quantize" "${int8[@]}" "$2/out/m.rwkv" 2>/dev/null
        cmp "$2/new" "$2/out/m.rwkv"
        [ "$(ls -A "$2/out")" = m.rwkv ] || fail "the next run leaves $(ls -A "$2/out")"
    done
    echo "$3 $2: $1 kills left $none times nothing, $old the old file, $new the new one;" \
        "$removed times a temporary file for the next run to remove"
}

# Kills $1 conversions on all file systems.
kills_everywhere() {
    local places=("${TMPDIR:-/tmp}") place
    [ -d /dev/shm ] && places+=(/dev/shm)
    for place in "${places[@]}"; do
        folder=$(mktemp -d -p "$place")
        trap 'rm -rf "$folder"' EXIT
        kills_in $((($1 + ${#places[@]} - 1) / ${#places[@]})) "$folder" "$2"
        rm -rf "$folder"
    done
}

if [ "${2:-}" = named ]; then
    kills_everywhere "$kills" "named files,"
    exit
fi
if python3 -c "$no_unnamed_files" true; then
    kills_everywhere $((kills - kills / 2)) "files without a name,"
    python3 -c "$no_unnamed_files" "$BASH" tests/scripts/kills.sh $((kills / 2)) named
else
    echo "kills.sh: this machine cannot leave out files without a name; only those are tried" >&2
    kills_everywhere "$kills" "files without a name,"
fi
