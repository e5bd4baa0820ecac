#!/usr/bin/env bash
# Tests the ARM binaries on emulated CPUs. Without arguments: every row of the table below.
#
#   cross/test.sh [TARGET [CPU]]
#
# Each row runs, in release: the kernels' tests, with an assertion of the level that the CPU must get; the logits' digests that
# are stored in the repository; and the binary that ships, alone in an empty folder with one model file, which must reproduce
# the logits that another machine recorded and print the text that this machine prints. Rows marked `all`, one for each
# target, also run the tests against float64 equations, of determinism, allocations and the command line.
#
# Emulation proves results and the instructions used. It says nothing about speed.
set -euo pipefail
cd "$(dirname "$0")/.."

# target, CPU, the level of kernels it must get, which tests
matrix='
aarch64-unknown-linux-musl     cortex-a53  neon    few
aarch64-unknown-linux-musl     cortex-a72  neon    few
aarch64-unknown-linux-musl     cortex-a76  dotprod all
aarch64-unknown-linux-musl     max         i8mm    few
armv7-unknown-linux-gnueabihf  cortex-a7   neon32  all
armv7-unknown-linux-gnueabihf  cortex-a15  neon32  few
armv7-unknown-linux-gnueabihf  cortex-a9   scalar  few
'

only_target=${1:-}
only_cpu=${2:-}
few=(--test kernels --test digests)
all=("${few[@]}" --test golden --test determinism --test no_alloc --test cli)
prompt=(--prompt "Once upon a time" -n 8 --temperature 0)
folder=$PWD/target
[ -z "${CARGO_TARGET_DIR:-}" ] || folder=$(mkdir -p "$CARGO_TARGET_DIR" && cd "$CARGO_TARGET_DIR" && pwd)
alone=$(mktemp -d)
trap 'rm -rf "$alone"' EXIT

fail() { echo "cross/test.sh: $*" >&2; exit 1; }

# Compiles everything at once, so that the rows only run.
build() {
    cross/build.sh "$target"
    run_tests "${all[@]}" --no-run
}

run_tests() {
    cargo test --quiet --release --target "$target" --config "cross/targets/$target.toml" \
        --config "target.$target.runner = '$runner'" -p rwkv-edge-kernels -p rwkv-edge "$@"
}

binary_alone() {
    local info text
    rm -rf "${alone:?}"/*
    cp "$folder/$target/release-lto/rwkv-edge" models/fairy-int8.rwkv "$alone"
    # Word splitting: the emulator and its arguments.
    # shellcheck disable=SC2086
    info=$(cd "$alone" && $runner ./rwkv-edge info fairy-int8.rwkv --verify)
    grep -q '^self-test  *ok$' <<<"$info" || fail "$target on $cpu: the self-test failed"
    grep -Eq "^kernels +$level\b" <<<"$info" || fail "$target on $cpu: $(grep '^kernels' <<<"$info"), expected $level"
    # shellcheck disable=SC2086
    text=$(cd "$alone" && $runner ./rwkv-edge run fairy-int8.rwkv "${prompt[@]}" 2>/dev/null)
    [ "$text" = "$expected" ] || fail "$target on $cpu prints \"$text\", this machine \"$expected\""
}

expected=$(cargo run --quiet --release -- run models/fairy-int8.rwkv "${prompt[@]}" 2>/dev/null)
built=
rows=0
while read -r target cpu level tests; do
    [ -n "$target" ] || continue
    [ -z "$only_target" ] || [ "$only_target" = "$target" ] || continue
    [ -z "$only_cpu" ] || [ "$only_cpu" = "$cpu" ] || continue
    case $target in
        aarch64-*) runner="qemu-aarch64 -cpu $cpu" ;;
        armv7-*) runner="qemu-arm -cpu $cpu" ;;
    esac
    export RWKV_EDGE_EXPECT_ISA=$level RWKV_EDGE_RUNNER=$runner
    [ "$built" = "$target" ] || build </dev/null
    built=$target
    SECONDS=0
    if [ "$tests" = all ]; then
        run_tests "${all[@]}" </dev/null
    else
        # The kernels' comparisons with float64 take long and depend on the level, not on the CPU.
        run_tests "${few[@]}" -- --skip reference </dev/null
    fi
    binary_alone </dev/null
    echo "$target on $cpu: $level kernels, $tests tests, self-test and text agree with this machine, $SECONDS s"
    rows=$((rows + 1))
done <<<"$matrix"
[ "$rows" -gt 0 ] || fail "no such target and CPU in the table"
