"""A folder's manifest: the size and SHA-256 of each of its files, so that damage is found.

It is written last, so that a folder with a manifest has all that the manifest names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
SCHEMA = 1  # of the manifest and of what it describes; a reader refuses a later one
THREADS = 8  # hashing releases Python's lock


def write_manifest(folder: Path, **facts: Any) -> None:
    """Describe all files below `folder`, with `facts` (JSON) beside them."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    hashes = _hashes(folder / name for name in names)
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, hashes, strict=True)
    }
    manifest = {"schema": SCHEMA, **facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path, **facts: Any) -> str | None:
    """The first thing in which `folder` differs from its manifest; None: it is whole.

    Every file that the manifest names is read; others may lie beside them. `facts`: what the
    manifest has to say besides. Raises FileNotFoundError when there is no manifest.
    """
    text = (folder / MANIFEST).read_bytes()
    try:
        manifest = json.loads(text)
        if manifest["schema"] > SCHEMA:
            return f"{MANIFEST} is of a later version of this trainer"
        entries = {
            name: (int(e["size"]), str(e["sha256"])) for name, e in manifest["files"].items()
        }
        said = {key: manifest[key] for key in facts}
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return f"{MANIFEST} cannot be read"
    if said != facts:
        return f"{MANIFEST} is of {_words(said)}, not {_words(facts)}"
    for name, (size, _) in entries.items():
        path = folder / name
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            return f"{MANIFEST} names {name}, outside of the folder"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    hashes = _hashes(folder / name for name in entries)
    for (name, (_, expected)), found in zip(entries.items(), hashes, strict=True):
        if found != expected:
            return f"{name} has another content than was saved"
    return None


def _hashes(paths: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())
