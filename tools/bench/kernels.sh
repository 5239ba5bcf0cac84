#!/usr/bin/env bash
# The kernels on the GPU of this machine: their tests, then the table of slm bench kernels, into tools/bench/results/.
# Usage: tools/bench/kernels.sh [options of slm bench kernels]. Needs torch with CUDA, triton and pytest; Liger-Kernel if it is to be beside.
set -euo pipefail
source "$(dirname "$0")/on_gpu.sh"
on_gpu kernels "slm bench kernels --quick" tests/kernels tests/model/test_kernels.py tests/model/test_attention_backends.py -- "$@"
