#!/usr/bin/env bash
# chunks.sh [ROUNDS] [COMMAND...]: the logits of a text must not depend on how it is cut. Feeds random tokens to a model of
# every version and type, in chunks of 1 to 130 tokens, ROUNDS sizes in their order from a random one (780 by default: each
# size six times), with a random level and number of threads, and compares the logits after every token with those of token
# by token. A COMMAND is another build of rwkv-edge, such as 'qemu-aarch64 rwkv-edge', which then takes every other turn.
# Then feeds ROUNDS random batches of texts of different lengths, with random chunks and threads.
# Takes programs from RWKV_EDGE and RWKV_QUANTIZE, or else from target/release.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-780}
shift || true
largest=130
start=$RANDOM
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. tests/scripts/models.sh
commands=("$edge" "$@")

# tokens COUNT N_VOCAB: random ids, separated by commas.
tokens() {
    local i list=
    for ((i = 0; i < $1; i++)); do list+=,$(((RANDOM * 32768 + RANDOM) % $2)); done
    echo "${list#,}"
}

make_models
find_levels

for ((round = 0; round < rounds; round++)); do
    model=${models[round % ${#models[@]}]}
    which=$((round % ${#commands[@]}))
    read -ra found <<<"${levels[which]}"
    n_vocab=$("$edge" info "$model" | sed -n 's/^n_vocab *//p')
    chunk=$(((start + round) % largest + 1))
    # Chunks of every size end with a part of a chunk.
    ids=$(tokens $((2 * chunk + RANDOM % chunk + 1)) "$n_vocab")
    "$edge" logits "$model" --tokens "$ids" --all --binary --threads 1 --prompt-chunk 1 >"$work/expected"
    how=(--isa "${found[RANDOM % ${#found[@]}]}" --threads $((RANDOM % 4 + 1)) --prompt-chunk "$chunk")
    # shellcheck disable=SC2086
    ${commands[which]} logits "$model" --tokens "$ids" --all --binary "${how[@]}" >"$work/found" 2>"$work/errors" ||
        fail "${commands[which]} ${model##*/} ${how[*]}: $(cat "$work/errors")"
    cmp -s "$work/expected" "$work/found" || fail "${commands[which]} ${model##*/} --tokens $ids ${how[*]}: other logits"
done
echo "$rounds texts of ${#models[@]} models, by ${#commands[@]} builds: the same logits in chunks as token by token"

RWKV_EDGE_BATCHES=$rounds cargo test --locked -p rwkv-edge --test integration -- \
    random_batches_give_each_text_the_bits_that_it_gets_alone
