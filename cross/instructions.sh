#!/usr/bin/env bash
# Counts the instructions of one token, for every level of kernels that an emulated CPU has: the difference between runs of
# 12 and of 4 tokens, with one thread, divided by 8. A count, not a time: compare levels of one CPU with each other.
#
#   cross/instructions.sh [TARGET [CPU [MODEL]]]
#
# Needs a C compiler for instructions.c, and a qemu-user with plugins (6.0 or later; Debian's has them).
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-aarch64-unknown-linux-musl}
case $target in
    aarch64-*) cpu=${2:-cortex-a76} emulator=qemu-aarch64 ;;
    armv7-*) cpu=${2:-cortex-a7} emulator=qemu-arm ;;
    *) echo "cross/instructions.sh: no emulator for $target" >&2; exit 2 ;;
esac
model=${3:-models/fairy-int8.rwkv}
folder=${CARGO_TARGET_DIR:-target}
cross/build.sh "$target" >&2
cc -O2 -fPIC -shared -o "$folder/instructions.so" cross/instructions.c

emulated() {
    "$emulator" -plugin "$folder/instructions.so" -cpu "$cpu" "$folder/$target/release-lto/rwkv-edge" "$@"
}

count() {
    emulated run "$model" --prompt "Once upon a time" -n "$2" --temperature 0 --threads 1 --no-verify --isa "$1" \
        2>&1 >/dev/null | sed -n 's/^instructions //p'
}

echo "$target on $cpu, $model"
for level in $(emulated info "$model" 2>/dev/null | sed -n 's/.*this CPU has: \(.*\))/\1/p' | tr -d ,); do
    printf '%-8s %12d instructions per token\n' "$level" $((($(count "$level" 12) - $(count "$level" 4)) / 8))
done
