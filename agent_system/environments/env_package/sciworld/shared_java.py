"""One Java process for the simulators of several environment processes: the low-memory mode.

The simulators of a Java process share an object of the game's own code, so they are called one
after another, and all with the same simplification. The environment processes know each other by
files only, in a folder of their pool, and every right is a lock that the kernel takes back when its
holder dies, however it dies. The files are for this user alone: they hold what opens the Java
process to a caller.

- `seat_<i>`, locked for life: a process's place in one of the pool's Java processes.
- `turn`, locked for a call: whose turn it is. It holds the Java process's id, port and token, and
  a mark while a call runs. A mark found by the next one means that a process died within its call;
  the simulator may still be at work, so Java is killed, and the others start anew with a new one.
- `stdin`, a named pipe that each process holds open, with a shared lock: Java reads it and ends
  when nobody does. A lock that nobody else holds tells that Java has seen the end already.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from agent_system.environments.env_package.java import JVM_OPTIONS, connect

IDLE, IN_A_CALL = b".", b"!"
STATE_LENGTH = 128


class SharedJava:
    """A seat in a Java process. `jvm`: its classes; use `call` for what may not run at once."""

    def __init__(
        self, command: list[str], *, seats: int, key: str, root: Path, log: IO[str] | None = None
    ) -> None:
        """Take the first free seat, and start Java by `command` where nobody has.

        Processes with the same parent, command, number of seats and `key` share. `root`: a folder
        for the files. `log` takes Java's error output.
        """
        self._fds: list[int] = []
        _remove_folders_of_the_dead(root)
        group = hashlib.sha256(f"{command} {seats} {key}".encode()).hexdigest()[:16]
        self._folder, self._seat = self._take_seat(root / f"{os.getppid()}-{group}", seats)
        self._turn = self._open(self._folder / "turn")
        with self._locked():
            if not self._join():
                self._start(command, root, log)
            self._pid, port, token = self._running()
            self.gateway = connect(port, token)
            self._drop_predecessor()

    @property
    def jvm(self) -> Any:
        return self.gateway.jvm

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """`method(*arguments)` while no other process calls.

        Raises RuntimeError when the Java process had to be ended because of another one.
        """
        from py4j.protocol import Py4JJavaError

        with self._locked():
            self._check_turn()
            os.pwrite(self._turn, IN_A_CALL, 0)
            try:
                result = method(*arguments)
            except Py4JJavaError:  # it came back, with an error
                os.pwrite(self._turn, IDLE, 0)
                raise
            os.pwrite(self._turn, IDLE, 0)
            return result

    def keep(self, java_object: Any) -> Any:
        """Note `java_object`, so that the next one on this seat drops it should we be killed."""
        text = f"{self._pid} {java_object._target_id}".ljust(STATE_LENGTH)
        os.pwrite(self._seat, text.encode(), 0)
        return java_object

    def close(self) -> None:
        """Leave. Java ends with the last one. May be called again."""
        if self._fds:
            self.gateway.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    # Seats

    def _take_seat(self, pool: Path, seats: int) -> tuple[Path, int]:
        numbers = count()
        while True:
            folder = pool / str(next(numbers))
            folder.mkdir(parents=True, exist_ok=True)
            for seat in range(seats):
                fd = self._open(folder / f"seat_{seat}")
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return folder, fd
                except BlockingIOError:
                    os.close(self._fds.pop())

    def _drop_predecessor(self) -> None:
        """Free what a killed process of this seat has left in Java."""
        from py4j.java_gateway import JavaObject

        pid, _, target_id = os.pread(self._seat, STATE_LENGTH, 0).decode().strip().partition(" ")
        if target_id and int(pid) == self._pid:
            self.gateway.detach(JavaObject(target_id, self.gateway._gateway_client))

    def _open(self, path: Path) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._fds.append(fd)
        return fd

    # Turns

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def _check_turn(self) -> None:
        state = os.pread(self._turn, STATE_LENGTH, 0)
        if self._running()[0] != self._pid:
            raise RuntimeError("the shared Java process was ended and replaced")
        if state[:1] == IN_A_CALL:
            self._kill()
            raise RuntimeError(
                "another environment process died within a call to the shared Java process, which "
                "was ended because it may still be at work on that call"
            )

    # The Java process

    def _join(self) -> bool:
        """Hold the pipe of a Java process that is fit for use, if there is one."""
        try:
            pipe = os.open(self._folder / "stdin", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO):  # no pipe, or nobody reads it
                return False
            raise
        if os.pread(self._turn, 1, 0) == IDLE and _is_locked_by_others(pipe):
            self._hold(pipe)
            return True
        os.close(pipe)
        self._kill()
        return False

    def _hold(self, pipe: int) -> None:
        fcntl.flock(pipe, fcntl.LOCK_SH)
        self._fds.append(pipe)

    def _start(self, command: list[str], folder: Path, log: IO[str] | None) -> None:
        os.ftruncate(self._turn, 0)
        path = self._folder / "stdin"
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        reads = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._hold(os.open(path, os.O_WRONLY))
        os.set_blocking(reads, True)
        with os.fdopen(reads) as stdin:
            java = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=log or subprocess.DEVNULL,
                cwd=folder,
                start_new_session=True,  # it outlives the process that happens to start it
            )
        assert java.stdout is not None
        with java.stdout as stdout:
            port, token = int(stdout.readline()), stdout.readline().decode().strip()
        state = f"{IDLE.decode()} {java.pid} {port} {token}".ljust(STATE_LENGTH)
        os.pwrite(self._turn, state.encode(), 0)

    def _running(self) -> tuple[int, int, str]:
        """Process id, port and token of the Java process; zeros when one was started but not
        noted."""
        state = os.pread(self._turn, STATE_LENGTH, 0).split() or (b"", b"0", b"0", b"")
        return int(state[1]), int(state[2]), state[3].decode()

    def _kill(self) -> None:
        pid = self._running()[0]
        if pid > 0:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def gateway_command(java: str, jar: str, heap_mb: int, options: Sequence[str] = ()) -> list[str]:
    """Starts a py4j gateway that prints its port and token and ends with its input."""
    from py4j.java_gateway import find_jar_path

    classpath = os.pathsep.join([find_jar_path(), jar])
    # out of memory in one game, the others' may be broken too: better a clean end for all
    limits = [f"-Xmx{heap_mb}m", "-XX:+ExitOnOutOfMemoryError"]
    gateway = ["py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"]
    return [java, "-classpath", classpath, *limits, *JVM_OPTIONS, *options, *gateway]


class InTurn:
    """A Java object whose methods are called by `SharedJava.call`."""

    def __init__(self, java: SharedJava, java_object: Any) -> None:
        self._java = java
        self._object = java.keep(java_object)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._object, name)
        return lambda *arguments: self._java.call(method, *arguments)


def _is_locked_by_others(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _remove_folders_of_the_dead(root: Path) -> None:
    for folder in root.glob("*-*"):
        parent = folder.name.partition("-")[0]
        if parent.isdigit() and not Path(f"/proc/{parent}").exists():
            shutil.rmtree(folder, ignore_errors=True)
