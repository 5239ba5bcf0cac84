"""Hugging Face's Trainer with a LlamaForCausalLM of the same shape, as its documentation shows it."""

from __future__ import annotations

from typing import Any

import torch

from slm.bench.training.job import BETAS, CLIP, EPS, LOG_EVERY, LR, WARMUP, WEIGHT_DECAY, Job, Stopwatch


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows without their last target: the model shifts labels itself."""

    def __init__(self, job: Job) -> None:
        self.rows = job.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.rows[index, :-1].astype("int64"))
        return {"input_ids": ids, "labels": ids}


def train(job: Job) -> dict[str, Any]:
    """Train in the rows' order. The Trainer's own records, one in ten steps; no evaluation, no checkpoint, no progress bar."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    job.settled()
    s = job.shape
    config = LlamaConfig(
        vocab_size=job.vocab,
        hidden_size=s.dim,
        intermediate_size=s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        max_position_embeddings=s.seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model, watch = LlamaForCausalLM(config), Stopwatch(job)

    class Laps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.lap()

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    arguments = TrainingArguments(
        output_dir=job.out,
        max_steps=job.total,
        per_device_train_batch_size=s.rows,
        learning_rate=LR,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        optim="adamw_torch_fused",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        bf16=job.precision == "bf16",
        use_cpu=job.device == "cpu",
        logging_steps=LOG_EVERY,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=Rows(job), callbacks=[Laps()])
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return watch.report(sum(p.numel() for p in model.parameters()), losses)
