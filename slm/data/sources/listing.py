"""Which files a path names: a file, a directory, or a pattern, here or behind a URL that fsspec knows."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa

from slm.config.errors import ConfigError, NoSuchText, RunError, suggest

_TAGS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "crc32c",
    "blob_id",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)
"""Where filesystems say that a file is another one than before, best first."""


@dataclass(frozen=True, slots=True)
class File:
    """A file: ``uri`` opens it, ``name`` is its path below what was given, ``tag`` changes when its contents do."""

    uri: str
    name: str
    size: int
    tag: str | int = 0


@dataclass(frozen=True)
class Listing:
    """What a path names. A directory lists everything below it; a file or a pattern, just what was meant."""

    given: str
    files: tuple[File, ...]
    directory: bool

    def select(
        self, patterns: Sequence[str], suffixes: tuple[str, ...], otherwise: Sequence[Sequence[str]] = ()
    ) -> list[File]:
        """The files that the patterns name; if they name none at all, those of the first choice that names any.

        Raises `ConfigError` if a pattern of the choice names none.
        """
        chosen = next((p for p in (patterns, *otherwise) if any(self._matching(one, suffixes) for one in p)), patterns)
        found: dict[str, File] = {}
        for pattern in chosen:
            matches = self._matching(pattern, suffixes)
            if not matches:
                raise NoSuchText(f"{self.given}: no {pattern} ({', '.join(suffixes)}). {self._nearest(pattern)}")
            found.update((f.uri, f) for f in matches)
        return list(found.values())

    def _matching(self, pattern: str, suffixes: tuple[str, ...]) -> list[File]:
        return [f for f in self.files if f.name.lower().endswith(suffixes) and matches_glob(f.name, pattern)]

    def _nearest(self, pattern: str) -> str:
        """What is there instead, at the first level at which the pattern finds nothing."""
        parts = pattern.split("/")
        names = [f.name.split("/") for f in self.files]
        for depth in range(len(parts)):
            if parts[depth] == "**":
                break
            here = [n for n in names if len(n) > depth and (depth == len(parts) - 1) == (len(n) == depth + 1)]
            if not any(fnmatchcase(n[depth], parts[depth]) for n in here):
                below = "/".join(parts[:depth]) or "this directory"
                return f"In {below}: {suggest(parts[depth], {n[depth] for n in names if len(n) > depth})}"
            names = [n for n in here if fnmatchcase(n[depth], parts[depth])]
        return f"There are {len(self.files)} files of other kinds." if self.files else "The directory is empty."


def matches_glob(name: str, pattern: str) -> bool:
    """Whether a relative path matches; ``*`` stays within a directory, ``**`` spans any number of them."""
    return _fits(name.split("/"), pattern.split("/"))


def _fits(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def is_url(text: str) -> bool:
    """Whether fsspec is to open it."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def list_files(given: str) -> Listing:
    """List what a path or URL names.

    Raises:
        ConfigError: it names nothing, or its protocol needs a package that is missing.
        RunError: the filesystem behind a URL doesn't answer.
    """
    return _list_remote(given) if is_url(given) else _list_local(given)


def _list_local(given: str) -> Listing:
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(path):
        return Listing(given, tuple(_walk(path)), True)
    root = os.path.dirname(path)
    if os.path.isfile(path):
        found = [path]
    else:
        found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
        root = _fixed(path)
    if not found:
        parent = os.path.dirname(path)
        near = suggest(os.path.basename(path), os.listdir(parent)) if os.path.isdir(parent) else ""
        raise NoSuchText(f"{given!r} names no file. {near}".strip())
    return Listing(given, tuple(_local_file(p, root) for p in found), False)


def _walk(root: str) -> Iterator[File]:
    """Every file below a directory but hidden ones; links to directories are followed once."""
    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True):
        keep = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                keep.append(name)
                seen.add(real)
        folders[:] = keep
        for name in names:
            if not name.startswith("."):
                yield _local_file(os.path.join(folder, name), root)


def _local_file(path: str, root: str) -> File:
    try:
        info = os.stat(path)
    except OSError as error:
        raise NoSuchText(f"{path}: {error.strerror}. A link to a file that is gone?") from None
    name = os.fsencode(os.path.relpath(path, root).replace(os.sep, "/")).decode("utf-8", "backslashreplace")
    return File(path, name, info.st_size, info.st_mtime_ns)


def _fixed(pattern: str) -> str:
    """The part of a pattern before its first directory with a wildcard."""
    parts = pattern.split("/")
    end = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:end]) or "/"


def _list_remote(given: str) -> Listing:
    fs, path = filesystem(given)
    try:
        directory = False
        if glob.has_magic(path) and not fs.isfile(path):
            root, infos = _fixed(path), fs.glob(path, detail=True)
        elif fs.isfile(path):
            root, infos = path.rpartition("/")[0], {path: fs.info(path)}
        else:
            directory = True
            root, infos = path.rstrip("/"), fs.find(path, detail=True)
    except FileNotFoundError:
        infos = {}
    except Exception as error:  # every filesystem has errors of its own
        raise RunError(f"{given}: can't be listed ({type(error).__name__}: {error}).") from None
    infos = {name: info for name, info in infos.items() if info.get("type", "file") == "file"}
    if not infos:
        raise NoSuchText(f"{given!r} names no file.")
    if unsized := [name for name, info in infos.items() if info.get("size") is None]:
        raise RunError(
            f"{given}: the server doesn't say how long {unsized[0]} is, so its end can't be known. Download it."
        )
    files = [
        File(fs.unstrip_protocol(name), name[len(root) :].lstrip("/"), int(info["size"]), _tag(info))
        for name, info in infos.items()
    ]
    return Listing(given, tuple(f for f in files if not any(p.startswith(".") for p in f.name.split("/"))), directory)


def _tag(info: dict[str, Any]) -> str:
    """What a filesystem says of a file that changes with its contents; Hugging Face files have an object id."""
    oid = (info.get("lfs") or {}).get("sha256") if isinstance(info.get("lfs"), dict) else None
    return str(oid or next((info[key] for key in _TAGS if info.get(key)), ""))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem and the path in it. Raises `ConfigError` if the protocol is unknown or needs a package."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: {error}") from None
    return fs, path


def distinct_names(files: Iterable[File]) -> list[File]:
    """Each file once, with names that are all different: one that is in use gets the directories above it."""
    made: dict[str, File] = {}
    names: set[str] = set()
    for file in files:
        if file.uri in made:
            continue
        name, above = file.name, file.uri.removesuffix(file.name).rstrip("/").split("/")
        while name in names and above:
            name = f"{above.pop()}/{name}"
        names.add(name)
        made[file.uri] = replace(file, name=name)
    return list(made.values())


class _Guarded:
    """A file of fsspec whose failures are `RunError`s: a dropped connection is no damaged file."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)  # type: ignore[no-any-return]
        except Exception as error:
            raise RunError(f"{self._uri}: can't be read ({type(error).__name__}: {error}). Try again.") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_file(uri: str) -> pa.NativeFile:
    """Open a path or URL for reading. Raises `RunError` if that isn't possible."""
    try:
        if not is_url(uri):
            return pa.OSFile(os.fsencode(uri), "r")
        fs, path = filesystem(uri)
        return pa.PythonFile(_Guarded(fs.open(path, "rb"), uri), mode="r")
    except ConfigError:
        raise
    except Exception as error:
        raise RunError(f"{uri}: can't be opened ({error}).") from None
