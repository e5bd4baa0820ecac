#!/usr/bin/env bash
# Makes what a linker needs for an Android binary where no NDK is: libraries that carry names and no code, and the
# few instructions before `main`. Prints the compiler's options to link with them. For a link check, not for use.
#
#   cross/android-stubs.sh TARGET FOLDER
#
# android-symbols.txt has the names with the API level at which each came, so a binary that needs a later one does not link.
set -euo pipefail
target=$1
symbols=$(cd "$(dirname "$0")" && pwd)/android-symbols.txt
api=24
sysroot=$(rustc --print sysroot)
lld=$sysroot/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
mkdir -p "$2"
cd "$2"
rustup target add "$target" >&2

case $target in
    aarch64-*)
        loader=/system/bin/linker64
        return=ret
        # The stack pointer, nothing, main, and three empty arrays of functions for __libc_init.
        start='mov x0, sp
               mov x1, #0
               adrp x2, main
               add x2, x2, :lo12:main
               adrp x3, structors
               add x3, x3, :lo12:structors
               b __libc_init'
        word=.quad
        ;;
    armv7-*)
        loader=/system/bin/linker
        return='bx lr'
        start='.arm
               mov r0, sp
               mov r1, #0
               ldr r2, main_offset
               ldr r3, structors_offset
            1: add r2, pc, r2
            2: add r3, pc, r3
               b __libc_init
               main_offset: .word main - (1b + 8)
               structors_offset: .word structors - (2b + 8)'
        word=.word
        ;;
    *) echo "android-stubs.sh: no Android target: $target" >&2; exit 1 ;;
esac

# rustc as an assembler: the one that is always there.
assemble() {
    { echo '#![no_std]'; echo "core::arch::global_asm!(r#\""; cat; echo '"#);'; } >"$1.rs"
    rustc --target "$target" --crate-type lib --emit obj -o "$1.o" "$1.rs"
}

names() { awk -v library="$1" -v api=$api '$2 == library && $3 <= api { print $1 }' "$symbols"; }

functions() {
    while read -r name; do
        printf '.globl %s\n.type %s, %%function\n%s: %s\n' "$name" "$name" "$name" "$return"
    done
}

for library in libc libm libdl liblog; do
    { echo .text; names $library | functions; } | assemble $library
    "$lld" -flavor gnu -shared -soname $library.so -o $library.so $library.o
done
# Linked statically from the NDK; never called, as a panic aborts.
names libunwind | functions | assemble libunwind
echo "INPUT($PWD/libunwind.o)" >libunwind.a

assemble crtbegin <<CRT
.text
.globl _start
.type _start, %function
_start: $start
.section .data.rel.ro, "aw"
.balign 8
structors: $word empty, empty, empty
empty: $word -1, 0
CRT

echo "-Clinker-flavor=ld.lld -Clink-arg=$PWD/crtbegin.o -Clink-arg=-L$PWD -Clink-arg=-pie" \
    "-Clink-arg=--dynamic-linker=$loader -Clink-arg=-zmax-page-size=16384 -Clink-arg=--no-undefined -Clink-arg=--error-limit=0"
