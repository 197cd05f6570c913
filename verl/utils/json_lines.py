"""Records of a run, one JSON object a line with its `step`; a crash or a resume does no harm."""

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
        """Numbers that JSON cannot hold (nan, inf) are written as null."""
        self._file.write(_to_line(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All records in file order; none without a file. A line torn by a crash is left out."""
    if not Path(path).is_file():
        return []
    records = []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for line in text.split(
        "\n"
    ):  # not splitlines, which also cuts at characters that JSON leaves in
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
        atomic_write_text(path, "".join(_to_line(record) for record in kept))


def _to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
