"""JSON lines, and the records of a run in them: a crash or a resume does no harm.

A line ends at a line feed alone. Texts of games and models hold other characters that Python and
some viewers break lines at (U+2028, U+0085), which JSON leaves as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl.utils.atomic import atomic_write_text


class JsonLinesFile:
    """Appends records and flushes each, so that a killed run loses nothing it had logged."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """See `to_line`."""
        self._file.write(to_line(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All records in file order; none without a file. A line torn by a crash is left out."""
    if not Path(path).is_file():
        return []
    records = []
    for line in lines_of(Path(path).read_text(encoding="utf-8", errors="replace")):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def drop_records_after(path: str | Path, step: int) -> None:
    """Forget what a resumed run is about to write again. The file is replaced in one move."""
    if Path(path).is_file():
        kept = [record for record in read_records(path) if record["step"] <= step]
        atomic_write_text(path, "".join(to_line(record) for record in kept))


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
