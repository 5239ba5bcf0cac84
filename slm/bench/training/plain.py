"""The peer that people fork: one file, a plain PyTorch decoder and a loop of twenty lines.

In the manner of nanoGPT and nanochat, written anew: a flat file of tokens cut from a map, separate projections, rotary tables
kept in buffers, `scaled_dot_product_attention`, all logits in memory, fused AdamW, the loss read at every step. It knows no
documents within a row and writes nothing down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.bench.training.job import BETAS, CLIP, EPS, LR, WEIGHT_DECAY, Job, Shape, Stopwatch


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = s.heads, s.kv_heads, s.dim // s.heads
        self.q = nn.Linear(s.dim, s.heads * self.width, bias=False)
        self.k = nn.Linear(s.dim, s.kv_heads * self.width, bias=False)
        self.v = nn.Linear(s.dim, s.kv_heads * self.width, bias=False)
        self.proj = nn.Linear(s.dim, s.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        q = self.q(x).view(B, T, self.heads, self.width)
        k = self.k(x).view(B, T, self.kv_heads, self.width)
        v = self.v(x).view(B, T, self.kv_heads, self.width)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.proj(y.transpose(1, 2).contiguous().view(B, T, D))  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the halves of each head against each other. (B, T, H, K)"""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(s.dim, eps=1e-5), nn.RMSNorm(s.dim, eps=1e-5)
        self.attention = Attention(s)
        self.gate = nn.Linear(s.dim, s.hidden, bias=False)
        self.up = nn.Linear(s.dim, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Ids and targets in, mean cross entropy out."""

    cos: Tensor
    sin: Tensor

    def __init__(self, s: Shape, vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, s.dim)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.dim, eps=1e-5)
        self.head = nn.Linear(s.dim, vocab, bias=False)
        self.head.weight = self.embed.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        half = s.dim // s.heads // 2
        angle = torch.outer(torch.arange(s.seq_len).float(), 10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", angle.sin()[None, :, None], persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW that decays matrices and leaves vectors alone."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)


def batch_of(job: Job, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step, cut from the file."""
    first = step * job.shape.rows
    rows = torch.stack([torch.from_numpy(job.rows[first + i].astype(np.int64)) for i in range(job.shape.rows)])
    return rows[:, :-1].contiguous().to(device), rows[:, 1:].contiguous().to(device)


def train(job: Job) -> dict[str, Any]:
    """Train; the batch of the next step is fetched while the device works on this one, as they do."""
    device = job.settled()
    model = GPT(job.shape, job.vocab).to(device)
    optimizer = optimizer_of(model)
    watch, losses = Stopwatch(job), []
    x, y = batch_of(job, 0, device)
    for step in range(job.total):
        for group in optimizer.param_groups:
            group["lr"] = job.rate(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            loss = model(x, y)
        if step + 1 < job.total:
            x, y = batch_of(job, step + 1, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        watch.lap()
    return watch.report(sum(p.numel() for p in model.parameters()), losses)
