"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

For a matrix with gradient G (rows x columns), running means of G G^T and G^T G have eigenvectors U (rows) and V (columns). In that basis
the gradient's second moments are close to independent, which is what Adam assumes. So

    G' = U^T G V      v <- b2 v + (1 - b2) G'^2      M' = U^T M V      step = U (M' / sqrt(v)) V^T

The eigenvectors are followed instead of computed: every ``frequency`` steps one power iteration and a QR decomposition (the order of
the eigenvalues is kept descending, and v moves with it). The first gradient only sets the basis, by an eigendecomposition; no weight
moves at that step. As in the authors' code, with the momentum kept in the weights' own basis. Dimensions of weights are never merged.

State per matrix: momentum and v as AdamW, and 2 rows^2 + 2 columns^2 numbers, all fp32. A side longer than ``max_dim`` is not rotated.

The count of steps that decides about a new basis is the host's (``calls``, which counts a step that is called off): the host doesn't
wait for the device to learn how many steps counted. The new basis of a step that is called off is thrown away.

In width, the rate goes as Muon's under muP (m^-1/2): once a batch has more tokens than a matrix has rows, all entries of a rotated
update are of one size, and its spectral norm grows like the root of the width. A coordinate check in the tests shows it.

Sharded, all of that state is sharded with the weights, and meets with the gradient at a matrix's owner (see `shards`).

Source: Vyas et al. 2024, "SOAP: Improving and stabilizing Shampoo using Adam", arXiv 2409.11321.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.train.optim.steps.guarded import GuardedOptimizer, Keep, blend, clock, debias, descend
from slm.train.optim.steps.muon import refuse_other_than_matrices, stacks
from slm.train.optim.steps.shards import Exchange, local, split_of_matrices, zeros_beside


class SOAPOptimizer(GuardedOptimizer):
    """SOAP for matrices and stacks of them (3-D)."""

    def __init__(
        self, params: Any, *, lr: float = 3e-3, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.1, shampoo_beta: float = 0.95, frequency: int = 10, max_dim: int = 10_000,
        cautious: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "shampoo_beta": shampoo_beta,
            "frequency": frequency, "max_dim": max_dim, "cautious": cautious,
        }  # fmt: skip
        super().__init__(params, defaults)
        refuse_other_than_matrices("SOAP", self)

    def fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = {"step": clock(p), "calls": torch.zeros((), dtype=torch.int64, device="cpu")}
        state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for side, length in (("left", p.shape[-2]), ("right", p.shape[-1])):
            if length <= group["max_dim"]:
                for kind in ("gram", "basis"):
                    state[f"{kind}_{side}"] = zeros_beside(p, (*p.shape[:-2], length, length))
        return state

    def step_group(self, group: dict[str, Any], params: list[Tensor], keep: Keep) -> None:
        for chunk in stacks(params):
            states = [self.state_of(p, group) for p in chunk]
            for state in states:
                state["calls"] = state["calls"].cpu() + 1  # a resumed run has it on the device, once
            if split_of_matrices(chunk[0]) is None:
                parts = [{key: local(t) for key, t in state.items()} for state in states]
                directions = [
                    soap_direction(grad, part, group, keep) for grad, part in zip(self.grads(chunk), parts, strict=True)
                ]
            else:
                directions = self._at_the_owners(group, chunk, states, keep)
            for p, direction in zip(chunk, directions, strict=True):
                if direction is not None:
                    descend(local(p), direction, group, keep)

    def _at_the_owners(
        self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Tensor]], keep: Keep
    ) -> list[Tensor | None]:
        """Directions, and states brought up to date, with each matrix computed by one process."""
        keys = [key for key in states[0] if key not in ("step", "calls")]
        tensors = {"grad": (params, self.grads(params))}
        tensors |= {key: ([s[key] for s in states], [local(s[key]) for s in states]) for key in keys}
        exchanges = {key: _exchange(whole) for key, (whole, _) in tensors.items()}
        whole = {key: exchanges[key].gather(_matrices(pieces)) for key, (_, pieces) in tensors.items()}
        depth = exchanges["grad"].count // len(params)  # matrices per parameter
        for j, i in enumerate(exchanges["grad"].mine):
            owned = {key: whole[key][j] for key in keys}
            owned |= {"calls": states[i // depth]["calls"], "step": states[i // depth]["step"].clone()}
            direction = soap_direction(whole["grad"][j], owned, group, keep)
            if direction is not None:
                whole["grad"][j] = direction
        moving = [int(state["calls"]) > 1 for state in states]
        for state, moves in zip(states, moving, strict=True):
            if moves:
                state["step"].add_(keep)
        for key, (_, pieces) in tensors.items():
            for piece, new in zip(_matrices(pieces), exchanges[key].scatter(whole[key]), strict=True):
                piece.copy_(new)
        return [u if moves else None for u, moves in zip(tensors["grad"][1], moving, strict=True)]


def soap_direction(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], keep: Keep) -> Tensor | None:
    """SOAP's direction for whole matrices (..., rows, columns), and their state brought up to date; None at the first step."""
    (beta1, beta2), calls = group["betas"], int(state["calls"])
    if calls == 1:
        _update_grams(grad, state, group, keep)
        for side in _sides(state):
            state[f"basis_{side}"].copy_(torch.linalg.eigh(state[f"gram_{side}"]).eigenvectors.flip(-1))
        return None
    m, v, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
    step.add_(keep)
    blend(m, grad, (1 - beta1) * keep)
    blend(v, _rotate(grad, state).square_(), (1 - beta2) * keep)
    denominator = (v / debias(beta2, step)).sqrt_().add_(group["eps"])
    direction = _rotate_back((_rotate(m, state) / debias(beta1, step)).div_(denominator), state)
    _update_grams(grad, state, group, keep)
    if (calls - 1) % group["frequency"] == 0:
        _follow(state, keep)
    return direction


def _sides(state: dict[str, Tensor]) -> list[str]:
    return [side for side in ("left", "right") if f"basis_{side}" in state]


def _update_grams(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], keep: Keep) -> None:
    for side in _sides(state):
        gram = state[f"gram_{side}"]
        product = grad @ grad.mT if side == "left" else grad.mT @ grad
        blend(gram, product, (1 - group["shampoo_beta"]) * keep)


def _rotate(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Into the eigenbasis: U^T x V."""
    x = state["basis_left"].mT @ x if "basis_left" in state else x
    return x @ state["basis_right"] if "basis_right" in state else x.clone()


def _rotate_back(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Out of the eigenbasis: U x V^T."""
    x = state["basis_left"] @ x if "basis_left" in state else x
    return x @ state["basis_right"].mT if "basis_right" in state else x


def _follow(state: dict[str, Tensor], keep: Keep) -> None:
    """The next basis: one power iteration from the last one, made orthogonal again; second moments move with their direction."""
    moments = state["exp_avg_sq"]
    for side in _sides(state):
        gram, basis = state[f"gram_{side}"], state[f"basis_{side}"]
        image = gram @ basis
        order = (basis * image).sum(-2).argsort(dim=-1, descending=True, stable=True)  # Rayleigh quotients
        new = torch.linalg.qr(image.take_along_dim(order.unsqueeze(-2), -1)).Q
        along = order.unsqueeze(-1) if side == "left" else order.unsqueeze(-2)
        moved = moments.take_along_dim(along, -2 if side == "left" else -1)
        for old, fresh in ((basis, new), (moments, moved)):
            old.copy_(fresh if isinstance(keep, float) else torch.where(keep > 0, fresh, old))


def _exchange(whole: list[Tensor]) -> Exchange:
    """How matrices of these (sharded) tensors reach their owners: those of one parameter the same owner, whatever their shape."""
    split = split_of_matrices(whole[0])
    assert split is not None
    rows, columns = whole[0].shape[-2:]
    return Exchange(split, rows, columns, sum(t.numel() for t in whole) // (rows * columns))


def _matrices(pieces: list[Tensor]) -> list[Tensor]:
    """The pieces of single matrices: stacks taken apart, as views."""
    return [m for piece in pieces for m in (piece if piece.ndim == 3 else [piece])]
