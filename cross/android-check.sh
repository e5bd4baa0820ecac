#!/usr/bin/env bash
# Checks that a finished binary is one that Android starts, from an API level on. Prints what it
# needs, or the fault.
#
#   cross/android-check.sh TARGET API LIBRARIES BINARY
#
# LIBRARIES is the folder with the libc.so, libm.so, ... of that level, made by android-sysroot.sh or
# from the NDK.
set -euo pipefail
target=$1
api=$2
libraries=$3
binary=$4

die() { echo "cross/android-check.sh: $binary $*" >&2; exit 1; }

case $target in
    aarch64-*) loader=/system/bin/linker64 ;;
    *) loader=/system/bin/linker ;;
esac
headers=$(readelf -hldW "$binary")
grep -q 'Type: *DYN' <<<"$headers" || die "is not position-independent"
grep -q "interpreter: $loader]" <<<"$headers" || die "does not ask for $loader"
! grep -q TEXTREL <<<"$headers" || die "has text relocations"
! grep -q '^ *LOAD .*RWE' <<<"$headers" || die "has a segment that is writable and executable"
# Loaders know thread-local variables since API level 29, relocations packed this way since 30.
! grep -q '^ *TLS ' <<<"$headers" || die "has a segment of thread-local variables"
! grep -q '(RELR)' <<<"$headers" || die "has packed relocations"

# The first four bytes of the note are the level.
grep -q '^ *NOTE ' <<<"$headers" || die "has no segment of notes"
level=$(readelf -nW "$binary" | awk '
    $1 == "Android" && sub(/.*NT_VERSION.*description data: /, "") { print $4 $3 $2 $1; exit }')
[ -n "$level" ] || die "has no .note.android.ident"
[ $((16#$level)) -eq "$api" ] || die "is for API level $((16#$level)), not $api"

# The standard library looks whether Android has this one, and does without: a weak reference, which
# no loader refuses.
optional=getrandom

# Symbols of a file: those that it defines, or those that it needs.
symbols() {
    readelf --dyn-syms -W "$2" | awk -v which="$1" -v optional="$optional" '
        $1 !~ /^[0-9]+:$/ || NF < 8 || ($7 == "UND") != (which == "needs") { next }
        { sub(/@.*/, "", $8) }
        $5 != "WEAK" || $8 != optional { print $8 }' | LC_ALL=C sort -u
}

libraries_needed=$(sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' <<<"$headers")
defined=$(for library in $libraries_needed; do
    [ -f "$libraries/$library" ] || die "needs $library, which $libraries does not have"
    symbols defines "$libraries/$library"
done)
needed=$(symbols needs "$binary")
[ -n "$needed" ] || die "needs no symbol: is it linked?"
missing=$(LC_ALL=C comm -23 <(echo "$needed") <(LC_ALL=C sort -u <<<"$defined") | paste -sd ' ' -)
[ -z "$missing" ] || die "needs what API level $api does not have: $missing"
echo "position-independent, for $loader; API level $api has the $(wc -l <<<"$needed") symbols that it needs of" \
    "$(paste -sd ' ' - <<<"$libraries_needed")"
