"""litgpt's GPT in a loop that does what its `pretrain.py` does (0.5), without Fabric: one device needs none of it.

It takes litgpt's model, its chunked cross entropy and its loader's rows; fused AdamW, as it asks for. Not compiled: nobody here is.
"""

from __future__ import annotations

from typing import Any

import torch

from slm.bench.training.job import BETAS, CLIP, EPS, LOG_EVERY, LR, WEIGHT_DECAY, Job, Shape, Stopwatch
from slm.bench.training.with_transformers import Rows


def config_of(s: Shape, vocab: int) -> Any:
    """The shape in litgpt's words."""
    from litgpt.config import Config

    return Config(
        name="bench",
        block_size=s.seq_len,
        vocab_size=vocab,
        padded_vocab_size=vocab,
        n_layer=s.layers,
        n_head=s.heads,
        n_query_groups=s.kv_heads,
        n_embd=s.dim,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
        intermediate_size=s.hidden,
    )


class Whole(Rows):
    """Rows as litgpt's data modules give them: one longer than the context."""

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.rows[index].astype("int64"))


def train(job: Job) -> dict[str, Any]:
    """Train; records every ten steps."""
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    device, s = job.settled(), job.shape
    model = GPT(config_of(s, job.vocab)).to(device)
    model.apply(model._init_weights)
    model.transformer.wte.weight = model.lm_head.weight
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)
    watch, losses, running = Stopwatch(job), [], torch.zeros((), device=device)
    for step, rows in enumerate(torch.utils.data.DataLoader(Whole(job), batch_size=s.rows)):
        for group in optimizer.param_groups:
            group["lr"] = job.rate(step)
        rows = rows.to(device)
        inputs, targets = rows[:, : s.seq_len].contiguous().long(), rows[:, 1 : s.seq_len + 1].contiguous().long()
        with torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            loss = chunked_cross_entropy(model(inputs), targets)
        loss.backward()
        running += loss.detach()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY == 0:
            losses.append(running.item() / LOG_EVERY)
            running.zero_()
        watch.lap()
    return watch.report(sum(p.numel() for p in params), losses)
