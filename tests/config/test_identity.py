from __future__ import annotations

from slm.config.identity import differences, fingerprint


def test_order_of_keys_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_differences_name_every_leaf() -> None:
    old, new = {"x": {"y": 1, "gone": 2}, "same": 3}, {"x": {"y": 5, "new": 6}, "same": 3}
    assert differences(old, new) == ["x.gone: 2 -> (absent)", "x.new: (absent) -> 6", "x.y: 1 -> 5"]


def test_only_identity_sections_count(tiny) -> None:
    base = tiny()
    assert tiny(impl__threads=2, log__every=7, name="other").identity == base.identity
    for change in ({"train__seed": 1}, {"data__seed": 1}, {"model__layers": 3}, {"train__optim__lr": 1e-3}):
        assert tiny(**change).identity != base.identity
