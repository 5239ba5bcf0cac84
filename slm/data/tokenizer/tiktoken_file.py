"""tiktoken rank files as ``tokenizer.json``: the same ids for every text."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from slm.config.errors import ConfigError
from slm.data.tokenizer.base import END_OF_TEXT
from slm.data.tokenizer.hf_file import byte_alphabet


def recognises(raw: bytes) -> bool:
    """Whether a file is a list of base64-encoded tokens with their ranks."""
    try:
        return bool(_line(raw.split(b"\n", 1)[0])[0])
    except (ValueError, binascii.Error):
        return False


def read_ranks(raw: bytes) -> dict[bytes, int]:
    """Rank, which is the id, of every token. Raises `ValueError` naming a line that is no token and rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = _line(line)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is not a base64 token and its rank") from None
        if token in ranks or rank < 0:
            raise ValueError(f"line {number} repeats a token or has a negative rank")
        ranks[token] = rank
    if len(set(ranks.values())) < len(ranks):
        raise ValueError("two tokens have the same rank")
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise ValueError(f"it lacks the byte {missing[0]:#04x}")
    return ranks


def to_json(raw: bytes, patterns: tuple[str, ...], specials: Mapping[str, int]) -> bytes:
    """A ``tokenizer.json`` that encodes as tiktoken does with these ranks, patterns and special tokens.

    tiktoken keeps no merges: it joins the neighbours whose union has the lowest rank, and takes a word whole if it
    is a token. So every way to cut a token into two tokens becomes a merge of the token's rank, and ``ignore_merges``
    takes words whole. Without ``specials`` an ``<|endoftext|>`` gets the first free id.
    """
    ranks = read_ranks(raw)
    specials = dict(specials) or {END_OF_TEXT: _first_free(set(ranks.values()))}
    if clash := [name for name, i in specials.items() if i in set(ranks.values()) or i < 0]:
        raise ConfigError(f"tokenizer.special_tokens: the id of {clash[0]!r} belongs to another token of the file.")
    if len(set(specials.values())) < len(specials):
        raise ConfigError("tokenizer.special_tokens: two names have the same id.")
    chars = byte_alphabet()
    spelled = {token: "".join(chars[b] for b in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[spelled[a], spelled[b]] for a, b in known]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, **flags, "special": True}
            for name, i in sorted(specials.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    return json.dumps(spec, ensure_ascii=False, indent=2).encode("utf-8")


def _line(line: bytes) -> tuple[bytes, int]:
    token, rank = line.split()
    return base64.b64decode(token, validate=True), int(rank)


def _first_free(taken: set[int]) -> int:
    return next(i for i in range(len(taken) + 1) if i not in taken)
