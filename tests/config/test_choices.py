"""Groups chosen on the command line under recipes whose own values were written for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from slm.config.base import Config
from slm.config.compose import Composed, compose
from slm.config.errors import ConfigError
from slm.config.registry import Part, Registry
from slm.data.tokenizer import BytePairs
from slm.run import Run


class PlacePart(Part):
    """Where a token stands."""


slot = Registry("test_place", PlacePart)


@slot.register("turned")
class Turned(PlacePart):
    warm: int = 1
    base: float = 10.0


@slot.register("looked_up")
class LookedUp(PlacePart):
    warm: int = 1
    offset: int = 0


@slot.register("none")
class Nowhere(PlacePart):
    """Nothing to set."""


class Reader(Config):
    exclusive = (("one", "store"),)
    one: Annotated[PlacePart | None, slot.field(optional=True)] = None
    store: str | None = None


class Texts(Config):
    exclusive = (("one", "many"), ("one", "shares"))
    one: Annotated[PlacePart | None, slot.field(optional=True)] = None
    many: dict[str, Reader] | None = None
    shares: tuple[float, ...] = ()
    rows: int = 1


class Net(Config):
    width: int = 16
    place: Annotated[PlacePart, slot.field()] = Nowhere()


class Toy(Config):
    model: Net = Net()
    data: Texts = Texts()
    notes: tuple[str, ...] = ()


FILES = {
    "model/turned": "width: 8\nplace: {name: turned, base: 5}\n",
    "model/looked_up": "width: 4\nplace: {name: looked_up, offset: 2}\n",
    "model/bare": "place: looked_up\n",
    "model/silent": "width: 2\n",
    "model/odd": "place: {name: looked_up, ofset: 2}\n",
    "data/one": "one: {name: turned, base: 3}\nrows: 3\n",
    "data/other": "one: looked_up\n",
    "data/many": "many: {a: {one: {name: turned}}, b: {store: here}}\nshares: [0.5, 0.5]\nrows: 7\n",
    "data/many_other": "many: {a: {one: looked_up}, b: {store: here}}\nshares: [0.5, 0.5]\n",
    "rotary": "defaults: [{model: turned}, {data: one}, _self_]\n"
    "model: {width: 9, place: {base: 7, warm: 4}}\ndata: {one: {base: 4}}\n",
    "mixed": "defaults: [{model: turned}, {data: many}, _self_]\n"
    "data: {many: {a: {one: {base: 6}}, c: {store: there}}, shares: [0.5, 0.25, 0.25], rows: 9}\n",
    "upon": "defaults: [rotary, _self_]\nmodel: {place: {warm: 6}}\n",
    "named": "defaults: [{model: bare}, _self_]\nmodel: {place: {name: turned, base: 2}}\n",
    "wrong": "defaults: [{model: turned}, _self_]\nmodel: {place: {bas: 7}}\n",
}


@pytest.fixture(autouse=True)
def _recipes(tmp_path: Path) -> None:
    for name, text in FILES.items():
        file = tmp_path / "recipes" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def make(recipe: str, *overrides: str) -> Composed[Toy]:
    return compose(recipe, list(overrides), schema=Toy)


@pytest.mark.parametrize("option", ["looked_up", "bare"])
def test_the_chosen_part_wins_and_keeps_the_fields_it_has_too(option: str) -> None:
    made = make("rotary", f"model={option}")
    assert made.config.model == Net(width=9, place=LookedUp(warm=4, offset=2 if option == "looked_up" else 0))
    assert made.notes == ["model.place: turned -> looked_up (kept warm=4; dropped base=7)"]
    assert made.config.notes == tuple(made.notes)


def test_an_option_that_does_not_name_a_part_means_the_usual_one() -> None:
    made = make("rotary", "model=silent")
    assert made.config.model == Net(width=9, place=Nowhere())
    assert made.notes == ["model.place: turned -> none (dropped base=7, warm=4)"]


def test_a_recipe_upon_a_recipe() -> None:
    made = make("upon", "model=looked_up")
    assert made.config.model == Net(width=9, place=LookedUp(warm=6, offset=2))
    assert made.notes == ["model.place: turned -> looked_up (kept warm=6; dropped base=7)"]


@pytest.mark.parametrize("overrides", [[], ["model=turned"], ["model=turned", "data=one"]])
def test_what_fits_stays_and_nothing_is_said(overrides: list[str]) -> None:
    made = make("rotary", *overrides)
    assert made.config.model == Net(width=9, place=Turned(warm=4, base=7))
    assert made.config.data == Texts(one=Turned(base=4), rows=3)
    assert made.notes == []


def test_a_part_that_the_recipe_names_whole_stays() -> None:
    made = make("named", "model=silent")
    assert made.config.model == Net(width=2, place=Turned(base=2))
    assert made.notes == []
    made = make("named", "model=looked_up")  # its offset has no place in the recipe's part
    assert made.config.model == Net(width=4, place=LookedUp(offset=2))
    assert made.notes == ["model.place: turned -> looked_up (dropped base=2)"]


def test_the_chosen_of_fields_that_exclude_each_other_stays() -> None:
    made = make("mixed", "data=other")
    assert made.config.data == Texts(one=LookedUp(), rows=9)
    assert [note.partition("=")[0] for note in made.notes] == [
        "data: one replaces many",
        "data: one replaces shares",
    ]
    made = make("rotary", "data=many")
    assert made.config.data.one is None
    assert made.config.data.shares == (0.5, 0.5)
    assert made.notes == ["data: many replaces one={'base': 4}"]


def test_slots_under_names_of_ones_own() -> None:
    made = make("mixed", "data=many_other")
    assert made.config.data.many == {"a": Reader(one=LookedUp()), "b": Reader(store="here"), "c": Reader(store="there")}
    assert made.notes == ["data.many.a.one: turned -> looked_up (dropped base=6)"]


def test_what_is_asked_for_is_never_dropped() -> None:
    made = make("rotary", "model=looked_up", "model.place.warm=8")
    assert made.config.model.place == LookedUp(warm=8, offset=2)
    assert made.notes == ["model.place: turned -> looked_up (dropped base=7)"]
    with pytest.raises(ConfigError, match=r"Unknown key 'model.place.base'"):
        make("rotary", "model=looked_up", "model.place.base=8")


@pytest.mark.parametrize(("recipe", "option"), [("wrong", "looked_up"), ("wrong", "turned"), ("rotary", "odd")])
def test_a_key_that_no_part_has_is_still_an_error(recipe: str, option: str) -> None:
    with pytest.raises(ConfigError, match=r"bas|ofset"):
        make(recipe, f"model={option}")


def test_shipped_recipes() -> None:
    made = compose("smollm2-1.7b", ["data=stdlib", "train=trunk", "model=gpt2", "impl=auto"], schema=Run)
    usual = compose("smollm2-1.7b", ["impl=auto"], schema=Run)
    data, train = made.config.data, made.config.train
    assert (list(data.members), data.mixture, made.config.model.position.part_name) == (["stdlib"], (), "learned")
    assert (train.budget, train.batch_tokens, train.optim) == (
        usual.config.train.budget,
        usual.config.train.batch_tokens,
        usual.config.train.optim,
    )
    assert "train.schedule: wsd -> constant (kept warmup=2000 steps; dropped decay=10%)" in made.notes
    assert "model.position: rope -> learned (dropped base=10000.0)" in made.notes
    assert (len(made.notes), usual.notes) == (4, [])


@pytest.mark.parametrize(
    ("asked", "note"),
    [
        ("olmo2-1b data=dolma data.source.paths=x", "data: source replaces mixture="),
        ("speedrun data=dolma data.source.paths=x", "data.source: fineweb_edu -> dolma (dropped config=sample-10BT)"),
        ("speedrun data=edu_dclm", "data: sources replaces source="),
    ],
)
def test_other_text_under_shipped_recipes(asked: str, note: str) -> None:
    recipe, *overrides = asked.split()
    made = compose(recipe, [*overrides, "impl=auto"], schema=Run)
    assert len(made.notes) == 1
    assert made.notes[0].startswith(note)


def test_one_source_is_set_inside_without_a_word() -> None:
    made = compose("speedrun", ["data.source.paths=x", "impl=auto"], schema=Run)
    assert made.notes == []
    mixed = compose("tinyllama-1.1b", ["data.store=x", "impl=auto"], schema=Run)
    assert (list(mixed.config.data.members), mixed.config.data.mixture) == (["store"], ())


def test_a_tokenizers_file_says_itself_how_text_is_cut(tmp_path: Path) -> None:
    learned = BytePairs(vocab=260).load(lambda: [f"{i} some text and more of it" for i in range(400)])
    (tmp_path / "tokenizer.json").write_bytes(learned.to_bytes())
    file = ["tokenizer=file", f"tokenizer.path={tmp_path}", "impl=auto"]
    made = compose("smollm2-135m", file, schema=Run)
    assert made.config.tokenizer.pretokenizer is None
    assert any("tokenizer: bpe -> file" in note and "pretokenizer=smollm" in note for note in made.notes)


def test_a_source_in_place_of_several(tmp_path: Path) -> None:
    made = compose("smollm2-135m", ["data/source=stdlib", "impl=auto"], schema=Run)
    assert list(made.config.data.members) == ["stdlib"]
    assert {"data: source replaces", "mixture="} <= {
        w for n in made.notes for w in ("data: source replaces", "mixture=") if w in n
    }
