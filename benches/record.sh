#!/usr/bin/env bash
# Measures everything on this machine and writes a dated record under benches/records.
#
#     benches/record.sh [--quick] [NAME]
#
# NAME says which machine it is; it is made from the processor's name if left out. It takes some 15 minutes on two cores of an AMD
# EPYC (Zen 4), most of them for SD 1.5's size, and the release build before; --quick leaves that size and the conversion out. Leave
# the machine alone meanwhile: reports say how much it had to do before, and how much of its time a host gave to others. ONNX Runtime
# is what `sdrun setup` and `sdrun setup --ep openvino` fetched; a provider that is not there is reported as failed, and the rest goes
# on. Models of random weights are made once and kept in the user's data folder (SDRT_DATA_DIR), 2 GB for SD 1.5.
set -euo pipefail
cd "$(dirname "$0")/.."

quick=
if [[ ${1-} == --quick ]]; then
    quick=1
    shift
fi
processor=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
name=${1-$(tr -cs '[:alnum:]' - <<<"${processor:-$(uname -m)}" | tr '[:upper:]' '[:lower:]' | sed 's/^-*//; s/-*$//')}
record=benches/records/$(date -u +%F)-$name
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)

nice cargo build --release --workspace --bins --bench micro
bin=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$record"
start=$SECONDS
step() { echo "[$((SECONDS - start)) s] $1" >&2; }

step "small parts"
cargo bench --workspace --bench micro -- --quiet | tee "$record/micro.txt" >&2

# measure NAME LABEL OPTIONS..: a report as JSON, Markdown and a page.
measure() {
    local file=$record/$1 label="$2, commit $commit"
    shift 2
    step "$label"
    "$bin/sdbench" run "$@" --label "$label" --json "$file.json" --markdown "$file.md" --html "$file.html" >/dev/null
}
computes=f32,bf16,i16,i8
measure demo "Demo model" --demo --ep cpu,openvino --compute "$computes" --steps 20 --rounds 5
measure threads "Demo model on 1 thread and more" --demo --threads "$(seq -s, 1 "$(nproc)")" --steps 20 --rounds 5
measure samplers "Samplers on the demo model" --demo --sampler "Euler,Euler a,DPM++ 2M Karras,DPM++ SDE Karras,UniPC" --parts pictures --steps 10 --rounds 5
step "why pictures of one seed differ"
data=${SDRT_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/sdrt}
demo=$(ls -d "$data"/models/tiny-shapes-[0-9]* | tail -n 1)
threads=$(printf '%s\n' "$(nproc)" 1 | sort -nru | paste -sd,)
"$bin/sdbench" determinism -m "$demo" --ep cpu,openvino --compute "$computes" --graph auto,portable --threads "$threads" \
    --rng torch-cpu,philox --one-by-one --html "$record/determinism.html" >"$record/determinism.json"
if [[ -z $quick ]]; then
    measure sd15 "SD 1.5 with random weights, 512 pixels" --synth sd15 --ep cpu,openvino --compute f32,bf16,i8 --parts networks --runs 1 --warm-up 0 --rounds 4
    step "one picture of SD 1.5's size"
    measure sd15-picture "A picture of SD 1.5's size, 2 steps" --synth sd15 --ep cpu --compute f32,auto --parts pictures --steps 2 --warm-up 0 --rounds 4
    step "where the time of SD 1.5's UNet goes"
    model=$(ls -d "$data"/models/synth-sd15-[0-9]* | tail -n 1)
    "$bin/sdbench" ops -m "$model" --runs 2 >"$record/ops.txt"
    step "conversion of SD 1.5 against copying"
    scratch=$(mktemp -d -p "$data")
    trap 'rm -rf "$scratch"' EXIT
    "$bin/sdconvert" synth --quiet --family sd15 -o "$scratch/checkpoint.safetensors"
    "$bin/sdbench" convert "$scratch/checkpoint.safetensors" --scratch "$scratch" >"$record/convert.json"
fi

{
    echo "# $(date -u +%F), ${processor:-unknown processor}"
    echo
    echo "Commit $commit, made with \`benches/record.sh${quick:+ --quick}\` in $(((SECONDS - start) / 60)) minutes. \`micro.txt\` are the small parts (criterion),"
    echo "\`determinism.html\` tells why pictures of one seed differ, and the other reports have a page with plots each."
    for report in "$record"/*.md; do
        [[ $report == */README.md ]] && continue
        echo
        sed 's/^# /## /' "$report"
    done
} >"$record/README.md.new"
rm -f "$record"/[!R]*.md
mv "$record/README.md.new" "$record/README.md"
step "done: $record"
