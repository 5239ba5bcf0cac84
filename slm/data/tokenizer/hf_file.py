"""What a ``tokenizer.json`` says: its alphabet, its special tokens, and what text would lose in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

from slm.config.errors import ConfigError
from slm.data.tokenizer import metaspace
from slm.data.tokenizer.base import UTF8_BYTES
from slm.data.tokenizer.pretokenizers import GPT2

Spec = dict[str, Any]
Alphabet = Literal["bytes", "metaspace"]

_KEEPS_TEXT = {"ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts", "Metaspace"}
"""Pre-tokenizers that cut text without dropping any of it (unless told to: see `losses`)."""


def byte_alphabet() -> dict[int, str]:
    """GPT-2's bijection from bytes to printable characters (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for shift, byte in enumerate(b for b in range(256) if b not in table):
        table[byte] = chr(256 + shift)
    return table


def alphabet(spec: Spec) -> Alphabet:
    """How tokens spell bytes. Raises `ConfigError` for files whose tokens have no bytes of their own."""
    model = spec["model"]
    kind = model.get("type", "BPE")  # files from before 2020 don't say
    steps = [*leaves(spec.get("pre_tokenizer"), "pretokenizers"), *leaves(spec.get("decoder"), "decoders")]
    if kind == "BPE" and any(step["type"] == "ByteLevel" for step in steps):
        return "bytes"
    writes_mark = any(
        step["type"] == "Metaspace" or step.get("content") == metaspace.MARK
        for step in [*steps, *leaves(spec.get("normalizer"), "normalizers")]
    )
    if kind in ("BPE", "Unigram") and writes_mark:
        return "metaspace"
    raise ConfigError(
        f"This tokenizer.json holds a {kind} model that is neither byte-level nor of SentencePiece's kind: its tokens "
        "have no exact bytes, so slm doesn't read it."
    )


def leaves(node: Spec | None, children: str) -> Iterator[Spec]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences opened."""
    if not node:
        return
    if node.get("type") == "Sequence":
        for child in node.get(children, []):
            yield from leaves(child, children)
    else:
        yield node


def vocabulary(spec: Spec) -> dict[str, int]:
    """Ids by token, added tokens included."""
    vocab = spec["model"]["vocab"]
    ids = {token: i for i, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return ids | {token["content"]: token["id"] for token in spec.get("added_tokens") or []}


def special_tokens(spec: Spec) -> list[str]:
    """Added tokens that are marked special, by id."""
    return [t["content"] for t in spec.get("added_tokens") or [] if t.get("special")]


def plain_added(spec: Spec) -> list[str]:
    """Added tokens that are not special: text, kept whole."""
    return [t["content"] for t in spec.get("added_tokens") or [] if not t.get("special")]


def merge_pairs(spec: Spec) -> list[tuple[str, str]]:
    """Merges in order; old files write a pair as one string."""
    return [
        (a, b) for a, b in (m.split(" ", 1) if isinstance(m, str) else m for m in spec["model"].get("merges") or [])
    ]


def split_patterns(spec: Spec) -> tuple[str, ...] | None:
    """The patterns that a byte-level file cuts text with, one after the other; None if it does it in another way."""
    *splits, last = list(leaves(spec.get("pre_tokenizer"), "pretokenizers")) or [{"type": ""}]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    patterns = []
    for step in splits:
        pattern = (step.get("pattern") or {}).get("Regex")
        if step["type"] != "Split" or step.get("behavior") != "Isolated" or step.get("invert") or not pattern:
            return None
        patterns.append(pattern)
    return (*patterns, GPT2) if last.get("use_regex", True) else tuple(patterns)


def producible_specials(spec: Spec) -> list[str]:
    """Special tokens that are ordinary entries of the model, too, so that it could make them from text."""
    model, special = spec["model"], special_tokens(spec)
    if model.get("type") == "Unigram":
        entries = {token for token, _ in model["vocab"]}
        return [t for t in special if t in entries]
    merged = {a + b for a, b in merge_pairs(spec)}
    whole = set(model["vocab"]) if model.get("ignore_merges") else set()
    return [t for t in special if t in merged or t in whole]


def token_bytes(spec: Spec, kind: Alphabet, size: int) -> list[bytes]:
    """The bytes of every token, by id. Raises `ConfigError` for a token that isn't spelled in the alphabet."""
    chars = {c: b for b, c in byte_alphabet().items()}
    table = [b""] * size
    added = {t["content"]: t for t in spec.get("added_tokens") or []}
    fallback = bool(spec["model"].get("byte_fallback"))
    unknown = spec["model"].get("unk_token")
    for token, i in vocabulary(spec).items():
        if token in added:
            text = token.replace(metaspace.MARK, " ") if kind == "metaspace" else token
            table[i] = b"" if added[token].get("special") else text.encode("utf-8")
        elif kind == "metaspace":
            table[i] = b"" if token == unknown else metaspace.bytes_of(token, fallback=fallback)
        elif token != unknown:
            try:
                table[i] = bytes(chars[c] for c in token)
            except KeyError:
                raise ConfigError(
                    f"Token {i} ({token!r}) is not written in the byte-level alphabet; slm reads byte-level BPE tokenizers."
                ) from None
    return table


def working(spec: Spec) -> tuple[Spec, bool]:
    """The file as slm runs it, and whether its texts get a space in front.

    No dropout, padding or truncation, which would change or cut documents; and without the step that puts a space
    before a text, because slm does that itself: always, as sentencepiece does (the ``Metaspace`` step leaves a text
    that has one alone, and so can't tell the two apart), and before a document only.
    """
    # only what changes is copied: the vocabulary and the merges are most of the file
    spec = {**spec, "model": {**spec["model"]}, "pre_tokenizer": copy.deepcopy(spec.get("pre_tokenizer"))}
    spec["padding"] = spec["truncation"] = spec["post_processor"] = None
    spec["model"]["dropout"] = None
    prefixed = False
    for step in leaves(spec.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            prefixed |= scheme != "never"
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
    normalizers = list(leaves(spec.get("normalizer"), "normalizers"))
    kept = [n for n in normalizers if not (n["type"] == "Prepend" and n.get("prepend") == metaspace.MARK)]
    if len(kept) < len(normalizers):
        prefixed = True
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept}
    return spec, prefixed


def losses(spec: Spec, kind: Alphabet) -> tuple[str, str]:
    """(what text loses in this tokenizer, or nothing; the Unicode normal form it is brought into, or nothing)."""
    found, normal_form = [], ""
    for step in leaves(spec.get("normalizer"), "normalizers"):
        escape = step["type"] == "Replace" and (step.get("pattern"), step.get("content")) == (
            {"String": " "},
            metaspace.MARK,
        )
        if step["type"] == "NFC":
            normal_form = "NFC"
        elif not (kind == "metaspace" and (escape or (step["type"], step.get("prepend")) == ("Prepend", "▁"))):
            found.append(f"normalises text ({step['type']})")
    for step in leaves(spec.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] not in _KEEPS_TEXT or step.get("behavior") == "Removed":
            found.append(f"drops text ({step['type']})")
        if step["type"] == "ByteLevel" and step.get("add_prefix_space", True):
            found.append("puts a space before a text that has none")
    ids = vocabulary(spec)
    if kind == "bytes":
        incomplete = any(c not in ids for b, c in byte_alphabet().items() if b in UTF8_BYTES)
    else:
        incomplete = not spec["model"].get("byte_fallback") or bool(metaspace.missing_bytes(ids))
    if incomplete:
        found.append("has no tokens for some characters")
    if any(t.get(k) for t in spec.get("added_tokens") or [] if not t.get("special") for k in ("lstrip", "rstrip")):
        found.append("drops spaces around added tokens")
    return " and ".join(dict.fromkeys(found)), normal_form


def marked_eot(spec: Spec) -> str | None:
    """The end-of-text token that `with_eot` wrote into a file."""
    for step in leaves(spec.get("post_processor"), "processors"):
        declared = step.get("special_tokens")
        if step["type"] == "TemplateProcessing" and step.get("single") == _SINGLE and declared:
            return str(next(iter(declared)))
    return None


_SINGLE = [{"Sequence": {"id": "A", "type_id": 0}}]


def with_eot(spec: Spec, name: str, token_id: int) -> Spec:
    """A file that says which token ends a text, in a way that every reader of the format accepts.

    The format has no field for it and refuses unknown ones. What it has is a template of what to put around a
    text; one that declares the token and puts nothing is written here, behind the file's own.
    """
    spec = copy.deepcopy(spec)
    added = spec.setdefault("added_tokens", [])
    token = next((t for t in added if t["content"] == name), None)
    if token is None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append(token := {"id": token_id, "content": name, **flags})
        added.sort(key=lambda t: t["id"])
    token["special"] = True
    template = {
        "type": "TemplateProcessing",
        "single": _SINGLE,
        "pair": [*_SINGLE, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }
    own = [
        step
        for step in leaves(spec.get("post_processor"), "processors")
        if not (step["type"] == "TemplateProcessing" and step.get("single") == _SINGLE)
    ]
    spec["post_processor"] = {"type": "Sequence", "processors": [*own, template]} if own else template
    return spec
