from __future__ import annotations

import pytest
import torch

from slm.config.errors import ConfigError
from slm.generate import Sampling, generate
from slm.generate.stream import Utf8Stream
from slm.model.config import Model
from slm.model.decoder import Decoder

MODEL = (
    Decoder(Model(dim=32, layers=2, vocab=40, context=16, init={"name": "normal", "sigma": 0.3})).init_weights(0).eval()
)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=1.0, top_k=10, top_p=0.9, seed=3)])
@pytest.mark.parametrize("new", [5, 60])
def test_the_cache_changes_nothing_also_past_the_context(sampling: Sampling, new: int) -> None:
    cached = list(generate(MODEL, [1, 2, 3], max_new_tokens=new, sampling=sampling))
    assert cached == list(generate(MODEL, [1, 2, 3], max_new_tokens=new, sampling=sampling, use_cache=False))
    assert len(cached) == new


def test_a_prompt_longer_than_the_context_keeps_its_end() -> None:
    long = list(range(1, 36))
    assert list(generate(MODEL, long, max_new_tokens=3, sampling=Sampling(0))) == list(
        generate(MODEL, long[-16:], max_new_tokens=3, sampling=Sampling(0))
    )


def test_a_shorter_context_is_that_of_a_shorter_model() -> None:
    """The same weights forget earlier: what comes out is what a model of that context says."""
    short = Decoder(MODEL.config.with_(context=8)).eval()
    short.load_state_dict(MODEL.state_dict())
    wanted = list(generate(short, [1, 2, 3], max_new_tokens=20, sampling=Sampling(temperature=0)))
    assert list(generate(MODEL, [1, 2, 3], max_new_tokens=20, context=8, sampling=Sampling(temperature=0))) == wanted
    longest = MODEL.config.context
    with pytest.raises(
        ConfigError, match=f"context={longest + 1} must be between 2 and the model's context of {longest}"
    ):
        list(generate(MODEL, [1], max_new_tokens=1, context=longest + 1))


def test_stop_is_not_yielded() -> None:
    ids = list(generate(MODEL, [1], max_new_tokens=20, sampling=Sampling(0)))
    stop = ids[3]
    assert list(generate(MODEL, [1], max_new_tokens=20, sampling=Sampling(0), stop=stop)) == ids[: ids.index(stop)]


def test_cuts_remove_what_they_should() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)

    def drawn(**kwargs: float) -> set[int]:
        sampling = Sampling(temperature=1.0, **({"top_p": 1.0} | kwargs))  # type: ignore[arg-type]
        return {sampling.pick(logits, generator) for _ in range(400)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.7) == {0, 1}
    assert drawn(top_p=0.85) == {0, 1, 2}


def test_a_temperature_that_fp32_can_not_divide_by_takes_the_likeliest() -> None:
    greedy = list(generate(MODEL, [1], max_new_tokens=5, sampling=Sampling(0)))
    assert list(generate(MODEL, [1], max_new_tokens=5, sampling=Sampling(1e-45))) == greedy


def test_seeds_and_bad_settings() -> None:
    a, b, c = (list(generate(MODEL, [1], max_new_tokens=30, sampling=Sampling(1.0, seed=s))) for s in (0, 0, 1))
    assert a == b != c
    with pytest.raises(ConfigError):
        Sampling(temperature=-1)
    for odd in ({"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": float("nan")}):
        with pytest.raises(ConfigError, match="finite temperature"):
            Sampling(**odd)
    with pytest.raises(ConfigError, match="64 bits"):
        Sampling(seed=10**20)
    with pytest.raises(ConfigError, match="at least one"):
        next(generate(MODEL, [], max_new_tokens=1))


def test_utf8_comes_out_in_whole_characters() -> None:
    stream, raw = Utf8Stream(), "a漢🙂".encode()
    pieces = [stream.feed(raw[i : i + 1]) for i in range(len(raw))]
    assert "".join(pieces) == "a漢🙂"
    assert "\ufffd" not in "".join(pieces)
    assert stream.feed(b"\xf0\x9f") + stream.end() == "\ufffd"
