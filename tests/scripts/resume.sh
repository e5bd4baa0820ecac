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
tokens=48
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. tests/scripts/models.sh
commands=("$edge" "$@")

# Texts of byte models break inside characters and inside this stop text.
stop=$(printf '\357\277\275%.0s' {1..16})
sampling=(--temperature 1.2 --top-p 0.9 --presence-penalty 0.3 --frequency-penalty 0.2 --penalty-decay 0.9)

# Runs the next piece of a text with a random build, level, number of threads and chunk, and appends what it writes.
piece() {
    local which=$((RANDOM % ${#commands[@]}))
    ((RANDOM % 2)) && which=0
    local found
    read -ra found <<<"${levels[which]}"
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

make_models
find_levels
cuts=0
runs=0
while ((cuts < splits)); do
    split "${models[runs % ${#models[@]}]}"
    runs=$((runs + 1))
done
echo "$runs runs of ${#models[@]} models, cut into $cuts pieces, by ${#commands[@]} builds: the same text and state"
