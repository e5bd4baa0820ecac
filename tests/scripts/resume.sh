#!/usr/bin/env bash
# resume.sh [SPLITS] [COMMAND...]: runs that are split must write what the whole run writes, and end in the same state
# file. Cuts a run of every version and type at random places, SPLITS cuts (500 by default), and goes on with a random
# level, number of threads and chunk. A COMMAND is another build of rwkv-edge, such as 'qemu-aarch64 rwkv-edge'; every
# other piece of a run is then its.
# Takes programs from RWKV_EDGE and RWKV_QUANTIZE, or else from target/release.
set -euo pipefail
cd "$(dirname "$0")/../.."
splits=${1:-500}
shift || true
edge=${RWKV_EDGE:-target/release/rwkv-edge}
quantize=${RWKV_QUANTIZE:-target/release/rwkv-quantize}
commands=("$edge" "$@")
tokens=48
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "resume.sh: $*" >&2
    exit 1
}

# Texts of byte models break inside characters and inside this stop text.
stop=$(printf '\357\277\275%.0s' {1..16})
sampling=(--temperature 1.2 --top-p 0.9 --presence-penalty 0.3 --frequency-penalty 0.2 --penalty-decay 0.9)

# The levels that command number $1 can run.
declare -A levels
levels_of() {
    if [ -z "${levels[$1]:-}" ]; then
        # shellcheck disable=SC2086
        levels[$1]=$(${commands[$1]} info models/fairy7-int8.rwkv | sed -n 's/^kernels.*CPU has: \(.*\))$/\1/p' | tr -d ,)
    fi
    read -ra found <<<"${levels[$1]}"
}

# Runs the next piece of a text with a random build, level, number of threads and chunk, and appends what it writes.
piece() {
    local which=$((RANDOM % ${#commands[@]}))
    ((RANDOM % 2)) && which=0
    levels_of "$which"
    local how=(--isa "${found[RANDOM % ${#found[@]}]}" --threads $((RANDOM % 3 + 1)) --prompt-chunk $((RANDOM % 9 + 1)))
    # shellcheck disable=SC2086
    ${commands[$which]} run "$@" "${how[@]}" >>"$work/found" 2>"$work/errors" ||
        fail "$* ${how[*]}: $(cat "$work/errors")"
    generated=$(sed -n 's/^generation: \([0-9]*\) .*/\1/p' "$work/errors")
}

# Cuts a run of the model $1 once or several times.
split() {
    local left=$tokens seed=$RANDOM n
    local begin=(-p "Once upon a time" --seed "$seed" "${sampling[@]}")
    "$edge" run "$1" "${begin[@]}" --stop "$stop" -n "$tokens" --save-state "$work/whole" >"$work/expected" 2>/dev/null
    : >"$work/found"
    rm -f "$work/state"
    if ((RANDOM % 4 == 0)); then
        # The prompt alone is baked; the sampling begins with the first piece.
        printf 'Once upon a time' >"$work/prompt"
        # shellcheck disable=SC2086
        ${commands[-1]} bake "$1" -f "$work/prompt" -o "$work/state" 2>/dev/null
        begin=(--state "$work/state" --seed "$seed" "${sampling[@]}")
    fi
    while ((left > 0)); do
        n=$((RANDOM % left + 1))
        piece "$1" "${begin[@]}" --stop "$stop" -n "$n" --save-state "$work/state"
        begin=(--state "$work/state")
        cuts=$((cuts + 1))
        # A stop rule has ended the text.
        ((generated < n)) && break
        left=$((left - n))
    done
    cmp -s "$work/expected" "$work/found" || fail "$1, seed $seed: the text differs"
    cmp -s "$work/whole" "$work/state" || fail "$1, seed $seed: the state differs"
}

mkdir "$work/models"
for version in v4 v5.0 v5.1 v5.2 v6 v7 v7a; do
    for type in f32 f16 int8 int4; do
        "$quantize" "tests/fixtures/$version-tiny.pth" "$work/models/$version-$type.rwkv" --type "$type" 2>/dev/null
    done
done
cp models/fairy7-int8.rwkv "$work/models"
mapfile -t models < <(shuf -e "$work"/models/*)
cuts=0
runs=0
while ((cuts < splits)); do
    split "${models[runs % ${#models[@]}]}"
    runs=$((runs + 1))
done
echo "$runs runs of ${#models[@]} models, cut into $cuts pieces, by ${#commands[@]} builds: the same text and state"
