"""What is typed as a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.config.errors import ConfigError
from slm.data.sources import Dclm, FinewebEdu, Hub, Local, SourcePart, Stdlib, Synthetic, source_of


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "a,b.txt", "x=y.txt", "local:c.txt"):
        (tmp_path / name).write_text("x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stdlib", Stdlib()),
        ("synthetic:count=3,seed=4", Synthetic(count=3, seed=4)),
        ("synthetic:", Synthetic()),
        ("texts", Local(paths=("texts",))),
        ("texts/*.txt", Local(paths=("texts/*.txt",))),
        ("a,b.txt", Local(paths=("a,b.txt",))),
        ("local:a,b.txt", Local(paths=("a,b.txt",))),
        ("local:x=y.txt", Local(paths=("x=y.txt",))),
        ("local:c.txt", Local(paths=("local:c.txt",))),  # a file that is there
        ("local:texts,on_error=skip,columns=[a,b]", Local(paths=("texts",), on_error="skip", columns=("a", "b"))),
        ("local:paths=[texts,a.txt]", Local(paths=("texts", "a.txt"))),
        ("fineweb_edu:/data/fw,config=sample-10BT", FinewebEdu(paths=("/data/fw",), config="sample-10BT")),
        ("fineweb_edu:path=/data/fw", FinewebEdu(paths=("/data/fw",))),
        ("dclm:s3://b/d,global_shards=1", Dclm(paths=("s3://b/d",), global_shards=(1,))),
        ("dclm:/d,global_shards=[1,2],local_shards=[0]", Dclm(paths=("/d",), global_shards=(1, 2), local_shards=(0,))),
        ("hub:HuggingFaceFW/fineweb-edu,config=sample-10BT", Hub(id="HuggingFaceFW/fineweb-edu", config="sample-10BT")),
    ],
)
def test_what_is_typed_means_a_part(text: str, expected: SourcePart) -> None:
    assert source_of(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stdlb", "'stdlb' names no file.*Did you mean 'stdlib'"),
        ("textz", "Did you mean 'texts'"),
        ("fineweb:/data", "Unknown source 'fineweb'.*Did you mean 'fineweb2'|Did you mean 'fineweb_edu'"),
        ("HuggingFaceFW/fineweb-edu", "write hub:HuggingFaceFW/fineweb-edu"),
        ("stdlib:3", "'stdlib' takes no '3'"),
        ("dclm:/d,globl_shards=1", "globl_shards.*Did you mean 'global_shards'"),
        ("dclm:/d,global_shards=1,2", "expected key=value after a comma, found '2'"),
        ("dclm:/d,global_shards=[1", "is not YAML"),
        ("dclm:/d,global_shards=[x]", "global_shards.0: .*integer"),
        ("fineweb_edu:config=default", "paths' is required"),
        ("hub:", "id' is required"),
        ("local:texts,on_error=ignore", "on_error: .*'fail' or 'skip'"),
        ("nope://bucket/x", "Protocol not known"),
    ],
)
def test_mistakes_point_to_what_there_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_of(text)
