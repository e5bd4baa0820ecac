#!/usr/bin/env bash
# Builds what ships for one target, in the profile `release-lto`, and prints path and size.
#
#   cross/build.sh TARGET [--builtin-model] [--quantize]
#
# --builtin-model   with the model of models/ inside (9.2 MB more)
# --quantize        rwkv-quantize too
#
# Android targets use the NDK of ANDROID_NDK_HOME. Without one, android-sysroot.sh makes what the linker needs.
set -euo pipefail
cd "$(dirname "$0")/.."
android_api=24

die() { echo "cross/build.sh: $*" >&2; exit 1; }

target=
model=(--no-default-features)
programs=(rwkv-edge)
for argument in "$@"; do
    case $argument in
        --builtin-model) model=() ;;
        --quantize) programs+=(rwkv-quantize) ;;
        -*) die "unknown option $argument" ;;
        *) target=$argument ;;
    esac
done
folder=${CARGO_TARGET_DIR:-target}
settings=()

case $target in
    aarch64-unknown-linux-musl) ;;
    armv7-unknown-linux-gnueabihf)
        command -v arm-linux-gnueabihf-gcc >/dev/null ||
            die "$target needs arm-linux-gnueabihf-gcc: apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"
        ;;
    aarch64-linux-android | armv7-linux-androideabi)
        name=$(tr a-z- A-Z_ <<<"$target")
        if [ -n "${ANDROID_NDK_HOME:-}" ]; then
            # The NDK for macOS has programs for both kinds of Mac under this name.
            toolchain=$ANDROID_NDK_HOME/toolchains/llvm/prebuilt/$(uname -s | tr '[:upper:]' '[:lower:]')-x86_64
            linker=$toolchain/bin/${target/armv7-/armv7a-}$android_api-clang
            [ -x "$linker" ] || die "ANDROID_NDK_HOME=$ANDROID_NDK_HOME has no $linker"
            android_libraries=$toolchain/sysroot/usr/lib/${target/armv7-/arm-}/$android_api
            export "CARGO_TARGET_${name}_LINKER=$linker"
            flags="-Crelocation-model=pic -Clink-arg=-Wl,-z,max-page-size=16384"
        else
            sysroot=$(cross/android-sysroot.sh "$target" "$android_api" "$folder/android")
            { read -r android_libraries; read -r flags; } <<<"$sysroot"
        fi
        export "CARGO_TARGET_${name}_RUSTFLAGS=$flags"
        ;;
    *)
        die "the target is one of aarch64-unknown-linux-musl, armv7-unknown-linux-gnueabihf, aarch64-linux-android and" \
            "armv7-linux-androideabi"
        ;;
esac
[ -f "cross/targets/$target.toml" ] && settings=(--config "cross/targets/$target.toml")

rustup target add "$target" ||
    die "rustup has no standard library for $target here; cargo +nightly -Zbuild-std builds one from source"

for program in "${programs[@]}"; do
    case $program in
        rwkv-edge) arguments=(-p rwkv-edge-cli ${model[@]+"${model[@]}"}) ;;
        *) arguments=(-p "$program") ;;
    esac
    cargo build --profile release-lto --target "$target" --target-dir "$folder" ${settings[@]+"${settings[@]}"} \
        "${arguments[@]}"
done

# What a device with pages of 16 KiB refuses: Android 15, a Raspberry Pi 5.
check_pages() {
    local align
    for align in $(readelf -lW "$1" | awk '$1 == "LOAD" { print $NF }'); do
        [ $((align)) -ge 16384 ] || die "$1 has segments aligned to $align"
    done
}

# The binary needs nothing of the system that it runs on.
check_static() {
    local header
    header=$(readelf -lW "$1")
    ! grep -q INTERP <<<"$header" || die "$1 is not static"
    echo "static"
}

for program in "${programs[@]}"; do
    binary=$folder/$target/release-lto/$program
    echo "$binary: $(wc -c <"$binary" | tr -d ' ') bytes"
    # macOS has no readelf.
    command -v readelf >/dev/null || continue
    check_pages "$binary"
    case $target in
        *android*) cross/android-check.sh "$target" "$android_api" "$android_libraries" "$binary" ;;
        *) check_static "$binary" ;;
    esac
done
