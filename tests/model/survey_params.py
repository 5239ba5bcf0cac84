"""Parameters in millions of every dense decoder of the survey (arXiv 2409.15790) and of those added to its table, computed
from published configs; 17 of the 20 that the survey's figure 8 gives are equal, the others count a tied matrix twice."""

from __future__ import annotations

MILLIONS = {
    "opt-125m": 125, "opt-350m": 331, "opt-1.3b": 1316, "opt-2.7b": 2652, "galactica-125m": 125,
    "galactica-1.3b": 1315, "llama-3.2-1b": 1236, "llama-3.2-3b": 3213, "bloom-560m": 559, "bloom-1b1": 1065,
    "bloom-1b7": 1722, "bloom-3b": 3003, "bloomz-560m": 559, "bloomz-1b1": 1065, "pythia-160m": 162,
    "pythia-410m": 405, "pythia-1b": 1012, "pythia-1.4b": 1415, "pythia-2.8b": 2775, "dolly-v2-3b": 2775,
    "redpajama-incite-3b": 2776, "cerebras-gpt-111m": 111, "cerebras-gpt-256m": 256, "cerebras-gpt-590m": 590,
    "cerebras-gpt-1.3b": 1316, "cerebras-gpt-2.7b": 2652, "phi-1": 1418, "phi-1.5": 1418, "phi-2": 2780,
    "phi-3-mini-4k": 3821, "phi-3.5-mini": 3821, "phi-4-mini": 3836, "stablelm-3b-4e1t": 2795,
    "stablelm-2-1.6b": 1645, "tinyllama-1.1b": 1100, "mobilellama-1.4b": 1364, "qwen-1.8b": 1837,
    "qwen1.5-0.5b": 464, "qwen1.5-1.8b": 1837, "qwen1.5-4b": 3950, "qwen2-0.5b": 494, "qwen2-1.5b": 1544,
    "qwen2.5-0.5b": 494, "qwen2.5-1.5b": 1544, "qwen2.5-3b": 3086, "qwen3-0.6b": 596, "qwen3-1.7b": 1721,
    "qwen3-4b": 4022, "mobillama-0.5b": 535, "mobillama-0.8b": 819, "mobillama-1b": 1262, "lamini-gpt-774m": 774,
    "lamini-gpt-1.5b": 1558, "gemma-2b": 2506, "gemma-2-2b": 2614, "gemma-3-1b": 1000, "gemma-3-4b": 3880,
    "minicpm-1b": 1360, "minicpm-2b": 2725, "minicpm3-4b": 4074, "openelm-270m": 272, "openelm-450m": 457,
    "openelm-1.1b": 1080, "openelm-3b": 3037, "h2o-danube-1.8b": 1831, "h2o-danube2-1.8b": 1831,
    "h2o-danube3-500m": 514, "h2o-danube3-4b": 3962, "fox-1-1.6b": 1665, "smollm-135m": 135, "smollm-360m": 362,
    "smollm-1.7b": 1711, "smollm2-135m": 135, "smollm2-360m": 362, "smollm2-1.7b": 1711, "smollm3-3b": 3075,
    "dclm-1b": 1440, "olmo-1b": 1177, "olmo-1b-0724": 1280, "amd-olmo-1b": 1177, "olmo-2-1b": 1485,
    "sheared-llama-1.3b": 1345, "sheared-llama-2.7b": 2702, "minima-3b": 3020, "minima-2-1b": 1373,
    "minitron-4b": 4191, "ct-llm-2b": 2135, "amd-llama-135m": 134, "mobilellm-125m": 125, "mobilellm-350m": 345,
    "mobilellm-600m": 603, "mobilellm-1b": 1005, "mobilellm-1.5b": 1511, "pangu-pi-1b-pro": 943,
    "openllama-3b": 3426, "mpt-1b-redpajama": 1311, "falcon3-1b": 1669, "sailor-0.5b": 464, "gpt2": 124,
    "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558,
}  # fmt: skip
