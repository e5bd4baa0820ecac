# shellcheck shell=bash disable=SC2034,SC2154
# What chunks.sh and resume.sh share; each has set `work`, its folder.
# Takes programs from RWKV_EDGE and RWKV_QUANTIZE, or else from target/release.
edge=${RWKV_EDGE:-target/release/rwkv-edge}
quantize=${RWKV_QUANTIZE:-target/release/rwkv-quantize}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Makes a model of every version and type and takes the shipped one; `models` are their files in a random order.
make_models() {
    local version type
    mkdir "$work/models"
    for version in v4 v5.0 v5.1 v5.2 v6 v7 v7a; do
        for type in f32 f16 int8 int4; do
            "$quantize" "tests/fixtures/$version-tiny.pth" "$work/models/$version-$type.rwkv" --type "$type" 2>/dev/null
        done
    done
    cp models/fairy7-int8.rwkv "$work/models"
    mapfile -t models < <(shuf -e "$work"/models/*)
}

# Sets `levels` to those that each of the builds `commands` can run, separated by blanks.
find_levels() {
    local command
    levels=()
    for command in "${commands[@]}"; do
        # shellcheck disable=SC2086
        levels+=("$($command info models/fairy7-int8.rwkv | sed -n 's/^kernels.*CPU has: \(.*\))$/\1/p' | tr -d ,)")
    done
}
