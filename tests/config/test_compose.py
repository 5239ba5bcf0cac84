"""Composition against a schema of its own, so that it is tested apart from the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import pydantic
import pytest

from slm.config.base import Config
from slm.config.compose import compose, compose_all, expand_sweep
from slm.config.errors import ConfigError
from slm.config.registry import Part, Registry
from slm.config.yaml import dump_yaml


class MixerPart(Part):
    """A mixer."""

    def resolve(self, width: int) -> Self:
        return self


mixer = Registry("test_mixer", MixerPart)
MixerSlot = Annotated[MixerPart, mixer.field()]


@mixer.register("grouped")
class Grouped(MixerPart):
    heads: int = 4
    kv_heads: int | None = None


@mixer.register("latent")
class Latent(MixerPart):
    heads: int = 4
    rank: int | None = None

    def resolve(self, width: int) -> Self:
        return self.with_(rank=self.rank or width // 2)


class Net(Config):
    width: int = 16
    mixer: MixerSlot = Grouped()

    @pydantic.model_validator(mode="after")
    def _resolve(self) -> Self:
        self.__dict__["mixer"] = self.mixer.resolve(self.width)
        return self


class Budget(Config):
    exclusive = (("steps", "tokens"),)
    bare = "steps"
    steps: int | None = None
    tokens: int | None = None


class Toy(Config):
    name: str = "toy"
    plugins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    model: Net = Net()
    budget: Budget = Budget(steps=10)
    rate: float = 0.1
    tags: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _recipes(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "small.yaml").write_text("width: 8\nmixer: {name: grouped, heads: 2, kv_heads: 1}\n")
    (folder / "model" / "big.yaml").write_text("width: 64\nmixer: {name: grouped, heads: 8}\n")
    (folder / "base.yaml").write_text("defaults: [{model: small}, _self_]\nname: base\nbudget: {tokens: 100}\n")


def make(*overrides: str, recipe: str = "base"):
    return compose(recipe, list(overrides), schema=Toy)


def error(*overrides: str, recipe: str = "base") -> str:
    with pytest.raises(ConfigError) as caught:
        make(*overrides, recipe=recipe)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_recipe_composes_its_groups() -> None:
    config = make().config
    assert (config.name, config.model.width, config.model.mixer) == ("base", 8, Grouped(heads=2, kv_heads=1))


def test_another_option_of_a_group() -> None:
    assert make("model=big").config.model.width == 64


def test_swap_keeps_shared_fields_and_says_what_it_did() -> None:
    made = make("model/test_mixer=latent".replace("test_mixer", "mixer"))
    assert made.config.model.mixer == Latent(heads=2, rank=4)
    assert made.notes == ["model.mixer: grouped -> latent (kept heads=2; dropped kv_heads=1; rank=4 by default)"]
    assert made.config.notes == tuple(made.notes)


def test_swap_then_set_a_field_of_the_new_part() -> None:
    made = make("model/mixer=latent", "model.mixer.rank=3")
    assert made.config.model.mixer == Latent(heads=2, rank=3)


def test_an_empty_slot_is_filled_and_its_fields_set() -> None:
    from slm.run import Run

    own = ["model/position/scaling=yarn", "model.position.scaling.factor=4", "model.position.scaling.original=128"]
    found = compose("quickstart", own, schema=Run)
    assert found.config.model.position.scaling.factor == 4
    assert found.notes[0].startswith("model.position.scaling: none -> yarn (factor=4.0, original=128")
    with pytest.raises(ConfigError, match=r"factor' is required"):
        compose("quickstart", own[:1], schema=Run)
    again = compose("quickstart", [*own, "~model.position.scaling"], schema=Run)
    assert again.config.model.position.scaling is None


def test_swap_to_the_same_part_changes_nothing() -> None:
    assert make("model/mixer=grouped").notes == []


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_any_field_of_the_schema_can_be_set(prefix: str) -> None:
    assert make(f"{prefix}rate=0.5", "tags=[a,b]").config.rate == 0.5


def test_delete_goes_back_to_the_default() -> None:
    assert make("~budget").config.budget == Budget(steps=10)


def test_exclusive_sibling_is_cleared_and_said() -> None:
    made = make("budget.steps=5")
    assert made.config.budget == Budget(steps=5)
    assert made.notes == ["budget: steps replaces tokens=100"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.widht=3", "Did you mean 'width'?"),
        ("modle.width=3", "Did you mean 'model'?"),
        ("model.mixer.head=3", "Did you mean 'heads'?"),
        ("model/mixer=latnet", "Did you mean 'latent'?"),
        ("model/mixre=latent", "Did you mean 'mixer'?"),
        ("model=smal", "Did you mean 'small'?"),
        ("width=3", "model.width"),
        ("rate.x=3", "no keys inside"),
        ("model.width=wide", "valid integer"),
        ("rate", "no override"),
        ("rate=[1,", "no override"),
        ("rate=1,2", "-m"),
        ("+plugins=[no.such.module]", "can't be imported"),
        ("model/width=3", "no slot"),
    ],
)
def test_errors_are_one_paragraph_with_the_right_hint(override: str, expected: str) -> None:
    assert expected in error(override)


def test_field_of_the_old_part_is_unknown_after_a_swap() -> None:
    assert "Unknown key 'model.mixer.kv_heads'" in error("model/mixer=latent", "model.mixer.kv_heads=1")


def test_unknown_recipe_lists_those_that_exist() -> None:
    text = error(recipe="bse")
    assert "Did you mean 'base'?" in text
    assert "quickstart" in text  # the shipped ones are there too


def test_unknown_key_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("rat: 3\n")
    assert "Did you mean 'rate'?" in error(recipe="odd.yaml")


def test_yaml_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("rate: [1, 2\nname: x\n")
    assert "not valid YAML" in error(recipe="broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "mapping" in error(recipe="list.yaml")


def test_missing_group_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "lost.yaml").write_text("defaults: [{model: nowhere}]\n")
    assert "nowhere" in error(recipe="lost")


def test_resolved_config_is_a_recipe_that_gives_the_same(tmp_path: Path) -> None:
    made = make("model/mixer=latent", "rate=1e-05")
    (tmp_path / "resolved.yaml").write_text(dump_yaml(made.config.model_dump(mode="json"), made.notes))
    assert make(recipe="resolved.yaml").config == made.config


def test_own_recipe_directory_comes_first(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "quickstart.yaml").write_text("name: mine\n")
    assert make(recipe="quickstart").config.name == "mine"


def test_plugin_registers_a_part(tmp_path: Path) -> None:
    source = (
        "from tests_config_compose import MixerPart, mixer\n"
        "@mixer.register('mine')\n"
        "class Mine(MixerPart):\n"
        "    heads: int = 1\n"
        "    depth: int = 7\n"
    )
    import sys

    sys.modules["tests_config_compose"] = sys.modules[__name__]
    (tmp_path / "my_lab_parts.py").write_text(source)
    made = make("+plugins=[my_lab_parts]", "model/mixer=mine")
    assert made.config.model.mixer.model_dump() == {"name": "mine", "heads": 2, "depth": 7}
    assert made.config.plugins == ("my_lab_parts",)


def test_sweep_is_a_product_with_the_last_axis_fastest() -> None:
    assert expand_sweep(["name=x", "model/mixer=grouped,latent", "rate=1,2"]) == [
        ["name=x", "model/mixer=grouped", "rate=1"],
        ["name=x", "model/mixer=grouped", "rate=2"],
        ["name=x", "model/mixer=latent", "rate=1"],
        ["name=x", "model/mixer=latent", "rate=2"],
    ]


def test_combinations_that_share_a_base_do_not_touch_each_other() -> None:
    asked = [["model.width=3", "model/mixer=latent"], ["rate=2"], ["model=small", "rate=3"], []]
    together = [one.config for one in compose_all("base", asked, schema=Toy)]
    assert together == [make(*overrides).config for overrides in asked]
    assert len({one.model_dump_json() for one in together}) == 4


def test_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        make().config.rate = 3  # type: ignore[misc]


def test_a_field_behind_a_bare_number_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "short.yaml").write_text("name: short\nbudget: 7\n")
    assert make(recipe="short").config.budget.steps == 7
    assert make("budget.steps=9", recipe="short").config.budget.steps == 9
    assert make("budget.tokens=9", recipe="short").config.budget == Budget(tokens=9)


def test_a_value_where_fields_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipes" / "wrong.yaml").write_text("name: wrong\nmodel: 7\n")
    assert "model is 7, which has no 'width' inside: set model as a whole." in error("model.width=9", recipe="wrong")
    (tmp_path / "recipes" / "wrong.yaml").write_text("defaults: [base, _self_]\ntags: [a]\nmodel: [7]\n")
    text = error(recipe="wrong")
    assert "a list stands where what it builds on has fields. The lists in it: tags, model." in text
