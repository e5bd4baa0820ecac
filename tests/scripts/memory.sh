#!/usr/bin/env bash
# memory.sh [sample | SHAPE...]: holds the memory plan against measured runs.
#
# 1. For models of real shape, int4 and int8, mapped and copied: the peak of the resident set is at most the plan, and the plan
#    exceeds it by at most 3 %.
# 2. A run with its plan as --memory-limit works in a control group of that size, and copied in the address space of its plan.
# 3. The shipped model's memory does not grow over 100,000 tokens, in every mode.
#
# `sample` takes the smallest shape with 2 threads, and SHAPE... those shapes. Both leave out 3, of which the tests have a
# sample. Takes the programs from RWKV_EDGE and RWKV_QUANTIZE, or else from
# target/release. Needs 2 GB of disk in TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/../.."
edge=${RWKV_EDGE:-target/release/rwkv-edge}
quantize=${RWKV_QUANTIZE:-target/release/rwkv-quantize}
model=models/fairy7-int8.rwkv
counts=(1 2 4)
tokens=0
case ${1:-} in
    "")
        shapes=(rwkv4-169m rwkv5.2-0.4b rwkv6-1.6b rwkv7-0.1b rwkv7-0.4b rwkv7-1.5b)
        tokens=100000
        ;;
    sample)
        shapes=(rwkv7-0.1b)
        counts=(2)
        ;;
    *) shapes=("$@") ;;
esac
folder=$(mktemp -d)
group=
trap 'rm -rf "$folder"; [ -z "$group" ] || rmdir "$group"' EXIT
printf -v prompt 'Once upon a time there was a small house at the edge of a forest. %.0s' {1..40}

fail() {
    echo "memory.sh: $*" >&2
    exit 1
}

# planned KEY ARGS...: a figure of a plan.
planned() {
    local key=$1
    shift
    "$edge" plan --json "$@" 2>/dev/null | sed 's/.*\]//' | grep -o "\"$key\":[0-9]*" | tr -dc 0-9
}

# The bytes of the peak in the summary of a run on standard input.
peak() {
    sed -n 's/.*peak RSS: \([0-9.]*\) MiB.*/\1/p' | awk '{ printf "%d\n", $1 * 1048576 }'
}

# check_peak PLAN PEAK NAME
check_peak() {
    [ -n "$2" ] || fail "$3: no peak"
    awk -v plan="$1" -v peak="$2" -v name="$3" 'BEGIN {
        printf "%-45s plan %8.1f MiB, peak %8.1f MiB, %+.2f %%\n", name, plan / 1048576, peak / 1048576, 100 * (plan / peak - 1)
        exit !(peak <= plan && plan <= 1.03 * peak)
    }' || fail "$3: the plan is not within 3 % above the peak"
}

# A control group whose memory can be limited, in $group, and the file for the limit in $limit_file.
make_group() {
    local parent
    for parent in /sys/fs/cgroup/memory /sys/fs/cgroup; do
        if mkdir "$parent/rwkv-edge-$$" 2>/dev/null; then
            group=$parent/rwkv-edge-$$
            for limit_file in "$group/memory.max" "$group/memory.limit_in_bytes"; do
                [ -w "$limit_file" ] && return
            done
            rmdir "$group"
            group=
        fi
    done
    echo "skipped: this machine makes no control group for memory"
}

# in_group BYTES COMMAND...
in_group() {
    local bytes=$1
    shift
    echo "$bytes" >"$limit_file"
    # The shell enters the group, and becomes the command.
    bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@"
}

check_model() {
    local file=$1 name=$2 load threads plan run space
    for load in mmap copy; do
        for threads in "${counts[@]}"; do
            plan=$(planned resident_bytes "$file" --threads "$threads" --load "$load")
            run=("$edge" run "$file" -p "$prompt" -n 64 --seed 1 --threads "$threads" --load "$load")
            run+=(--memory-limit "$plan")
            check_peak "$plan" "$("${run[@]}" 2>&1 >/dev/null | peak)" "$name, $load, $threads threads"
        done
        [ -z "$group" ] || in_group "$plan" "${run[@]}" >/dev/null 2>"$folder/log" ||
            fail "$name, $load: does not run in a control group of $plan bytes: $(cat "$folder/log")"
    done
    # The built-in model is a part of the program: it is mapped, but not read.
    space=$(($(planned address_space_bytes "$file" --threads "$threads" --load copy) + $(stat -Lc %s "$model")))
    prlimit --as=$space "${run[@]}" >/dev/null 2>"$folder/log" ||
        fail "$name: does not run in an address space of $space bytes: $(cat "$folder/log")"
}

make_group
for shape in "${shapes[@]}"; do
    for type in int4 int8; do
        "$quantize" --synth "$shape" --ffn-sparsity 0.87 --type "$type" --force "$folder/m.rwkv" 2>/dev/null
        check_model "$folder/m.rwkv" "$shape $type"
    done
done
((tokens == 0)) || RWKV_EDGE_TOKENS=$tokens cargo test --locked --release --test long_run
