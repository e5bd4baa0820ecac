#!/usr/bin/env bash
# Counts the instructions of a token that is decoded, and of one of a prompt, for every level of kernels that an emulated CPU
# has: the difference between runs of 12 and of 4 tokens, with one thread, divided by 8; and between prompts of 192 and of 64
# tokens, divided by 128. A count, not a time: compare levels of one CPU with each other.
#
#   cross/instructions.sh [--against COMMIT] [TARGET [CPU [MODEL]]]
#
# --against COMMIT   counts those of another commit too, built in a folder of its own, and prints both side by side
#
# Needs a C compiler for instructions.c, and a qemu-user with plugins (6.0 or later; Debian's has them).
set -euo pipefail
cd "$(dirname "$0")/.."
against=
if [ "${1:-}" = --against ]; then
    against=$(git rev-parse --verify --short "${2:?cross/instructions.sh: --against which commit?}^{commit}")
    shift 2
fi
target=${1:-aarch64-unknown-linux-musl}
case $target in
    aarch64-*) cpu=${2:-cortex-a76} emulator=qemu-aarch64 ;;
    armv7-*) cpu=${2:-cortex-a7} emulator=qemu-arm ;;
    *) echo "cross/instructions.sh: no emulator for $target" >&2; exit 2 ;;
esac
model=${3:-models/fairy7-int8.rwkv}
folder=${CARGO_TARGET_DIR:-target}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cc -O2 -fPIC -shared -o "$folder/instructions.so" cross/instructions.c

# Builds the sources in folder $1, below $2, and prints where the binary is.
build() {
    (cd "$1" && CARGO_TARGET_DIR=$2 cross/build.sh "$target") >&2
    echo "$2/$target/release-lto/rwkv-edge"
}

# The binary of another commit.
build_commit() {
    local sources=$folder/against/sources
    rm -rf "$sources" && mkdir -p "$sources"
    git archive "$1" | tar -x -C "$sources"
    build "$sources" "$folder/against"
}

emulated() { "$emulator" -plugin "$folder/instructions.so" -cpu "$cpu" "$@"; }

levels() { emulated "$1" info "$model" 2>/dev/null | sed -n 's/.*this CPU has: \(.*\))/\1/p' | tr -d ,; }

# Instructions of a command of the binary $1 with the kernels $2.
count() {
    emulated "$1" "${@:3}" --threads 1 --no-verify --isa "$2" 2>&1 >/dev/null | sed -n 's/^instructions //p'
}

decode() { count "$1" "$2" run "$model" --prompt "Once upon a time" -n "$3" --temperature 0; }

prompt() { count "$1" "$2" logits "$model" --tokens "$(seq -s , "$3")"; }

# Instructions of a token of each kind.
per_token() {
    echo $((($(decode "$1" "$2" 12) - $(decode "$1" "$2" 4)) / 8)) \
        $((($(prompt "$1" "$2" 192) - $(prompt "$1" "$2" 64)) / 128))
}

binary=$(build . "$folder")
other=
[ -z "$against" ] || other=$(build_commit "$against")
echo "$target on $cpu, $model, instructions per token decoded and per token of a prompt${against:+, each beside $against}"
for level in $(levels "$binary"); do
    now=$(per_token "$binary" "$level")
    then=
    if [ -n "$other" ] && [[ " $(levels "$other" | tr '\n' ' ') " == *" $level "* ]]; then
        then=$(per_token "$other" "$level")
    fi
    awk -v level="$level" -v now="$now" -v then="$then" 'BEGIN {
        printf "%-8s", level
        split(then, old)
        for (i = 1; i <= split(now, new); i++) {
            printf " %12d", new[i]
            if (then != "") printf " %12d %+7.2f %%", old[i], 100 * (new[i] / old[i] - 1)
        }
        print "" }'
done
