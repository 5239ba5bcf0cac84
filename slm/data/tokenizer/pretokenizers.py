"""Pre-tokenisation: the patterns that cut text into words before byte pairs are merged.

Only patterns that other runtimes know by name are here: a GGUF file doesn't hold the pattern, it holds a name
(``tokenizer.ggml.pre``), and a model whose text is cut differently at inference is silently worse.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pretokenizer:
    """A way of cutting text, as regular expressions that are applied one after the other."""

    patterns: tuple[str, ...]
    llama_cpp: str
    """Its name in llama.cpp, which a GGUF file carries. Of several, one that merges as trained and adds no token."""
    digits: str
    gigatoken: bool = True
    exact: bool = True
    """False where llama.cpp's own pattern cuts rare text in another way than this one."""


_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Also what a ``ByteLevel`` step of a tokenizer.json cuts with, if it is told to cut."""
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

PRETOKENIZERS = {
    "qwen2": Pretokenizer((_QWEN2,), "qwen2", "one by one"),
    "gpt2": Pretokenizer((GPT2,), "gpt-2", "whole runs"),
    "llama3": Pretokenizer((_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),), "dbrx", "up to three"),
    "qwen35": Pretokenizer(
        (_QWEN2.replace(r"\p{L}+|", r"[\p{L}\p{M}]+|").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"),),
        "qwen35",
        "one by one",
    ),
    "gpt4o": Pretokenizer(
        (
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        "gpt-4o",
        "up to three",
        exact=False,  # it knows upper and lower case of ASCII only
    ),
    "deepseek-v3": Pretokenizer(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ),
        "deepseek-v3",
        "up to three",
    ),
    "smollm": Pretokenizer((r"\p{N}", GPT2), "smollm", "one by one", gigatoken=False),
}
"""By name. ``qwen2`` is the default: one digit, one token, and every backend and runtime cuts it the same way."""

SAME_AS = {r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2}
"""Other spellings of the same pattern, met in files."""


def name_of(patterns: tuple[str, ...]) -> str | None:
    """The name under which slm knows these patterns, or None."""
    spelled = tuple(SAME_AS.get(p, p) for p in patterns)
    return next((name for name, p in PRETOKENIZERS.items() if p.patterns == spelled), None)
