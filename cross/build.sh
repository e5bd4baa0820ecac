#!/usr/bin/env bash
# Builds what ships for one target, in the profile `release-lto`, and prints path and size.
#
#   cross/build.sh TARGET [--builtin-model] [--quantize]
#
# --builtin-model   with the model of models/ inside (8.8 MB more)
# --quantize        rwkv-quantize too
#
# Android targets use the NDK of ANDROID_NDK_HOME. Without one they are only linked, against stubs: see android-stubs.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
android_api=24

die() { echo "cross/build.sh: $*" >&2; exit 1; }

target=
features=cli
packages=(rwkv-edge)
for argument in "$@"; do
    case $argument in
        --builtin-model) features=cli,builtin-model ;;
        --quantize) packages+=(rwkv-quantize) ;;
        -*) die "unknown option $argument" ;;
        *) target=$argument ;;
    esac
done
folder=${CARGO_TARGET_DIR:-target}
link_check=
settings=()

case $target in
    aarch64-unknown-linux-musl) ;;
    armv7-unknown-linux-gnueabihf)
        command -v arm-linux-gnueabihf-gcc >/dev/null ||
            die "$target needs arm-linux-gnueabihf-gcc: apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"
        ;;
    aarch64-linux-android | armv7-linux-androideabi)
        name=$(tr a-z- A-Z_ <<<"$target")
        flags="-Crelocation-model=pic -Clink-arg=-Wl,-z,max-page-size=16384"
        if [ -n "${ANDROID_NDK_HOME:-}" ]; then
            # The NDK for macOS has programs for both kinds of Mac under this name.
            bin=$ANDROID_NDK_HOME/toolchains/llvm/prebuilt/$(uname -s | tr '[:upper:]' '[:lower:]')-x86_64/bin
            linker=$bin/${target/armv7-/armv7a-}$android_api-clang
            [ -x "$linker" ] || die "ANDROID_NDK_HOME=$ANDROID_NDK_HOME has no $linker"
        else
            link_check=yes
            folder=$folder/link-check
            linker=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
            flags="-Crelocation-model=pic $(cross/android-stubs.sh "$target" "$folder/stubs/$target")"
        fi
        export "CARGO_TARGET_${name}_LINKER=$linker" "CARGO_TARGET_${name}_RUSTFLAGS=$flags"
        ;;
    *)
        die "the target is one of aarch64-unknown-linux-musl, armv7-unknown-linux-gnueabihf, aarch64-linux-android and" \
            "armv7-linux-androideabi"
        ;;
esac
[ -f "cross/targets/$target.toml" ] && settings=(--config "cross/targets/$target.toml")

rustup target add "$target" ||
    die "rustup has no standard library for $target here; cargo +nightly -Zbuild-std builds one from source"

for package in "${packages[@]}"; do
    arguments=(-p "$package")
    [ "$package" = rwkv-edge ] && arguments+=(--no-default-features --features "$features")
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

# What Android's loader refuses.
check_android() {
    local header interpreter=/system/bin/linker
    [[ $target == aarch64-* ]] && interpreter=/system/bin/linker64
    header=$(readelf -hldW "$1")
    grep -q 'Type: *DYN' <<<"$header" || die "$1 is not position-independent"
    grep -q "interpreter: $interpreter]" <<<"$header" || die "$1 does not ask for $interpreter"
    ! grep -q TEXTREL <<<"$header" || die "$1 has text relocations"
    echo "position-independent, for $interpreter, no text relocations; needs" \
        "$(sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' <<<"$header" | paste -sd ' ' -)"
}

# The binary needs nothing of the system that it runs on.
check_static() {
    local header
    header=$(readelf -lW "$1")
    ! grep -q INTERP <<<"$header" || die "$1 is not static"
    echo "static"
}

for package in "${packages[@]}"; do
    binary=$folder/$target/release-lto/$package
    echo "$binary: $(wc -c <"$binary" | tr -d ' ') bytes"
    # macOS has no readelf.
    command -v readelf >/dev/null || continue
    check_pages "$binary"
    case $target in *android*) check_android "$binary" ;; *) check_static "$binary" ;; esac
done
if [ -n "$link_check" ]; then
    echo "LINK CHECK ONLY, DO NOT SHIP: linked against stubs, because ANDROID_NDK_HOME is not set. It shows that the"
    echo "code compiles and needs nothing that Android lacks at API level $android_api. Nothing was run."
fi
