"""A store that lies elsewhere (``s3://``, ``gs://``, ``hf://``, any fsspec URL), read through a local copy that
fills as it is read.

The manifest, tokenizer and checksums are copied at once; token and index files start as holes of the right
size, and `CheckedFile` brings what is missing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from slm.config.errors import ConfigError, RunError
from slm.config.files import replace_durably
from slm.data.store import manifest as manifests
from slm.data.store.manifest import SPLITS
from slm.data.store.shard import Origin

CACHE = Path("~/.cache/slm/stores")


def mirror(url: str, cache_dir: Path | str | None = None) -> tuple[Path, Origin]:
    """A local directory that stands for the store at ``url``, and what brings the bytes of its files.

    The directory is named after the store's contents as well, so a store that was made again under the same
    URL gets another one.
    """
    fs, root = _filesystem(url)
    root = root.rstrip("/")

    def whole(name: str) -> bytes:
        try:
            return bytes(fs.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            raise RunError(f"There is no token store at {url}: it has no {name}.") from None
        except OSError as error:
            raise RunError(f"{url}/{name}: can't be read ({error}).") from None

    raw = whole("manifest.json")
    key = hashlib.sha256(url.encode() + raw).hexdigest()[:16]
    local = Path(cache_dir or CACHE).expanduser() / key
    (local / "shards").mkdir(parents=True, exist_ok=True)
    (local / "manifest.json").write_bytes(raw)
    manifest = manifests.read(local)
    _fetch_missing(local, whole, manifest)

    def origin(name: str) -> Any:
        def fetch(start: int, stop: int) -> bytes:
            if stop < 0:
                return whole(name)
            try:
                return bytes(fs.cat_file(f"{root}/{name}", start=start, end=stop))
            except OSError as error:
                raise RunError(f"{url}/{name}: bytes {start} to {stop} can't be read ({error}).") from None

        return fetch

    return local, origin


def _fetch_missing(local: Path, whole: Any, manifest: dict[str, Any]) -> None:
    """Copy the small files, and make the large ones as holes."""
    name = manifest["tokenizer"]["file"]
    if not (local / name).is_file():
        replace_durably(local / name, whole(name))
    width = int(manifest["dtype"][-1])
    for split in SPLITS:
        for entry in manifest["splits"][split]:
            if "space" in entry:
                raise RunError(
                    f"{local}: shard {entry['file']} of this store is a link to a token file outside it "
                    f"({entry['imported_from']}), which can't be read from here. Copy the corpus and import it again."
                )
            stem = local / "shards" / entry["file"]
            crc = stem.with_name(stem.name + ".crc")
            if not crc.is_file():
                replace_durably(crc, whole(f"shards/{crc.name}"))
            for suffix, size in ((".tok", entry["tokens"] * width), (".idx", entry["docs"] * 8)):
                path = stem.with_name(stem.name + suffix)
                if not path.is_file() or path.stat().st_size != size:
                    with path.open("ab") as file:
                        file.truncate(size)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: can't be opened ({error}).") from None
