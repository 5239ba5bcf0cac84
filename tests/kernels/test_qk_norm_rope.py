from __future__ import annotations

import pytest
import torch
from kernel_checks import (
    DEVICE,
    IMPLS,
    LOW,
    Bug,
    Case,
    check,
    check_all_bugs_are_caught,
    module,
    needs_triton,
    rand,
)

from slm_kernels import qk_norm_rope

reference = module("qk_norm_rope").reference
pytestmark = pytest.mark.usefixtures("poisoned")


def tables(batch: int, T: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions that differ from row to row."""
    position = torch.arange(T)[None] + 3 * torch.arange(batch)[:, None]
    angle = position[..., None] / 10.0 ** (torch.arange(half) / half)
    return angle.cos().float().to(DEVICE), angle.sin().float().to(DEVICE)


def case(
    B: int = 2,
    T: int = 5,
    H: int = 5,
    G: int = 3,
    K: int = 12,
    half: int = 4,
    *,
    eps: float | None = 1e-3,
    gains: str = "shared",
    interleaved: bool = False,
    rows: int | None = None,
    impl: str = "triton",
) -> Case:
    """Queries and keys are views of one tensor, as a fused projection makes them."""
    cos, sin = tables(B if rows is None else rows, T, half)
    offset = 0.5 if gains != "none" else 0.0
    weights = [None, None] if gains == "none" else [rand(K, seed=1), rand(K, seed=2)]
    if gains == "each":
        weights = [rand(H, K, seed=1), rand(G, K, seed=2)]

    def split(qkv):
        q, k, _ = qkv.split((H * K, G * K, G * K), -1)
        return q.view(B, T, H, K), k.view(B, T, G, K)

    def ours(qkv, qw, kw):
        return qk_norm_rope(*split(qkv), cos, sin, qw, kw, eps=eps, offset=offset, interleaved=interleaved, impl=impl)

    def theirs(qkv, qw, kw):
        return reference(*split(qkv), cos, sin, qw, kw, eps, offset, interleaved)

    return Case(ours, theirs, [rand(B, T, (H + 2 * G) * K), *weights], "qk_norm_rope")


SHAPES = [
    {},
    {"T": 1},
    {"B": 1, "T": 1, "H": 1, "G": 1, "K": 2, "half": 1},
    {"H": 9, "G": 3, "K": 64, "half": 32},
    {"K": 10, "half": 5},
    {"K": 80, "half": 16, "H": 4, "G": 4},
    {"T": 33, "H": 2, "G": 1},
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_fp64(shape, dtype, impl) -> None:
    check(case(**shape, impl=impl), dtype)


@needs_triton
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("eps", "gains"), [(None, "none"), (1e-5, "none"), (1e-5, "shared"), (1e-5, "each")])
def test_options(eps, gains, interleaved) -> None:
    check(case(eps=eps, gains=gains, interleaved=interleaved))
    check(case(eps=eps, gains=gains, interleaved=interleaved, rows=1))  # one table for all rows of the batch


@needs_triton
def test_incoming_gradients_as_attention_gives_them() -> None:
    """(B, heads, T, K) outside: outputs are transposed, and so are their gradients."""
    made = case()
    check(
        Case(
            lambda *a: [t.transpose(1, 2) for t in made.ours(*a)],
            lambda *a: [t.transpose(1, 2) for t in made.reference(*a)],
            made.inputs,
        )
    )


@needs_triton
def test_only_one_output_is_used() -> None:
    for made in (case(gains="none", eps=None), case(gains="each")):
        for i in (0, 1):
            ours, theirs = (lambda *a, f=f, i=i: f(*a)[i] for f in (made.ours, made.reference))
            check(Case(ours, theirs, made.inputs))


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing(impl) -> None:
    q, k = torch.empty(2, 0, 4, 8, device=DEVICE), torch.empty(2, 0, 2, 8, device=DEVICE)
    cos = torch.empty(1, 0, 4, device=DEVICE)
    w = torch.ones(8, device=DEVICE, requires_grad=True)
    out = qk_norm_rope(q, k, cos, cos, w, w, eps=1e-5, impl=impl)
    assert [t.shape for t in out] == [q.shape, k.shape]
    assert torch.autograd.grad(out[0].sum() + out[1].sum(), w)[0].abs().max() == 0


@needs_triton
def test_a_rotation_preserves_length_and_scores_depend_on_distance() -> None:
    q = rand(1, 9, 2, 16).float()[:, :1].expand(1, 9, 2, 16)
    cos, sin = tables(1, 9, 8)
    a, b = qk_norm_rope(q, q, cos, sin, impl="triton")
    torch.testing.assert_close(a.norm(dim=-1), q.norm(dim=-1))
    score = torch.einsum("bthk,bshk->bhts", a, b)
    torch.testing.assert_close(score[..., 1:, 1:], score[..., :-1, :-1], rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize(("eps", "gains"), [(None, "none"), (1e-5, "each")])
def test_under_torch_compile_without_a_graph_break(eps, gains) -> None:
    made = case(eps=eps, gains=gains)
    made.ours = torch.compile(made.ours, backend="aot_eager", fullgraph=True)
    check(made)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cos_BTR": torch.ones(1, 3, 2)}, "cos and sin must be"),
        ({"cos_BTR": torch.ones(1, 4, 5), "sin_BTR": torch.ones(1, 4, 5)}, "turn 10 numbers"),
        ({"q_weight": torch.ones(8), "eps": 1e-5}, "both q and k"),
        ({"q_weight": torch.ones(8), "k_weight": torch.ones(8)}, "only with eps"),
        ({"q_weight": torch.ones(8), "k_weight": torch.ones(3, 8), "eps": 1e-5}, "k_weight must be"),
        ({"k_BTGK": torch.ones(2, 4, 1, 6)}, "q and k must be"),
    ],
)
def test_what_is_refused(change, match) -> None:
    good = {"q_BTHK": torch.ones(2, 4, 3, 8), "k_BTGK": torch.ones(2, 4, 1, 8)}
    good |= {"cos_BTR": torch.ones(1, 4, 2), "sin_BTR": torch.ones(1, 4, 2)}
    with pytest.raises(ValueError, match=match):
        qk_norm_rope(**good | change)


CASES = [case(T=13), case(T=13, gains="each", interleaved=True)]
KERNELS = "_rotation_kernels"
BUGS = [
    Bug("_unturned", "dy1 * cos + dy2 * sin", "dy1 * cos - dy2 * sin", module=KERNELS),
    Bug("_unturned", "dy2 * cos - dy1 * sin", "dy1 * cos - dy2 * sin", module=KERNELS),
    Bug("_turn_back", "r * (da1 - n1 * mean)", "r * da1", module=KERNELS),
    Bug("_turn_back", "r * (da3 - n3 * mean)", "da3 - n3 * mean", module=KERNELS),
    Bug("_turn_back", "mean += tl.sum(da3 * n3, 2, keep_dims=True)", "pass", module=KERNELS),
    Bug("_turn_back", "dw2 += da2 * n2", "dw2 += da2 * n1", module=KERNELS),
    Bug("_turn_back", "dw3 += da3 * n3", "dw3 = da3 * n3", module=KERNELS),
    Bug("_turn_back", "da1 * w1, da2 * w2", "da1 * w1, da2 * w1", module=KERNELS),
    Bug("_turn_back", "da3 *= w3", "pass", module=KERNELS),
    Bug("_angles", "i_n // T * cos_sb + ", "", module=KERNELS),
    Bug("_gains", "+ f32(offset)", "", module=KERNELS),
    Bug("_loaded", "squares / K", "squares / (K + 1)", module=KERNELS),
    Bug("_columns", "2 * i_r, 2 * i_r + 1", "2 * i_r + 1, 2 * i_r", case=1, module=KERNELS),
    Bug("_launch_backward", "s.flatten(0, 1).sum(0)", "s[:, 0].sum(0)"),
    Bug("_launch_backward", "s.sum(0) if w.ndim == 2", "s[0] if w.ndim == 2", case=1),
]


@needs_triton
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_a_planted_bug_is_caught(bug, monkeypatch) -> None:
    if bug.function == "_launch_backward":  # it is bound into the op when the module is imported
        home = module("qk_norm_rope")
        monkeypatch.setattr(
            home._function.function,
            "backward",
            staticmethod(lambda ctx, *g: home._backward(home._launch_backward, ctx, *g)),
        )
    check_all_bugs_are_caught(monkeypatch, "qk_norm_rope", bug, CASES)


@needs_triton
def test_bf16() -> None:
    check(case(), torch.bfloat16)
