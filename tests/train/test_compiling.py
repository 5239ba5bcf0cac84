"""Blocks compile as one graph each, one graph serves all that are alike, and nothing changes by it.

Most tests stop before code is generated (`Graphs`): what can go wrong in slm goes wrong in tracing.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from slm.config.errors import ConfigError, RunError
from slm.config.registry import REGISTRIES
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train import compiling
from slm.train.config import Impl
from slm.train.objective import LossModule
from slm.train.recompute import Full, NoRecompute, Ops, recompute
from tests.model.variants import BASE, ids, model_of

DOCS = torch.tensor([[0] * 10 + [1] * 14]).expand(2, -1)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Every test counts from nothing, and leaves torch's limits as they were."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield
    torch._dynamo.reset()


class Graphs(list[Any]):
    """A backend that collects graphs and runs them plainly."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.append(graph)
        return graph.forward


def loss_of(decoder: Decoder) -> Tensor:
    return decoder.training_loss(ids(), ids(seed=3), docs_BT=DOCS).loss


def trained(decoder: Decoder) -> list[Tensor]:
    """The loss and every gradient."""
    loss = loss_of(decoder)
    loss.backward()
    return [loss.detach(), *(p.grad for p in decoder.parameters() if p.grad is not None)]


def assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


# ---- one graph per block ------------------------------------------------------------------------------------

BROKEN = {"moe": "MixtureModule"}
"""Parts that can't be in one graph, and the module that says why."""


def parts(slot: str) -> list[str]:
    """The package's own parts of a slot; other tests may have registered theirs."""
    return [name for name, cls in REGISTRIES[slot].parts.items() if cls.__module__.startswith("slm.")]


def mixed(i: int) -> dict[str, Any]:
    """The i-th part of every slot, from the beginning again where a slot has fewer."""
    chosen = {slot: parts(slot)[i % len(parts(slot))] for slot in ("attention", "ffn", "norm", "residual", "position")}
    if chosen["attention"] == "rglru":
        chosen["position"] = "none"
    return chosen | {"conv": {"name": "canon", "points": "AC"} if i % 2 else "none"}


MODELS = max(len(parts(slot)) for slot in ("attention", "ffn", "norm", "residual", "position"))


def test_the_models_below_have_every_part() -> None:
    for slot in ("attention", "ffn", "norm", "residual", "position"):
        assert {mixed(i)[slot] for i in range(MODELS)} == set(parts(slot))


@pytest.mark.parametrize("i", range(MODELS))
def test_a_block_of_any_parts_is_one_graph(i: int) -> None:
    chosen = mixed(i)
    attention = {"name": chosen["attention"], "heads": 4}
    decoder = Decoder(Model(**BASE | chosen | {"attention": attention})).init_weights(0)
    assert set(compiling.graph_breaks(decoder)) == ({BROKEN[chosen["ffn"]]} if chosen["ffn"] in BROKEN else set())
    wanted, graphs = loss_of(decoder).detach(), Graphs()
    compiling.apply_blocks(decoder, graphs)
    assert_equal([loss_of(decoder).detach()], [wanted])
    assert len(graphs) > 1 if compiling.graph_breaks(decoder) else len(graphs) == layers_apart(decoder)


def layers_apart(decoder: Decoder) -> int:
    """Graphs that a decoder needs: one, or one per layer where a number of the layer is part of the formula."""
    attention = decoder.config.attention.part_name
    return decoder.config.layers if attention == "differential" else 1  # lambda_0 = 0.8 - 0.6 exp(-0.3 layer)


@pytest.mark.parametrize(
    ("name", "graphs"),
    [
        ("gqa", 1),
        ("lambdas", 1),
        ("shared_ffn", 1),
        ("mtp", 1),
        ("value_mix first", 2),  # the first layer hands its values on, the others take them
        ("differential", 9),  # see `layers_apart`: more than the 8 after which torch would give up
    ],
)
def test_twelve_layers_share_their_graph(name: str, graphs: int) -> None:
    layers = 9 if name == "differential" else 12
    decoder, made = Decoder(model_of(name, layers=layers)).init_weights(0), Graphs()
    compiling.apply_blocks(decoder, made)
    for _ in range(2):
        loss_of(decoder)
    assert len(made) == graphs


# ---- nothing else changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", ["ops", *(pytest.param(p, marks=pytest.mark.slow) for p in ("none", "full", "budget"))]
)
def test_what_is_run_again_is_compiled_too(part: str) -> None:
    wanted = trained(Decoder(model_of("value_mix first")).init_weights(0))
    decoder = Decoder(model_of("value_mix first")).init_weights(0)
    recompute.parse(part).apply(decoder)
    compiling.apply_blocks(decoder, "aot_eager")
    assert_equal(trained(decoder), wanted)
    NoRecompute().apply(decoder)  # the next test finds the compiler's own budget


def test_evaluation_and_decoding_are_not_compiled() -> None:
    decoder, made = Decoder(model_of("gqa")).init_weights(0), Graphs()
    compiling.apply_blocks(decoder, made)
    with torch.no_grad():
        whole = decoder(ids())
        decoder(ids(), cache=decoder.new_cache(2, 24))
    decoder.eval()
    torch.testing.assert_close(decoder(ids()), whole)
    assert not made


def test_names_stay_and_a_copy_runs_its_own_weights() -> None:
    plain, decoder = (Decoder(model_of("gqa")).init_weights(0) for _ in range(2))
    compiling.apply_blocks(decoder, Graphs())
    assert [*decoder.state_dict()] == [*plain.state_dict()]
    assert [n for n, _ in decoder.named_modules()] == [n for n, _ in plain.named_modules()]
    twin = copy.deepcopy(decoder)
    with torch.no_grad():
        for p in decoder.parameters():
            p.zero_()
    assert_equal(trained(twin), trained(plain))


class Breaking(nn.Module):
    """Asks the host for a number in the middle of a block."""

    def forward(self, x_BTD: Tensor, here: object) -> Tensor:
        return x_BTD * (1.0 if x_BTD.sum().item() > 0 else 2.0)


def test_a_module_that_breaks_the_graph_is_named_unless_it_says_so() -> None:
    decoder = Decoder(model_of("gqa")).init_weights(0)
    decoder.blocks[1].ffn = Breaking()
    compiling.apply_blocks(decoder, Graphs())
    with pytest.raises(RunError, match=r"(?s)a Block of this model can't be compiled as one graph.*graph_breaks"):
        loss_of(decoder)
    torch._dynamo.reset()
    decoder, made = Decoder(model_of("gqa")).init_weights(0), Graphs()
    decoder.blocks[1].ffn = Breaking()
    decoder.blocks[1].ffn.graph_breaks = "asks the host"
    compiling.apply_blocks(decoder, made)
    loss_of(decoder)
    assert len(made) > 1


@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_running_again_what_breaks_the_graph_is_refused(how: Any) -> None:
    decoder = Decoder(model_of("moe"))
    Ops().apply(decoder)
    with pytest.raises(ConfigError, match=r"MixtureModule can't be part of one graph.*impl.recompute=none"):
        compiling.apply(LossModule(decoder), decoder, how)


def test_whole_and_none() -> None:
    decoder = Decoder(model_of("gqa")).init_weights(0)
    module = LossModule(decoder)
    assert compiling.apply(module, decoder, "none") is module
    whole = compiling.apply(module, decoder, "whole")
    assert isinstance(whole, torch._dynamo.eval_frame.OptimizedModule)
    assert whole._orig_mod is module


def test_yes_is_blocks() -> None:
    assert [Impl(compile=value).compile for value in (True, False, "whole", "none")] == [
        "blocks",
        "none",
        "whole",
        "none",
    ]
    assert "12.3 s" in compiling.first_step_note(12.34)


# ---- all the way --------------------------------------------------------------------------------------------


def three_losses(how: Any, again: Any) -> list[float]:
    decoder = Decoder(model_of("gqa")).init_weights(0)
    again.apply(decoder)
    module = compiling.apply(LossModule(decoder), decoder, how)
    optimizer, losses = torch.optim.AdamW(decoder.parameters(), lr=1e-2), []
    positions = torch.arange(24).expand(2, -1)
    for _ in range(3):
        loss, *_ = module(ids(), ids(seed=3), positions, DOCS)
        (loss / 48).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()) / 48)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(("how", "again"), [("blocks", NoRecompute()), ("blocks", Full()), ("whole", NoRecompute())])
def test_three_steps_of_generated_code(how: str, again: Any) -> None:
    assert three_losses(how, again) == pytest.approx(three_losses("none", NoRecompute()), abs=1e-5)


@pytest.mark.slow
def test_compiled_blocks_that_run_again_under_fsdp2() -> None:
    worker = Path(__file__).with_name("compile_worker.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"none", "full", "ops"}
    for error, graphs in found.values():
        assert error < 1e-5  # fp32: the order of sums differs
        assert graphs == 2  # the block that hands its values on, and the others
