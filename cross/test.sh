#!/usr/bin/env bash
# Tests for ARM on emulated CPUs, every row of the table below.
#
#   cross/test.sh [--sample] [TARGET [CPU]]
#
# `--sample` leaves out the rows marked `full`, most of which have the level of a weaker CPU, the tests marked `full-kernels`, and
# the converter of 64-bit ARM.
#
# Each row runs what ships: the binary alone in an empty folder with one model file, which must get the level of kernels of that
# CPU, reproduce the logits that another machine recorded and print the text that this machine prints; and `cross/board`, which
# must find the logits' digests of every version and type that this machine finds, whatever the thread count and the cut of the
# prompt, without allocating. It does so at the CPU's level, in the row marked `scalar` at that one too. Models are converted
# here and carried. Rows marked `kernels` run the kernels' own tests too: each
# level on the weakest CPU that has it, without the operations that it takes from a weaker level. Rows marked `programs`, one
# for each target, run the command line's tests against that binary, continue runs there that were saved here and back, and
# compare files that the converter makes there with those made here.
#
# Emulation proves results and the instructions used. It says nothing about speed.
set -euo pipefail
cd "$(dirname "$0")/.."

# target, CPU, the level of kernels it must get, what else runs
matrix='
aarch64-unknown-linux-musl     cortex-a53  neon    kernels+scalar
aarch64-unknown-linux-musl     cortex-a72  neon    full
aarch64-unknown-linux-musl     cortex-a76  dotprod kernels+programs
aarch64-unknown-linux-musl     max         i8mm    full-kernels
armv7-unknown-linux-gnueabihf  cortex-a7   neon32  kernels+programs
armv7-unknown-linux-gnueabihf  cortex-a15  neon32  full
armv7-unknown-linux-gnueabihf  cortex-a9   scalar  full
'

sample=
if [ "${1:-}" = --sample ]; then
    sample=1
    shift
fi
only_target=${1:-}
only_cpu=${2:-}
prompt=(--prompt "Once upon a time" -n 8 --temperature 0)
folder=$PWD/target
[ -z "${CARGO_TARGET_DIR:-}" ] || folder=$(mkdir -p "$CARGO_TARGET_DIR" && cd "$CARGO_TARGET_DIR" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/models" "$work/alone"

fail() { echo "cross/test.sh: $*" >&2; exit 1; }

host() { cargo run --quiet --locked --release "$@"; }

# Converts the fixture $2 to the type $3 with the converter $1, into the file $4.
convert() {
    local type=(--type "$3")
    case $3 in
        int4) type=(--type int4 --codes linear) ;;
        int4n) type=(--type int4 --codes table --calib none) ;;
        fed) type=(--type int4 --effort high --calib "$work/calibration.txt") ;;
    esac
    # Word splitting: the emulator, its arguments and the program.
    # shellcheck disable=SC2086
    $1 "tests/fixtures/$2-tiny.pth" "$4" "${type[@]}" 2>/dev/null
}

# The models, what this machine computes of them, and the text that it prints.
prepare() {
    cargo build --quiet --locked --release -p rwkv-quantize
    cp models/fairy7-int8.rwkv "$work/models"
    head -c 1000 LICENSE >"$work/calibration.txt"
    local version dtype
    for version in v4 v5.0 v5.1 v5.2 v6 v7 v7a; do
        for dtype in f32 f16 int8 int4 int4n; do
            convert "$folder/release/rwkv-quantize" "$version" "$dtype" "$work/models/$version-$dtype.rwkv"
        done
    done
    host -p board-check scalar "$work"/models/*.rwkv >"$work/expected"
    # The digests in the repository stand in lines `VERSION TYPE DIGEST`.
    diff <(awk '{ sub("-", " ", $1); print $1, $2 }' "$work/expected" | sort) <(sort tests/fixtures/digests.txt) ||
        fail "this machine does not compute the digests of tests/fixtures/digests.txt"
    text=$(host -- run models/fairy7-int8.rwkv "${prompt[@]}" 2>/dev/null)
}

# Whether the converter runs on this target too.
converts() { [ -z "$sample" ] || [[ $target = armv7-* ]]; }

# Compiles everything at once, so that the rows only run.
build() {
    local quantize=()
    ! converts || quantize=(--quantize)
    cross/build.sh "$target" ${quantize[@]+"${quantize[@]}"}
    cross cargo build -p board-check
    cross cargo test --no-run -p rwkv-edge-kernels --test kernels
}

# Adds the options for the target to a cargo command.
cross() {
    "$1" "$2" --quiet --locked --release --target "$target" --config "cross/targets/$target.toml" \
        --config "target.$target.runner = '$runner'" "${@:3}"
}

binary_alone() {
    local info found
    rm -rf "$work"/alone/*
    cp "$binary" models/fairy7-int8.rwkv "$work/alone"
    # shellcheck disable=SC2086
    info=$(cd "$work/alone" && $runner ./rwkv-edge info fairy7-int8.rwkv --verify)
    grep -q '^self-test  *ok$' <<<"$info" || fail "$target on $cpu: the self-test failed"
    grep -Eq "^kernels +$level\b" <<<"$info" || fail "$target on $cpu: $(grep '^kernels' <<<"$info"), expected $level"
    # shellcheck disable=SC2086
    found=$(cd "$work/alone" && $runner ./rwkv-edge run fairy7-int8.rwkv "${prompt[@]}" 2>/dev/null)
    [ "$found" = "$text" ] || fail "$target on $cpu prints \"$found\", this machine \"$text\""
}

# Two at a time, as the models are too small for several threads to help.
digests() {
    local levels=$level
    [[ $more != *scalar* ]] || levels=scalar,$level
    # shellcheck disable=SC2086
    printf '%s\n' "$work"/models/*.rwkv |
        xargs -P 2 -n 1 $runner "$folder/$target/release/board-check" "$levels" | sort >"$work/found"
    diff <(sort "$work/expected") "$work/found" || fail "$target on $cpu: the digests differ from those of this machine"
}

kernels() {
    # Comparisons with float64 take long and are of the scalar kernels.
    local skip=()
    [ "$level" = dotprod ] || [ "$level" = i8mm ] && skip=(--skip reference)
    RWKV_EDGE_EXPECT_ISA=$level cross cargo test -p rwkv-edge-kernels --test kernels -- ${skip[@]+"${skip[@]}"}
}

programs() {
    RWKV_EDGE_RUNNER=$runner RWKV_EDGE_BINARY=$binary \
        cargo test --quiet --locked --workspace --test integration -- commands:: input:: signals:: streams::
    RWKV_EDGE=$folder/release/rwkv-edge RWKV_QUANTIZE=$folder/release/rwkv-quantize tests/scripts/resume.sh 40 "$runner $binary"
    converts || return 0
    local model
    for model in v4-int8 v6-f16 v7-int4n; do
        convert "$runner ${binary%/*}/rwkv-quantize" "${model%-*}" "${model#*-}" "$work/converted.rwkv"
        cmp "$work/converted.rwkv" "$work/models/$model.rwkv" || fail "$target on $cpu converts $model to other bytes"
        rm "$work/converted.rwkv"
    done
    # Activations, their moments and error feedback.
    convert "$folder/release/rwkv-quantize" v7 fed "$work/expected.rwkv"
    convert "$runner ${binary%/*}/rwkv-quantize" v7 fed "$work/converted.rwkv"
    cmp "$work/converted.rwkv" "$work/expected.rwkv" || fail "$target on $cpu rounds with other errors"
    rm "$work/converted.rwkv" "$work/expected.rwkv"
}

prepare
built=
rows=0
while read -r target cpu level more; do
    [ -n "$target" ] || continue
    [ -z "$only_target" ] || [ "$only_target" = "$target" ] || continue
    [ -z "$only_cpu" ] || [ "$only_cpu" = "$cpu" ] || continue
    [ -z "$sample" ] || [[ $more != full ]] || continue
    case $target in
        aarch64-*) runner="qemu-aarch64 -cpu $cpu" ;;
        armv7-*) runner="qemu-arm -cpu $cpu" ;;
    esac
    binary=$folder/$target/release-lto/rwkv-edge
    started=$SECONDS
    if [ "$built" != "$target" ]; then
        build </dev/null
        built=$target
        echo "$target: built in $((SECONDS - started)) s"
        started=$SECONDS
    fi
    binary_alone </dev/null
    digests </dev/null
    [ -z "$sample" ] || [[ $more != *full-kernels* ]] || more=digests
    [[ $more != *kernels* ]] || kernels </dev/null
    [[ $more != *programs* ]] || programs </dev/null
    echo "$target on $cpu: $level kernels agree with this machine ($more), $((SECONDS - started)) s"
    rows=$((rows + 1))
done <<<"$matrix"
[ "$rows" -gt 0 ] || fail "no such target and CPU in the table"
