"""A file that lines are appended to, whatever the disk does: what it refuses is tried again."""

from __future__ import annotations

import logging
from collections import deque
from io import FileIO
from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_BYTES = 64 << 20  # of lines that wait for room


class AppendFile:
    """Each line reaches the file at once, so that a killed process loses nothing of it.

    Lines that the disk refuses are kept in memory, in their order, and tried again with every later
    one. Nothing raises: it is said once when that begins and once when it is over.
    """

    def __init__(self, path: Path, kept_bytes: int = KEPT_BYTES) -> None:
        """`kept_bytes`: beyond these, further lines are dropped until there is room again."""
        self.path = path
        self._kept_bytes = kept_bytes
        self._file: FileIO | None = None
        self._waiting: deque[bytes] = deque()  # of the first perhaps only the rest
        self._waiting_bytes = 0
        self._refused = False
        self._dropped = 0

    @property
    def missing(self) -> int:
        """Lines that are not in the file, or not whole."""
        return self._dropped + len(self._waiting)

    def append(self, line: str) -> None:
        """`line` ends with its line feed. Half a surrogate pair is escaped."""
        content = line.encode("utf-8", "backslashreplace")
        if self._waiting and self._waiting_bytes + len(content) > self._kept_bytes:
            self._dropped += 1
        else:
            self._waiting.append(content)
            self._waiting_bytes += len(content)
        self._write()

    def close(self) -> None:
        """Tries once more. May be called again."""
        if self._waiting:
            self._write()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # unbuffered: what was taken is known to the byte, so no line is torn or twice there
                self._file = FileIO(self.path, "a")
            while self._waiting:
                self._advance(self._file.write(self._waiting[0]))
        except OSError as error:
            self._tell_once(error)
        else:
            self._tell_recovery()

    def _advance(self, written: int) -> None:
        line = self._waiting.popleft()
        self._waiting_bytes -= written
        if written < len(line):
            self._waiting.appendleft(line[written:])

    # The flag comes first: the words may be for this very file.

    def _tell_once(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            logger.warning(
                "%s cannot be written to (%s): its lines are kept in memory, up to %d MB, and "
                "tried again with each later one",
                self.path,
                error.strerror or error,
                self._kept_bytes >> 20,
            )

    def _tell_recovery(self) -> None:
        if self._refused:
            self._refused = False
            logger.warning("%s is written to again; %d lines are lost", self.path, self._dropped)
