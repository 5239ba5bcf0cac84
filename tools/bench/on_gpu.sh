# Sourced by the scripts beside it: what a visit to a GPU consists of.

# on_gpu NAME CPU TESTS... -- OPTIONS...: run the tests with pytest, then slm bench NAME with the options, into
# tools/bench/results/NAME-<device>.json and .md. CPU: the command that there is where there is no GPU.
# Each step goes on if the one before fails, so that one visit to a GPU tells as much as it can; the exit code tells that one did.
on_gpu() {
    local name=$1 cpu=$2 python=${PYTHON:-python} tests=() device out failed=0
    shift 2
    while [ "$1" != -- ]; do tests+=("$1"); shift; done
    shift
    cd "$(dirname "${BASH_SOURCE[0]}")/../.."
    export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
    device=$("$python" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
    if [ -z "$device" ]; then
        echo "tools/bench/$name.sh: torch sees no GPU here. On a CPU there is: $cpu" >&2
        exit 2
    fi
    mkdir -p tools/bench/results
    out=tools/bench/results/$name-$(echo "$device" | tr ' /' '--' | tr '[:upper:]' '[:lower:]').json
    "$python" -m pytest -q -p no:cacheprovider "${tests[@]}" || failed=1
    "$python" -m slm bench "$name" --device cuda --json --markdown "${out%.json}.md" "$@" > "$out.part" && mv "$out.part" "$out" || failed=1
    echo "tools/bench/$name.sh: $device, results in $out"
    exit $failed
}
