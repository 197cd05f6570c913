"""Several machines on one: Ray nodes that are started, and die, each with all of its processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from verl.single_controller.base.rendezvous import find_free_port

from .runs import environment
from .waiting import wait_until

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
MEMORY = "--object-store-memory=150000000"  # bytes
HIDING = 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
UNSHARED = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", HIDING, "sh"]


class Machine:
    """`ray start` and all that it starts."""

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, env=env, cwd=log.parent, stdout=output, stderr=output
            )
        self._log = log

    def wait_until_up(self) -> None:
        def is_up() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return "Ray runtime started" in self._log.read_text()

        wait_until(is_up, 120)

    def running(self, name: str) -> list[psutil.Process]:
        """Its processes whose command has `name` in it."""
        return [process for process in self._all() if name in _command(process)]

    def die(self) -> None:
        """At once, with all of its processes."""
        processes = self._all()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=60)
        self._process.wait(60)

    def _all(self) -> list[psutil.Process]:
        if self._process.poll() is not None:
            return []
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]


class Machines:
    """A cluster that asks for a token; its first machine is the head."""

    def __init__(self, folder: Path, **variables: str) -> None:
        """`folder`: a short path, for Ray's sockets. `variables`: of the environment everywhere."""
        self._folder = folder
        self._port = find_free_port()
        self.environment = {
            **environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "RAY_TMPDIR": str(folder),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        self.all: list[Machine] = []

    @property
    def address(self) -> str:
        return f"127.0.0.11:{self._port}"

    def start(self, *, cpus: int = 3, without: Path | None = None) -> Machine:
        """One more, with room for `cpus` workers; the folder `without` is empty there."""
        number = len(self.all) + 1
        command = [*RAY, MEMORY, f"--num-cpus={cpus}", f"--node-ip-address=127.0.0.1{number}"]
        if number == 1:
            command += ["--head", f"--port={self._port}", "--include-dashboard=false"]
        else:
            command += [f"--address={self.address}"]
        if without is not None:
            command = [*UNSHARED, str(without), *command]
        log = self._folder / f"machine{number}.log"
        self.all.append(Machine(command, self.environment, log))
        self.all[-1].wait_until_up()
        return self.all[-1]


def can_hide(folder: Path) -> bool:
    """Whether this machine lets a process have a folder of its own in the place of another."""
    return subprocess.run([*UNSHARED, str(folder), "true"], capture_output=True).returncode == 0


@contextmanager
def machines(**variables: str) -> Iterator[Machines]:
    """All of them die at the end."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ray"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Machines(folder, **variables)
        stack.callback(lambda: [machine.die() for machine in cluster.all])
        yield cluster


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
