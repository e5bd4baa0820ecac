#!/usr/bin/env bash
# Proves that android-check.sh accepts a program that Android starts, and refuses one for each fault.
#
#   cross/test-android.sh
set -euo pipefail
cd "$(dirname "$0")/.."
api=24
later=28
folder=${CARGO_TARGET_DIR:-target}/android
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "cross/test-android.sh: $*" >&2; exit 1; }

# The libraries and the options of an API level.
use_level() {
    sysroot=$(cross/android-sysroot.sh "$target" "$1" "$folder")
    { read -r libraries; read -r flags; } <<<"$sysroot"
}

# Links the program on standard input.
link() {
    # Word splitting: the compiler's options.
    # shellcheck disable=SC2086
    rustc --edition 2024 --target "$target" -Cpanic=abort -Copt-level=1 -Cstrip=symbols $flags "$@" -o "$scratch/program" -
}

plain() { link "$@" <<<'fn main() { println!("{:?}", std::env::args()) }'; }

# A change of the finished file's bytes: the loader's view of a fault that the linker does not make.
patch() { LC_ALL=C sed -i "$1" "$scratch/program"; }

check() { cross/android-check.sh "$target" "$api" "$libraries" "$scratch/program" 2>&1; }

refused() {
    local message
    message=$(check) && fail "$target: accepted, though it $1"
    grep -qF "$1" <<<"$message" || fail "$target: expected \"$1\", got: $message"
}

for target in aarch64-linux-android armv7-linux-androideabi; do
    use_level $later
    link <<'PROGRAM'
        unsafe extern "C" { fn getrandom(bytes: *mut u8, length: usize, flags: u32) -> isize; }
        fn main() { println!("{}", unsafe { getrandom([0].as_mut_ptr(), 1, 0) }) }
PROGRAM
    refused "is for API level $later, not $api"
    patch "s/Android\\x00\\x$(printf %x $later)/Android\\x00\\x$(printf %x $api)/"
    use_level $api
    refused "needs what API level $api does not have: getrandom"

    link <<<'
        fn main() { unsafe { core::arch::asm!(".weak fexecve", "bl fexecve") } }'
    refused "needs what API level $api does not have: fexecve"

    # A map takes its seed from getrandom where Android has it.
    link <<<'fn main() { println!("{:?}", std::collections::HashMap::from([(1, 2)])) }'
    check
    plain
    patch 's/Android\x00/Androyd\x00/'
    refused "has no .note.android.ident"
    plain -Clink-arg=-no-pie
    refused "is not position-independent"
    plain -Clink-arg=--dynamic-linker=/lib/ld.so
    refused "does not ask for /system/bin/linker"
    link <<<'core::arch::global_asm!(".section .mixed, \"awxR\"", ".word 1"); fn main() {}'
    refused "has a segment that is writable and executable"
    plain -Clink-arg=--pack-dyn-relocs=relr
    refused "has packed relocations"
    word=.word
    [[ $target == aarch64-* ]] && word=.quad
    link -Clink-arg=-znotext <<<"
        fn main() { unsafe { core::arch::asm!(\"b 1f\", \".balign 8\", \"$word {0}\", \"1:\", sym main) } }"
    refused "has text relocations"
    link <<<'core::arch::global_asm!(".section .tdata.kept, \"awTR\"", ".word 1"); fn main() {}'
    refused "has a segment of thread-local variables"
done
