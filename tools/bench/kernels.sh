#!/usr/bin/env bash
# The kernels on the GPU of this machine: their tests, then the table of slm bench kernels, into tools/bench/results/.
# Usage: tools/bench/kernels.sh [options of slm bench kernels]. Needs torch with CUDA, triton and pytest; Liger-Kernel if it is to be beside.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}

device=$("$python" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
if [ -z "$device" ]; then
    echo "tools/bench/kernels.sh: torch sees no GPU here. On a CPU there is: slm bench kernels --quick" >&2
    exit 2
fi
mkdir -p tools/bench/results
out=tools/bench/results/kernels-$(echo "$device" | tr ' /' '--' | tr '[:upper:]' '[:lower:]').json

# Each step goes on if the one before fails, so that one visit to a GPU tells as much as it can; the exit code tells that one did.
failed=0
"$python" -m pytest -q -p no:cacheprovider tests/kernels tests/model/test_kernels.py tests/model/test_attention_backends.py || failed=1
"$python" -m slm bench kernels --device cuda --json --markdown "${out%.json}.md" "$@" > "$out.part" && mv "$out.part" "$out" || failed=1
echo "tools/bench/kernels.sh: $device, results in $out"
exit $failed
