#!/usr/bin/env bash
# Builds a static binary for TARGET and lets an emulated CPU verify the built-in model: every checksum, and the logits
# that the converter recorded on another machine, bit for bit. Fails if others than KERNELS would run.
#
#   cross/emulate.sh aarch64-unknown-linux-musl cortex-a72 neon
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
cpu=$2
kernels=$3
case $target in
    aarch64-*) emulator=qemu-aarch64 ;;
    armv7-*) emulator=qemu-arm ;;
    *) echo "unknown target $target" >&2; exit 2 ;;
esac
rustup target add "$target"
cargo build --release --target "$target" --config "cross/targets/$target.toml"
output=$("$emulator" -cpu "$cpu" "target/$target/release/rwkv-edge" info --verify --threads 2)
grep -q '^self-test         ok$' <<<"$output"
grep "^kernels  *$kernels " <<<"$output"
echo "$target on $cpu: self-test ok"
