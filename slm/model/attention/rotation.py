"""Queries and keys before they meet: normalised per head where the part says so, and turned by their positions."""

from __future__ import annotations

from torch import Tensor, nn

from slm.model.norm import RMSNorm
from slm.model.position.rope import Rotary
from slm.model.sequence import Encoding
from slm_kernels import fused, qk_norm_rope


def prepared(
    q_BTHK: Tensor, k_BTGK: Tensor, encoding: Encoding, q_norm: nn.Module | None = None, k_norm: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Queries and keys as attention takes them, (B, heads, T, K): each head through its norm, then rotated.

    ``q_norm`` and ``k_norm``: both or none. Root mean square norms and halves that rotate are one pass over both by
    `slm_kernels.qk_norm_rope` where it has a kernel for them; everything else goes one step after the other.
    """
    if q_norm is None or k_norm is None:
        found = _fused(q_BTHK, k_BTGK, encoding, None, None)
    elif isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
        found = _fused(q_BTHK, k_BTGK, encoding, q_norm, k_norm)
    else:
        found = None
    if found is not None:
        return found[0].transpose(1, 2), found[1].transpose(1, 2)
    if q_norm is not None and k_norm is not None:
        q_BTHK, k_BTGK = q_norm(q_BTHK), k_norm(k_BTGK)
    return encoding.rotate(q_BTHK.transpose(1, 2)), encoding.rotate(k_BTGK.transpose(1, 2))


def _fused(
    q_BTHK: Tensor, k_BTGK: Tensor, encoding: Encoding, q_norm: RMSNorm | None, k_norm: RMSNorm | None
) -> tuple[Tensor, Tensor] | None:
    """The op's answer; None where it wouldn't do this, or not faster than plain operations."""
    turns = type(encoding.position).rotate is Rotary.rotate  # a position of another make may turn other pairs
    if encoding.tables is None or not turns:
        return None
    cos_BTR, sin_BTR = (t[:, 0] for t in encoding.tables)
    q_gain = k_gain = eps = None
    offset = 0.0
    if q_norm is not None and k_norm is not None:
        q_gain, k_gain, eps, offset = q_norm.weight, k_norm.weight, q_norm.eps, float(q_norm.one_plus)
        if (k_norm.eps, k_norm.one_plus, k_gain is None) != (eps, q_norm.one_plus, q_gain is None):
            return None
    if not fused("qk_norm_rope", q_BTHK, k_BTGK, cos_BTR, sin_BTR, q_gain, k_gain, eps, offset, False):
        return None
    return qk_norm_rope(q_BTHK, k_BTGK, cos_BTR, sin_BTR, q_gain, k_gain, eps=eps, offset=offset)
