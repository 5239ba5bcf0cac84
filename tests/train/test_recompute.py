"""What is computed again changes no bit of the result, and less is held."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.config.errors import ConfigError
from slm.model.config import Model
from slm.model.decoder import Decoder
from slm.train.config import Impl
from slm.train.recompute import Budget, Every, Full, NoRecompute, Ops, RecomputePart, recompute
from tests.model.variants import GQA, VARIANTS, ids, model_of

DOCS = torch.tensor([[0] * 10 + [1] * 14]).expand(2, -1)


@pytest.fixture(autouse=True)
def _default_budget() -> Iterator[None]:
    yield
    torch._functorch.config.activation_memory_budget = 1.0


def trained(part: RecomputePart, config: Model, backend: str = "auto") -> list[Tensor]:
    """The loss and every gradient of one step."""
    decoder = Decoder(config).init_weights(0)
    decoder.attention_backend = backend
    part.apply(decoder)
    loss = decoder.training_loss(ids(), ids(seed=3), docs_BT=DOCS).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in decoder.parameters())]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert [torch.equal(a, b) for a, b in zip(got, wanted, strict=True)] == [True] * len(wanted)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_bit_of_loss_or_gradients_changes(name: str) -> None:
    wanted = trained(NoRecompute(), model_of(name))
    for part in (Full(), Ops(keep_matmuls=0.5)):
        assert_same(trained(part, model_of(name)), wanted)


@pytest.mark.parametrize("name", ["gqa", "window", "mla", "alibi", "differential"])
@pytest.mark.parametrize("part", [Full(), Ops(), Every()], ids=lambda p: p.part_name)
def test_nor_with_fused_attention(part: RecomputePart, name: str) -> None:
    assert_same(trained(part, model_of(name), "sdpa"), trained(NoRecompute(), model_of(name), "sdpa"))


@pytest.mark.parametrize("part", [Full(), Ops()], ids=lambda p: p.part_name)
def test_nor_under_autocast(part: RecomputePart) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(trained(part, model_of("canon")), trained(NoRecompute(), model_of("canon")))


class _Made(TorchDispatchMode):
    """Remembers, without holding them, which storages operations have made."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self, weights: nn.Module) -> int:
        """Bytes, without views of the weights."""
        own = {p.untyped_storage()._cdata for p in weights.parameters()}
        return sum(size for at, (ref, size) in self.storages.items() if at not in own and not ref.expired())


def held(part: RecomputePart, layers: int = 4) -> int:
    """Bytes that a forward pass leaves behind for the backward pass, head and embeddings included."""
    config = Model(dim=64, layers=layers, vocab=50, context=64, attention=GQA, ffn="swiglu")
    decoder = Decoder(config).init_weights(0)
    decoder.attention_backend = "sdpa"
    part.apply(decoder)
    tokens = torch.randint(50, (2, 64), generator=torch.Generator().manual_seed(0))
    with _Made() as made:
        loss = decoder.training_loss(tokens, tokens).loss
    kept = made.alive(decoder)
    del loss  # until here it holds the graph
    return kept


def test_the_less_is_kept_the_less_is_held() -> None:
    sizes = {repr(p): held(p) for p in (Full(), Ops(keep_matmuls=0.0), Ops(keep_matmuls=0.5), Ops(), NoRecompute())}
    assert list(sizes.values()) == sorted(sizes.values())
    assert len(set(sizes.values())) == len(sizes)
    assert sizes[repr(Full())] < held(Every()) < sizes[repr(NoRecompute())]
    # all that full keeps of one more block is what enters it: 2 rows x 64 tokens x 64 numbers of 4 bytes
    entering = 2 * 64 * 64 * 4
    assert held(Full(), 5) - held(Full(), 4) == entering
    # ops keeps 12 tensors of that size where none keeps 20, each a little more for statistics of norms
    assert held(Ops(), 5) - held(Ops(), 4) < 12.1 * entering
    assert held(NoRecompute(), 5) - held(NoRecompute(), 4) < 20.1 * entering


@pytest.mark.parametrize(("k", "again"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (9, [0])])
def test_every_kth_block_runs_again(k: int, again: list[int]) -> None:
    """Four blocks and two of multi-token prediction."""
    decoder = Decoder(model_of("mtp", layers=4)).init_weights(0)
    Every(k=k).apply(decoder)
    runs: list[int] = []
    for i, block in enumerate([*decoder.blocks, *(depth.block for depth in decoder.further)]):
        block.attention_norm.register_forward_hook(lambda *_, i=i: runs.append(i))
    loss = decoder.training_loss(ids(), ids(seed=3)).loss
    assert runs == [0, 1, 2, 3, 4, 5]
    loss.backward()
    assert sorted(runs[6:]) == again


@pytest.mark.parametrize("part", [Full(), Ops()], ids=lambda p: p.part_name)
@torch.no_grad()
def test_nothing_happens_without_gradients_or_with_a_cache(part: RecomputePart) -> None:
    plain, decoder = (Decoder(model_of("canon")).init_weights(0) for _ in range(2))
    part.apply(decoder)
    assert torch.equal(decoder(ids()), plain(ids()))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            cache = decoder.new_cache(2, 24)
            steps = torch.cat([decoder(ids()[:, i : i + 8].clone(), cache=cache) for i in (0, 8, 16)], 1)
        torch.testing.assert_close(steps, plain(ids()), atol=1e-5, rtol=1e-5)


def test_names_stay_and_a_copy_runs_its_own_weights() -> None:
    plain, decoder = (Decoder(model_of("all shared")).init_weights(0) for _ in range(2))
    Full().apply(decoder)
    assert [*decoder.state_dict()] == [*plain.state_dict()]
    assert [n for n, _ in decoder.named_modules()] == [n for n, _ in plain.named_modules()]
    twin = copy.deepcopy(decoder)
    with torch.no_grad():
        for p in decoder.parameters():
            p.zero_()
    assert torch.equal(twin(ids()), plain(ids()))


def test_twice_is_refused() -> None:
    decoder = Decoder(model_of("gqa"))
    Full().apply(decoder)
    with pytest.raises(ValueError, match="replaced already"):
        Ops().apply(decoder)


def test_a_budget_is_the_compilers_and_the_next_part_takes_it_back() -> None:
    with pytest.raises(ConfigError, match=r"impl\.compile is none"):
        Impl(recompute="budget")
    assert Impl(recompute="budget", compile=True).recompute == Budget()
    decoder = Decoder(model_of("gqa"))
    Budget(share=0.25).apply(decoder)
    assert torch._functorch.config.activation_memory_budget == 0.25
    NoRecompute().apply(decoder)
    assert torch._functorch.config.activation_memory_budget == 1.0


def test_every_part_is_named_here() -> None:
    assert set(recompute.parts) == {"none", "full", "every", "ops", "budget"}
