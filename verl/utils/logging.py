"""One format for words on the terminal and in `run.log`, beside progress bars and in workers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl.utils.append_file import AppendFile
from verl.utils.errors import one_line

logger = logging.getLogger(__name__)

QUIET_LIBRARIES = (
    "asyncio",
    "filelock",
    "fsspec",
    "git",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "matplotlib",
    "PIL",
    "py4j",
    "ray",
    "tensorboard",
    "transformers",
    "urllib3",
    "wandb",
)
# `extra` of a record that is not for the console: a traceback, Ray's own words.
FILE_ONLY = {"file_only": True}
SECONDS_BETWEEN_LINES = 20.0  # of a progress bar that is not on a terminal


class ConsoleHandler(logging.Handler):
    """Writes to stderr without breaking a progress bar that is on screen."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except (OSError, ValueError):  # a closed or broken pipe must not stop training
            self.handleError(record)


class RunLogHandler(logging.FileHandler):
    """Appends to `run.log`; what a full disk refuses is told once and tried again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._lines = AppendFile(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
        except Exception:  # arguments that do not fit the message: a traceback, as logging's own
            self.handleError(record)
        else:
            self._lines.append(line)

    def close(self) -> None:
        self._lines.close()
        super().close()


class SafeFormatter(logging.Formatter):
    """What would move a terminal's cursor is written out, whoever wrote the text."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(one_line, super().format(record).split("\n")))


class ShortNameFormatter(SafeFormatter):
    """`12:30:05 WARNING [worker 1] fsdp_workers: message`; a plain INFO needs no label."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._prefix = prefix

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        name = record.name.rpartition(".")[2]
        time_of_day = self.formatTime(record, self.datefmt)
        return f"{time_of_day} {level}{self._prefix}{name}: {record.message}"


# Exact types: a subclass belongs to somebody else (pytest's capture, for one).
OWN_HANDLERS = (ConsoleHandler, RunLogHandler, logging.StreamHandler, logging.FileHandler)


def setup_logging(
    level: str | int = "INFO", file: str | Path | None = None, worker: int | str | None = None
) -> None:
    """Send all logging of this process to stderr, and with `file` to that file as well (appended).

    May be called again, for instance once the run's folder is known: it replaces what it and Hydra
    set up before. `worker` marks the lines of a worker process.
    """
    prefix = "" if worker is None else f"[worker {worker}] "
    console = ConsoleHandler()
    console.setFormatter(ShortNameFormatter(prefix))
    handlers: list[logging.Handler] = [console]
    if file is not None:
        to_file = RunLogHandler(Path(file))
        layout = f"%(asctime)s %(levelname)s {prefix}%(name)s: %(message)s"
        to_file.setFormatter(SafeFormatter(layout))
        handlers.append(to_file)

    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) in OWN_HANDLERS:
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def log_file() -> Path | None:
    """The file that logging goes to, once `setup_logging` was given one."""
    handlers = logging.getLogger().handlers
    files = [h.baseFilename for h in handlers if isinstance(h, RunLogHandler)]
    return Path(files[0]) if files else None


def progress(
    iterable: Iterable[Any] | None = None, description: str = "", *, total: int | None = None
) -> tqdm | LoggedProgress:
    """A progress bar on a terminal, an occasional log line elsewhere (files, CI).

    Iterate over it, or use it as a context manager and call `update(n)`.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=description, total=total, dynamic_ncols=True, leave=False)
    return LoggedProgress(iterable, description, total=total)


class LoggedProgress:
    """The part of tqdm's interface used here, as log lines; silent when it takes no time."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        description: str = "",
        *,
        total: int | None = None,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self._iterable = iterable
        self._description = description
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._pause = seconds_between_lines
        self._start = self._last_line = time.monotonic()
        self.n = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()

    def __enter__(self) -> LoggedProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self._last_line >= self._pause:
            self._last_line = now
            logger.info("%s", str(self))

    def close(self) -> None:
        """A last line, if there were others."""
        if self._last_line > self._start:
            logger.info("%s", str(self))

    def __str__(self) -> str:
        elapsed = time.monotonic() - self._start
        if not self._total:
            return f"{self._description} {self.n}, {elapsed:.0f} s"
        text = f"{self._description} {self.n}/{self._total}, {elapsed:.0f} s"
        if 0 < self.n < self._total:
            text += f", about {elapsed / self.n * (self._total - self.n):.0f} s left"
        return text
