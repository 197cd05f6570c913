"""JSON lines, and the records of a run in them: a crash or a resume does no harm.

A line ends at a line feed alone. Texts of games and models hold other characters that Python and
some viewers break lines at (U+2028, U+0085), which JSON leaves as they are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from verl.utils.append_file import AppendFile

BLOCK = 1 << 16  # bytes that are read at once from the end of a file


class JsonLinesFile:
    """Appends records and flushes each; see `AppendFile` for what a full disk does to it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = AppendFile(self.path)

    @property
    def missing(self) -> int:
        """Records that are not in the file."""
        return self._file.missing

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, record: Mapping[str, Any]) -> None:
        """See `to_line`."""
        self._file.append(to_line(record))

    def close(self) -> None:
        self._file.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All records in file order; none without a file."""
    return list(iter_records(path)) if Path(path).is_file() else []


def iter_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a file one by one. A line torn by a crash is left out."""
    with Path(path).open("rb") as file:  # its lines end at a line feed alone
        for line in file:
            if (record := _record(line)) is not None:
                yield record


def drop_records_after(path: str | Path, step: int) -> None:
    """Forget what a resumed run is about to write again, and a line torn by a crash.

    Steps do not fall from line to line, so only what is dropped is read, from the end. The file
    is cut in place: what is kept is not written again, and the length of a file changes as a whole.
    """
    if not Path(path).is_file():
        return
    with Path(path).open("r+b") as file:
        for start, line in _lines_from_the_end(file):
            record = _record(line)
            if record is not None and record["step"] <= step:
                file.truncate(start + len(line))
                if not line.endswith(b"\n"):
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                return
        file.truncate(0)


def _lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its line feed) from the last one to the first."""
    start, rest = file.seek(0, os.SEEK_END), b""
    while start > 0:
        size = min(BLOCK, start)
        start = file.seek(start - size)
        rest = file.read(size) + rest
        while (feed := rest.rfind(b"\n", 0, -1)) >= 0:
            yield start + feed + 1, rest[feed + 1 :]
            rest = rest[: feed + 1]
    if rest:
        yield 0, rest


def _record(line: bytes) -> dict[str, Any] | None:
    """None for what is no record of a step, such as a line torn by a crash."""
    try:
        record = json.loads(line.decode("utf-8", "replace"))
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def lines_of(text: str) -> list[str]:
    """The lines of a JSON lines file, without blank ones."""
    return [line for line in text.split("\n") if line.strip()]


def to_line(record: Mapping[str, Any]) -> str:
    """With its line feed. What JSON cannot hold (nan, inf) is null, half a surrogate pair is
    escaped, as UTF-8 cannot hold it."""
    line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
