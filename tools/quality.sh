#!/usr/bin/env bash
# quality.sh CHECKPOINT --text FILE... [OPTION...] [-- OPTION OF rwkv-quantize...]: what each type of a checkpoint costs, as a
# Markdown table on standard output.
#
#   --text FILE        a text that no calibration has seen; may be given several times. Take some languages, one of them in
#                      another script, and code: 36 windows of 512 tokens and more
#   --reference TYPE   the file that the others are compared with: f32, or f16 where memory is short
#   --threads N        threads of all programs
#   --gguf FILE        the same checkpoint as GGUF in f32, bf16 or f16, for the rows of llama.cpp
#   --imatrix FILE     adds rows of llama.cpp with this importance matrix (llama-imatrix, from a calibration text)
#   --folder FOLDER    for all files, and keeps them; else a folder in TMPDIR, which is removed
#
# All files are in memory at the same time: the reference and one for each line of `sets`. Disk takes as much, and the logits of
# llama.cpp 2 bytes for each token and entry of the vocabulary.
#
# llama.cpp's rows appear if llama-quantize and llama-perplexity are on the path, and with --gguf, or if CHECKPOINT is a GGUF file,
# or a folder and convert_hf_to_gguf.py is on the path. They are compared with llama.cpp's own file, in windows of 512 of which it
# scores the second half too. It begins them without a start token and leaves out the last one.
#
# Takes the programs from RWKV_EDGE and RWKV_QUANTIZE, or else from target/release.
set -euo pipefail
shopt -s inherit_errexit

# NAME: OPTIONS of rwkv-quantize. Each line is a row; its KL divergence is also shown as a share of the first one's.
sets=(
    "int4, linear codes: --type int4 --codes linear"
    "int4, table: --type int4 --calib none"
    "int4, activations: --type int4"
    "int4, high effort: --type int4 --effort high"
    "int8: --type int8"
)

# Types of llama-quantize.
peers=(Q4_0 Q4_K_M IQ4_XS Q8_0)

root=$(dirname "$0")/..
edge=${RWKV_EDGE:-$root/target/release/rwkv-edge}
quantize=${RWKV_QUANTIZE:-$root/target/release/rwkv-quantize}
checkpoint='' folder='' gguf='' imatrix='' reference=f32
texts=() threads=() options=()

fail() {
    echo "quality.sh: $*" >&2
    exit 1
}

say() {
    echo "quality.sh: $*" >&2
}

while (($# > 0)); do
    case $1 in
        --)
            options=("${@:2}")
            break
            ;;
        --text | --reference | --threads | --gguf | --imatrix | --folder)
            (($# > 1)) || fail "$1 needs a value"
            case $1 in
                --text) texts+=("$2") ;;
                --reference) reference=$2 ;;
                --threads) threads=(--threads "$2") ;;
                --gguf) gguf=$2 ;;
                --imatrix) imatrix=$2 ;;
                --folder) folder=$2 ;;
            esac
            shift 2
            ;;
        -*) fail "unknown option $1" ;;
        *)
            [ -z "$checkpoint" ] || fail "there are two checkpoints: $checkpoint and $1"
            checkpoint=$1
            shift
            ;;
    esac
done
[ -n "$checkpoint" ] || fail "name a checkpoint"
((${#texts[@]} > 0)) || fail "name a text: --text FILE"
for file in "$checkpoint" "${texts[@]}" ${gguf:+"$gguf"} ${imatrix:+"$imatrix"}; do
    [ -e "$file" ] || fail "$file does not exist"
done
for program in "$edge" "$quantize"; do
    [ -x "$program" ] || fail "$program is missing: cargo build --release -p rwkv-edge-cli -p rwkv-quantize"
done
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"

# value KEY JSON: the first number of that key.
value() {
    grep -o "\"$1\":[^,}]*" <<<"$2" | head -n 1 | cut -d: -f2
}

# interval KEY JSON: the two numbers of an interval, or nothing.
interval() {
    grep -o "\"$1\":\[[^]]*" <<<"$2" | head -n 1 | cut -d[ -f2 | tr , ' '
}

# convert NAME OPTION...
convert() {
    say "making $1"
    "$quantize" "$checkpoint" "$folder/$1.rwkv" --force "${@:2}" "${options[@]}" >&2
}

# speed NAME: bytes of the file, bytes per token and tokens/s.
speed() {
    local bench
    say "measuring the speed of $1"
    bench=$("$edge" bench "$folder/$1.rwkv" --json "${threads[@]}")
    echo "$(stat -Lc %s "$folder/$1.rwkv") $(value bytes_per_token "$bench") $(value decode_tokens_per_second "$bench")"
}

# row NAME "BYTES PER_TOKEN SPEED" KL "LOW HIGH" SHARE PPL CHANGE TOP1 LIVE: prints a row; "-" is an empty field.
row() {
    awk -v name="$1" -v speed="$2" -v kl="$3" -v interval="$4" -v share="$5" -v ppl="$6" -v change="$7" -v top="$8" -v live="$9" '
    function show(format, x) { return x == "-" || x == "" ? "" : sprintf(format, x) }
    BEGIN {
        split(speed, s, " ")
        n = split(interval, i, " ")
        printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name, show("%.1f", s[1] / 1e6),
            show("%.2f", s[2] == "-" ? "-" : s[2] / 1e6), show("%.1f", s[3]), show("%.5f", kl),
            n == 2 ? sprintf("%.5f to %.5f", i[1], i[2]) : "", show("%.3f", share), show("%.3f", ppl),
            change == "-" ? "" : sprintf("%+.2f %%", 100 * change), show("%.2f %%", top == "-" ? top : 100 * top),
            show("%.2f %%", live == "-" ? live : 100 * live)
    }'
}

# ratio A B: A / B - 1.
ratio() {
    awk "BEGIN { print $1 / $2 - 1 }"
}

# Makes all files and judges them in one call.
ours() {
    local names=() files=() judged models set name measured i ppl base
    convert "$reference" --type "$reference"
    for set in "${sets[@]}"; do
        name=${set%%:*}
        names+=("$name")
        files+=("$folder/$name.rwkv")
        # shellcheck disable=SC2086 # an option is a word
        convert "$name" ${set#*:}
    done
    say "reading the texts"
    judged=$("$edge" eval "${files[@]}" --against "$folder/$reference.rwkv" "${texts[@]/#/--text=}" --windows 512 --skip 256 \
        --json "${threads[@]}")
    # One line for each model.
    mapfile -t models < <(awk '{ gsub(/[{]"model":/, "\n&"); print }' <<<"$judged" | grep '"model":')
    base=$(value reference_perplexity "${models[0]}")
    measured=$(speed "$reference")
    row "$reference" "$measured" - "" - "$base" - - "$(value reference_live_units "${models[0]}")"
    for i in "${!names[@]}"; do
        measured=$(speed "${names[i]}")
        set -- "${models[i]}"
        ppl=$(value perplexity "$1")
        row "${names[i]}" "$measured" "$(value mean_kl "$1")" "$(interval mean_kl_interval "$1")" \
            "$(value kl_ratio "$1" || echo -)" "$ppl" "$(ratio "$ppl" "$base")" "$(value top1_agreement "$1")" \
            "$(value live_units "$1")"
    done
}

# The checkpoint as GGUF, in $gguf, if there is one.
find_gguf() {
    if [ -z "$gguf" ] && [[ $checkpoint == *.gguf ]]; then
        gguf=$checkpoint
    elif [ -z "$gguf" ] && [ -d "$checkpoint" ] && command -v convert_hf_to_gguf.py >/dev/null; then
        gguf=$folder/base.gguf
        say "making $gguf"
        convert_hf_to_gguf.py "$checkpoint" --outfile "$gguf" --outtype f16 >&2
    fi
    [ -n "$gguf" ]
}

# peer_speed FILE: as speed, without the bytes per token.
peer_speed() {
    local speed=-
    if command -v llama-bench >/dev/null; then
        speed=$(llama-bench -m "$1" -p 0 -n 64 "${threads[@]}" -o json 2>/dev/null | sed -n 's/.*"avg_ts": *\([0-9.]*\).*/\1/p')
    fi
    echo "$(stat -Lc %s "$1") - ${speed:--}"
}

# perplexity FILE OPTION...: reads the texts with a file and the logits of the base.
perplexity() {
    llama-perplexity -m "$1" -f "$folder/text" -c 512 "${threads[@]}" --kl-divergence-base "$folder/logits" "${@:2}" \
        >"$folder/results" 2>"$folder/log" || fail "llama-perplexity: $(tail -n 1 "$folder/log")"
}

# divergence FILE: KL, its interval, perplexity, that of the base, its change, and equal best tokens. On a busy machine
# llama-perplexity may end before its last lines are printed. Then it runs again. Its errors are those of a mean over tokens.
divergence() {
    local try
    for try in 1 2 3; do
        perplexity "$1" --kl-divergence
        awk '
            /^Mean PPL\(Q\) / { ppl = $4 }
            /^Mean PPL\(base\) / { base = $4 }
            /^Mean +KLD:/ { kl = $3; error = $5 }
            /^Same top p:/ { top = $4 / 100 }
            END {
                if (top == "") exit 1
                print kl, kl - 1.96 * error, kl + 1.96 * error, ppl, base, ppl / base - 1, top
            }' "$folder/results" && return
        say "llama-perplexity ended early, try $try of 3"
    done
    fail "llama-perplexity prints no results"
}

# peer TYPE NAME OPTION...: prints the row of a type.
peer() {
    local file="$folder/$1.gguf" measured found kl low high ppl base change top
    say "making llama.cpp's $2"
    llama-quantize "${@:3}" "$gguf" "$file" "$1" >/dev/null 2>&1 || { say "llama-quantize makes no $2"; return; }
    found=$(divergence "$file")
    read -r kl low high ppl base change top <<<"$found"
    measured=$(peer_speed "$file")
    row "llama.cpp $2" "$measured" "$kl" "$low $high" - "$ppl" "$change" "$top" -
    echo "$base" >"$folder/base"
}

theirs() {
    command -v llama-perplexity >/dev/null && command -v llama-quantize >/dev/null || return 0
    find_gguf || return 0
    local type measured
    cat "${texts[@]}" >"$folder/text"
    say "llama.cpp reads the texts"
    perplexity "$gguf"
    for type in "${peers[@]}"; do
        peer "$type" "$type"
        [ -z "$imatrix" ] || peer "$type" "$type, imatrix" --imatrix "$imatrix"
    done
    measured=$(peer_speed "$gguf")
    row "llama.cpp, its base" "$measured" - "" - "$(cat "$folder/base")" - - -
}

cat <<'END'
| type | file, MB | per token, MB | tokens/s | mean KL, nats | 95 % interval | of the first | perplexity | change | same best token | live units |
|---|---|---|---|---|---|---|---|---|---|---|
END
ours
theirs
