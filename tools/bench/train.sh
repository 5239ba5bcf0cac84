#!/usr/bin/env bash
# The trainer on the GPU of this machine: the tests that need one, then slm bench train, into tools/bench/results/.
# Usage: tools/bench/train.sh [options of slm bench train]. Needs torch with CUDA, triton and pytest; transformers with accelerate, and
# litgpt, if they are to be beside.
set -euo pipefail
source "$(dirname "$0")/on_gpu.sh"
on_gpu train "slm bench train" tests/train/test_recording.py tests/train/optim/test_cuda.py tests/data/test_loader.py -- --model 135m "$@"
