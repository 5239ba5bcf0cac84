"""`slm tokenizer` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_texts import TEXTS
from typer.testing import CliRunner

from slm.cli.main import app
from slm.config.errors import ConfigError
from slm.data.tokenizer import Tokenizer


def slm(*arguments: str) -> str:
    """What a verb prints, in this process; raises what it raises."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text)
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return folder


def test_train_and_report(corpus: Path) -> None:
    trained = json.loads(
        slm("tokenizer", "train", "corpus", "more.jsonl", "--out", "made/tokenizer.json", "--vocab", "500", "--pretokenizer", "llama3",
            "--special", "<|a|>", "--special", "<|b|>", "--model", "smollm2-135m", "--json")
    )  # fmt: skip
    made = Tokenizer.from_bytes(Path("made/tokenizer.json").read_bytes())
    assert (trained["path"], trained["vocab_size"], trained["sha256"]) == ("made/tokenizer.json", 500, made.sha256)
    assert trained["special_tokens"] == len(made.special_ids) == 3
    assert [s["source"] for s in trained["sources"]] == ["corpus", "more.jsonl"]
    assert trained["bytes_per_token"] == trained["sources"][0]["bytes_per_token"] > 1.5
    assert trained["model"] == {
        "name": "smollm2-135m",
        "params": 106_203_456 + 500 * 576,
        "vocabulary_share": pytest.approx(500 * 576 / (106_203_456 + 500 * 576)),
    }
    slm("tokenizer", "train", "corpus", "--out", "made/sp.model", "--kind", "sp-bpe", "--vocab", "500")
    both = json.loads(
        slm("tokenizer", "report", "made/tokenizer.json", "corpus", "--against", "made/sp.model", "--json")
    )
    assert [t["kind"] for t in both["tokenizers"]] == ["hf", "sentencepiece"]
    assert both["tokenizers"][0]["sources"][0] == trained["sources"][0]
    shown = slm(
        "tokenizer", "report", "made/tokenizer.json", "corpus", "--against", "made/sp.model", "--model", "smollm2-135m"
    )
    for words in ("bytes/token", "tokens/word", "made/sp.model", "500 (3 special)", "smollm2-135m's", "nothing"):
        assert words in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "corpus", "--out", "x", "--kind", "sp-unigramm"], "Did you mean 'sp-unigram'?"),
        (["train", "corpus", "--out", "x", "--pretokenizer", "qwen"], "'qwen2'"),
        (["train", "corpus", "--out", "x", "--kind", "sp-bpe", "--pretokenizer", "qwen2"], "pretokenizer"),
        (["train", "corpus", "--out", "x", "--special", "PAD"], "<|PAD|>"),
        (["train", "corpus", "--out", "x", "--vocab", "50000"], "Set tokenizer.vocab="),
        (["train", "nowhere", "--out", "x"], "nowhere"),
        (["report", "nope.json", "corpus"], "nope.json"),
        (["report", "corpus/0.txt", "corpus"], "neither a tokenizer.json nor a sentencepiece .model"),
    ],
)
def test_mistakes_are_one_sentence(corpus: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        slm("tokenizer", *arguments)
    assert message in str(error.value)
    assert not Path("x").exists()


def test_a_file_with_two_ends_is_reported_with_the_one_that_is_named(corpus: Path) -> None:
    slm("tokenizer", "train", "corpus", "--out", "t.json", "--vocab", "400", "--special", "<|im_end|>")
    file = Path("t.json")
    file.write_text(file.read_text().replace("<|endoftext|>", "</s>"))
    with pytest.raises(ConfigError, match="Name the token"):
        slm("tokenizer", "report", "t.json", "corpus")
    found = json.loads(slm("tokenizer", "report", "t.json", "corpus", "--eot", "<|im_end|>", "--json"))
    assert found["tokenizers"][0]["eot"] == "<|im_end|>"
