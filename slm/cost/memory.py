"""Training memory of one process, before anything is built. An estimate: allocators and kernels add their own."""

from __future__ import annotations


def training_bytes(
    *, params: int, state_per_param: int, rows: int, seq_len: int, dim: int, layers: int, ffn_hidden: int, bf16: bool
) -> dict[str, int]:
    """Bytes by kind. Weights, gradients and optimiser state are fp32 and exact; ``activations`` is a model.

    Without recomputation a block keeps about 8 tensors as wide as the stream and 4 as wide as the feed-forward
    per token (Korthikanti et al. 2022, arXiv 2205.05198, adapted to a gated feed-forward and attention that
    does not keep its scores).
    """
    width = 2 if bf16 else 4
    activations = rows * seq_len * layers * (8 * dim + 4 * ffn_hidden) * width
    parts = {
        "weights": 4 * params,
        "gradients": 4 * params,
        "optimizer": 4 * params * state_per_param,
        "activations": activations,
    }
    return parts | {"per_rank_bytes": sum(parts.values())}
