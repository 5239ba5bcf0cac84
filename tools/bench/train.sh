#!/usr/bin/env bash
# The trainer on the GPU of this machine: the tests that need one, then slm bench train, into tools/bench/results/.
# Usage: tools/bench/train.sh [options of slm bench train]. Needs torch with CUDA, triton and pytest; transformers with accelerate, and
# litgpt, if they are to be beside.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}

device=$("$python" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
if [ -z "$device" ]; then
    echo "tools/bench/train.sh: torch sees no GPU here. On a CPU there is: slm bench train" >&2
    exit 2
fi
mkdir -p tools/bench/results
out=tools/bench/results/train-$(echo "$device" | tr ' /' '--' | tr '[:upper:]' '[:lower:]').json

# Each step goes on if the one before fails, so that one visit to a GPU tells as much as it can; the exit code tells that one did.
failed=0
"$python" -m pytest -q -p no:cacheprovider tests/train/test_recording.py tests/train/optim/test_cuda.py tests/data/test_loader.py || failed=1
"$python" -m slm bench train --device cuda --model 135m --json --markdown "${out%.json}.md" "$@" > "$out.part" && mv "$out.part" "$out" || failed=1
echo "tools/bench/train.sh: $device, results in $out"
exit $failed
