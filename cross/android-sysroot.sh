#!/usr/bin/env bash
# Makes what the linker needs for an Android binary where no NDK is. Prints the folder, then the
# compiler's options to link with it.
#
#   cross/android-sysroot.sh TARGET API FOLDER
#
# libc.so, libm.so, libdl.so, liblog.so: names without code, which is what a linker reads of a shared
# library. They are those of android-symbols.txt up to level API: a program that needs a later one
# does not link.
# crtbegin.o: the few instructions before `main`, and the note with the API level.
# libunwind.a: the crate of unwind/.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
api=$2
# A changed sysroot has another path, or cargo would not link again.
inputs=(cross/android-sysroot.sh cross/android-symbols.txt cross/unwind/Cargo.* cross/unwind/src/*)
version=$(cat "${inputs[@]}" | cksum | cut -d ' ' -f 1)
folder=$3/$target-$api-$version
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
lld=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld

# `__libc_init` takes the stack pointer, nothing, main, and arrays of constructors and destructors.
# The arrays are empty: the loader runs the constructors, and Rust has no destructors. Frame and
# return address are zero: a backtrace ends here.
case $target in
    aarch64-*)
        loader=/system/bin/linker64
        return=ret
        start='mov x29, #0
               mov x30, #0
               mov x0, sp
               mov x1, #0
               adrp x2, main
               add x2, x2, :lo12:main
               adrp x3, arrays
               add x3, x3, :lo12:arrays
               b __libc_init'
        ;;
    armv7-*)
        loader=/system/bin/linker
        return='bx lr'
        start='.arm
               mov r11, #0
               mov lr, #0
               mov r0, sp
               mov r1, #0
               ldr r2, main_offset
               ldr r3, arrays_offset
            1: add r2, pc, r2
            2: add r3, pc, r3
               b __libc_init
               main_offset: .word main - (1b + 8)
               arrays_offset: .word arrays - (2b + 8)'
        ;;
    *) echo "android-sysroot.sh: no Android target: $target" >&2; exit 1 ;;
esac
rustup target add "$target" >&2

# rustc as an assembler: the one that is always there.
assemble() {
    { echo '#![no_std]'; echo "core::arch::global_asm!(r#\""; cat; echo '"#);'; } >"$folder/$1.rs"
    rustc --target "$target" --crate-type lib --emit obj -o "$folder/$1.o" "$folder/$1.rs"
}

functions() {
    while read -r name; do
        printf '.globl %s\n.type %s, %%function\n%s: %s\n' "$name" "$name" "$name" "$return"
    done
}

for library in libc libm libdl liblog; do
    awk -v library=$library -v api="$api" '$2 == library && $3 <= api { print $1 }' cross/android-symbols.txt |
        { echo .text; functions; } | assemble $library
    "$lld" -flavor gnu -shared -soname $library.so -o "$folder/$library.so" "$folder/$library.o"
done

# The note has the layout of the NDK's: the level, and 64 bytes each for the NDK's release and build,
# which are empty.
assemble crtbegin <<CRT
.text
.globl _start
.type _start, %function
_start: $start
.section .rodata, "a"
.balign 8
arrays: .zero 64
.section .note.android.ident, "a", %note
.balign 4
.word 8, 4 + 64 + 64, 1
.asciz "Android"
.word $api
.zero 64 + 64
CRT

cargo build --release --locked --manifest-path cross/unwind/Cargo.toml --target "$target" --target-dir "$3/unwind" >&2
cp "$3/unwind/$target/release/libunwind.a" "$folder"

echo "$folder"
echo "-Clinker=$lld -Clinker-flavor=ld.lld -Crelocation-model=pic -Clink-arg=$folder/crtbegin.o -Clink-arg=-L$folder" \
    "-Clink-arg=-pie -Clink-arg=--dynamic-linker=$loader -Clink-arg=-zmax-page-size=16384 -Clink-arg=--no-undefined" \
    "-Clink-arg=--error-limit=0"
