#!/usr/bin/env bash
# Static analysis of the inner loops for 64-bit ARM: bytes per cycle and core by llvm-mca's model of each CPU, beside what the
# memory of a board with that CPU delivers. A model without caches, not a measurement; it is wrong by a fifth or more.
#
#   cross/throughput.sh [PATTERN...]      functions of the ARM kernels whose symbol contains a pattern; by default the hot ones
#   cross/throughput.sh tiles             those that multiply several vectors
#   cross/throughput.sh neon32            those of 32-bit NEON that multiply 16 rows with a vector
#
# In each function it takes the innermost loop that loads most. "loads" are all bytes loaded in one turn except from the stack, so
# activations count too; "step" is the largest advance of a pointer. ALL=1 shows every innermost loop.
#
# "of the peak" compares the multiply-accumulates of bytes of a turn with a loop of nothing else, on the same model: SMMLA if the
# loop has it, else SDOT, else SMULL, SMLAL2 and SADALP.
#
# Takes the newest llvm-mca of /usr/bin and /usr/local/bin, or the one of LLVM_MCA. Models change between versions: docs/ARM.md has
# figures of LLVM 22.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-musl
patterns=("$@")
[ $# -gt 0 ] || patterns=(matvec_int4 matvec_int8 record_dots accumulate_int)
[ "${patterns[*]}" != tiles ] || patterns=(entry11matmul_int entry12matmul_int 4tile pair_tile)
folder=${CARGO_TARGET_DIR:-target}/throughput
mca=${LLVM_MCA:-$(find /usr/bin /usr/local/bin -name 'llvm-mca*' | sort -t- -k3 -n | tail -1)}
[ -n "$mca" ] || { echo "cross/throughput.sh: needs llvm-mca: apt-get install llvm-22" >&2; exit 1; }

# CPU, GHz, GB/s that the board's memory delivers, board. The Pi 5 has a Cortex-A76, which has no model of its own and is the
# Neoverse N1 for small machines; that of the A72 is the older A57.
boards='
cortex-a53 1.0 2    Pi_Zero_2_W
cortex-a72 1.8 4.25 Pi_4
neoverse-n1 2.4 14.5 Pi_5
cortex-a55 2.0 7    RK3588,_a_small_core
cortex-x1  2.8 25   phone,_a_large_core
neoverse-n2 2.8 25  phone,_a_Cortex-A710_or_X2
'

# 32-bit code has a model of the A72 (the older A57), and none of an A53, A55 or A76.
if [ "${patterns[*]}" = neon32 ]; then
    mkdir -p "$folder/loops"
    cat kernels/src/arm/int4n.S kernels/src/arm/int.S |
        "${mca/mca/mc}" -triple=armv7a -filetype=obj -o "$folder/int.o"
    echo "$("$mca" --version | sed -n 's/.*LLVM version/LLVM/p'), armv7"
    for type in int4 int4n int8; do
        loop=$folder/loops/neon32_$type.s
        [ $type = int8 ] && bytes=1088 || bytes=576
        "${mca/mca/objdump}" -d --no-show-raw-insn --triple=armv7a --mattr=+neon,+vfp4 \
            --disassemble-symbols=rwkv_edge_neon32_${type}_rows "$folder/int.o" |
            awk '/^ *[0-9a-f]+:/ { sub(/^ *[0-9a-f]+: */, ""); sub(/ [@;].*/, "")
                if ($1 == "add" && $2 == "r7," && $3 == "r1,") inside = 1
                if ($1 == "bne") inside = 0
                if (inside) print "\t" $0 }' >"$loop"
        "$mca" -mtriple=armv7a -mattr=+neon,+vfp4,+fp16 -mcpu=cortex-a57 -iterations=100 "$loop" 2>/dev/null |
            awk -v type="$type" -v count="$(wc -l <"$loop")" -v b="$bytes" '/^Total Cycles/ {
                printf "%-6s %4d instructions and %6.1f cycles for %4d bytes of weights, %4.1f GB/s at 1.8 GHz (Pi 4)\n",
                    type, count, $3 / 100, b, 100 * b / $3 * 1.8 }'
    done
    exit
fi

rm -rf "$folder/loops" "$folder/$target/release/deps"
mkdir -p "$folder/loops"
cargo rustc --quiet --release -p rwkv-edge-kernels --lib --target "$target" --target-dir "$folder" -- \
    --emit asm -C codegen-units=1 -C debuginfo=0

# Writes each loop to a file of its own and prints: file, function, loaded bytes, step, instructions.
loops() {
    awk -v patterns="${patterns[*]}" -v folder="$folder/loops" -v all="${ALL:-}" '
    function register_bytes(r) {
        return r ~ /^q/ ? 16 : r ~ /^[dx]/ ? 8 : r ~ /^[sw]/ ? 4 : r ~ /^h/ ? 2 : r ~ /^b/ ? 1 : 0
    }
    # Bytes that the instruction loads.
    function loaded(line,   w, n, size) {
        if (line !~ /^\t(ld|ldu)/ || line ~ /\[(sp|x29)/) return 0
        split(substr(line, 2), w, /[ \t,]+/)
        if (w[1] ~ /^ld[1-4]/) {
            n = gsub(/v[0-9]+\./, "v&", line)
            if (line ~ /\.(16b|8h|4s|2d)/) size = 16
            else if (line ~ /\.(8b|4h|2s|1d)/) size = 8
            if (w[1] ~ /r$/ || line ~ /\}\[/)
                size = line ~ /[0-9]?b[ ,}]/ ? 1 : line ~ /h[ ,}]/ ? 2 : line ~ /s[ ,}]/ ? 4 : 8
            return n * size
        }
        if (w[1] ~ /^ldn?p/) return 2 * register_bytes(w[2])
        if (w[1] ~ /b$/) return 1
        if (w[1] ~ /h$/) return 2
        return w[1] ~ /sw$/ ? 4 : register_bytes(w[2])
    }
    # Identifiers follow their lengths in both manglings.
    function path(symbol,   out, n) {
        symbol = substr(symbol, index(symbol, "rwkv_edge_kernels") + 17)
        while (match(symbol, /^[^0-9]*[0-9]+/)) {
            n = substr(symbol, RSTART, RLENGTH); gsub(/[^0-9]/, "", n)
            symbol = substr(symbol, RSTART + RLENGTH)
            if (n == 17 && symbol ~ /^h[0-9a-f]+/) break
            out = out (out == "" ? "" : "::") substr(symbol, 1, n)
            symbol = substr(symbol, n + 1)
        }
        return out
    }
    function finish(   i, j, k, best, inner, bytes, step, count, base, m, f) {
        best = 0
        for (i = 1; i <= found; i++) {
            inner = 1
            for (j = 1; j <= found; j++)
                if (j != i && first[j] >= first[i] && last[j] <= last[i]) inner = 0
            if (!inner) continue
            bytes = step = count = 0
            delete base
            for (k = first[i]; k <= last[i]; k++) {
                if (text[k] !~ /^\t/) continue
                count++
                bytes += loaded(text[k])
                if (loaded(text[k]) && match(text[k], /\[[^]]*/)) {
                    split(substr(text[k], RSTART + 1, RLENGTH - 1), m, /, */)
                    base[m[1]] = base[m[2]] = 1
                }
            }
            for (k = first[i]; k <= last[i]; k++) {
                split(substr(text[k], 2), m, /[ \t,#]+/)
                if (m[1] ~ /^adds?$/ && m[2] == m[3] && m[2] in base && m[4] + 0 > step) step = m[4] + 0
                if (loaded(text[k]) && text[k] ~ /\], #|\]!/ && match(text[k], /#[0-9]+\]?!?$/))
                    if (substr(text[k], RSTART + 1) + 0 > step) step = substr(text[k], RSTART + 1) + 0
            }
            if (!bytes || (!all && bytes <= best)) continue
            best = bytes
            f = folder "/" (all ? ++files : name) ".s"
            printf "\t.arch armv8.6-a\n" > f
            for (k = first[i]; k <= last[i]; k++) print text[k] > f
            close(f)
            row = f " " path(name) " " bytes " " step " " count
            if (all) print row
        }
        if (!all && best) print row
    }
    /^\t\.type\t.*,@function/ {
        name = $2; sub(/,.*/, "", name)
        wanted = 0
        count_patterns = split(patterns, p, " ")
        for (i = 1; i <= count_patterns; i++) if (index(name, "aarch64") && index(name, p[i])) wanted = 1
        lines = found = 0
        delete at
        next
    }
    !wanted { next }
    /^\t\.size/ { finish(); wanted = 0; next }
    /^\t\./ || /^[^.\t]/ || /^\t\/\// { next }
    { sub(/[ \t]*\/\/.*/, ""); text[++lines] = $0 }
    /^\.L[^ ]*:/ { label = $1; sub(/:.*/, "", label); at[label] = lines; next }
    /^\t(b|b\..*|cbn?z|tbn?z)\t/ && $NF in at { first[++found] = at[$NF]; last[found] = lines }
    ' "$folder/$target"/release/deps/rwkv_edge_kernels-*.s
}

cycles() { "$mca" -mtriple=aarch64 -mcpu="$1" -iterations=100 "$2" 2>/dev/null | awk '/^Total Cycles/ { print $3 }'; }

# Multiply-accumulates of the loop in file $1, and what a step of the peak does: its number and its instructions.
products() {
    local sdot smmla smull
    sdot=$(grep -c sdot "$1" || true) smmla=$(grep -c smmla "$1" || true) smull=$(grep -cE 'smull|smlal' "$1" || true)
    if [ "$smmla" -gt 0 ]; then
        echo $((32 * smmla)) 32 'smmla vN.4s, v30.16b, v31.16b'
    elif [ "$sdot" -gt 0 ]; then
        echo $((16 * sdot)) 16 'sdot vN.4s, v30.16b, v31.16b'
    elif [ "$smull" -gt 0 ]; then
        echo $((8 * smull)) 16 'smull vM.8h, v30.8b, v31.8b; smlal2 vM.8h, v30.16b, v31.16b; sadalp vN.4s, vM.8h'
    fi
}

# The share of the peak of CPU $1 of the loop in file $2, which takes $3 / 100 cycles.
share() {
    local macs step code peak instruction line i
    read -r macs step code < <(products "$2") || return 0
    peak=$folder/peak.s
    echo ".arch armv8.6-a" >"$peak"
    while read -r instruction; do
        for i in {0..11}; do
            line=${instruction//vN/v$i}
            echo "${line//vM/v$((i + 12))}"
        done
    done <<<"${code//; /$'\n'}" >>"$peak"
    awk -v c="$3" -v macs="$macs" -v peak="$(cycles "$1" "$peak")" -v step="$step" \
        'BEGIN { printf "; %.0f %% of the peak", 100 * (macs / c) / (12 * step / peak) }'
}

echo "$("$mca" --version | sed -n 's/.*LLVM version/LLVM/p'), $target"
while read -r file name bytes step count; do
    echo
    echo "$name: $count instructions a turn, loads $bytes bytes, step $step"
    while read -r cpu ghz memory board; do
        [ -n "$cpu" ] || continue
        if [[ $cpu =~ a53|a72 ]] && grep -qE '[su]dot' "$file"; then continue; fi
        if [[ $cpu != *n2 ]] && grep -q smmla "$file"; then continue; fi
        if cycles=$(cycles "$cpu" "$file") && [ -n "$cycles" ]; then
            awk -v c="$cycles" -v b="$bytes" -v ghz="$ghz" -v memory="$memory" -v cpu="$cpu" -v board="${board//_/ }" \
                -v share="$(share "$cpu" "$file" "$cycles")" 'BEGIN {
                printf "  %-11s %8.1f cycles %6.2f B/cycle %6.1f GB/s at %.1f GHz; memory %5.1f GB/s (%s)%s\n",
                    cpu, c / 100, 100 * b / c, 100 * b / c * ghz, ghz, memory, board, share }'
        else
            echo "  $cpu: llvm-mca cannot read the loop (a call in it?): $file"
        fi
    done <<<"$boards"
done < <(loops)
