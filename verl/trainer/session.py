"""What every entry point has around its work: a run folder that tells what was run, Ray, and
trackers that go on where a resumed run left off."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import ray
import yaml

from verl.config.trainer import RayInitConfig, SessionConfig
from verl.trainer.checkpoint import CONFIG_FILE, load_driver_state
from verl.trainer.cluster_watch import end, own_agents, watched_cluster
from verl.trainer.endings import telling_what_stands
from verl.trainer.shared_folder import check_shared_folder
from verl.trainer.stop_requests import StopRequests
from verl.utils.atomic import atomic_write_text
from verl.utils.disk import NoRoomError, refused
from verl.utils.errors import UserError
from verl.utils.packages import installed_versions
from verl.utils.ray_access import check_token, loopback_only
from verl.utils.sockets import socket_folder
from verl.utils.temporary import FOLDER, temporary_folder
from verl.utils.tracking import Tracking

logger = logging.getLogger(__name__)

# The longest name that Ray gives to a socket below its folder.
RAY_SOCKET = f"{FOLDER}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
RAY_LOGS = "ray_logs"  # in the run folder
# Ray's server would keep a record of every call, about 3 kB each, which nothing here reads.
NO_TASK_EVENTS = {"task_events_report_interval_ms": 0}


def record_run(folder: Path, resolved: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Write `config.yaml` and `environment.json`: what is run, with which versions.

    What an earlier start of the run wrote is kept beside them: `config.1.yaml`, `config.2.yaml`, ..

    Args:
        resolved: the configuration as plain data.
        facts: what else the run is made of, as JSON.

    Returns:
        The content of the latter.

    Raises:
        UserError: there is no room for them.
    """
    environment = {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": installed_versions(),
        **facts,
    }
    with refused("trainer.default_local_dir", folder):
        _write_keeping(folder / CONFIG_FILE, yaml.safe_dump(resolved, sort_keys=False))
        _write_keeping(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    return environment


def _write_keeping(path: Path, text: str) -> None:
    """Replace the file; an earlier one that differs gets the next free number."""
    if path.is_file() and (earlier := path.read_text(encoding="utf-8")) != text:
        names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
        atomic_write_text(next(name for name in names if not name.exists()), earlier)
    atomic_write_text(path, text)


@contextmanager
def run_session(
    run: SessionConfig, cluster: RayInitConfig, processes: int, folder: Path
) -> Iterator[StopRequests]:
    """Ray, as `ray_cluster`; a request to stop and a cluster that dies are raised in the block, and
    whatever ends it says from where the run can go on.

    Raises:
        UserError: as `ray_cluster`; or not all of several machines have the folder.
    """
    with (
        StopRequests() as stop,
        telling_what_stands(run),
        ray_cluster(cluster, processes, folder),
        watched_cluster(stop.stop),
    ):
        if run.nnodes > 1:
            check_shared_folder(folder)
        yield stop


@contextmanager
def ray_cluster(
    config: RayInitConfig, processes: int, run_folder: Path | None = None
) -> Iterator[None]:
    """Join the cluster at `ray_kwargs.ray_init.address`, or start one here for as long as it takes.

    One that is started here is reached from this machine alone, and has logical room for all
    `processes`: a worker is a process, not a core. Its files are temporary; when the block fails,
    Ray's logs are kept in `run_folder`.

    Raises:
        UserError: there is no cluster at the address, or it asks for no token.
    """
    options = {"runtime_env": config.runtime_env, "logging_level": logging.ERROR}
    # else Ray prints a traceback of every call that nobody waits for any more
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    on_terminate = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        stack.callback(_shut_down)
        if config.address is not None:
            _join(config.address, options)
        else:
            stack.enter_context(loopback_only())
            num_cpus = config.num_cpus or max(os.cpu_count() or 1, processes)
            folder = stack.enter_context(temporary_folder(_ray_parent()))
            if run_folder is not None:
                stack.enter_context(_keeping_logs(folder, run_folder / RAY_LOGS))
            stack.callback(_shut_down)  # before the folder goes
            # "local": a RAY_ADDRESS in the environment must not decide where a run goes
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                _temp_dir=str(folder),
                _system_config=dict(NO_TASK_EVENTS),  # Ray writes into it
                **options,
            )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own, which aborts
        yield


def _shut_down() -> None:
    agents = own_agents()
    ray.shutdown()
    end(agents)


@contextmanager
def _keeping_logs(folder: Path, kept: Path) -> Iterator[None]:
    """`folder` is Ray's. Its logs tell nothing of a user's mistake, Ctrl-C or a full disk."""
    try:
        yield
    except (UserError, NoRoomError):
        raise
    except Exception:
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError, shutil.Error):  # the failure is what counts
            shutil.copytree(folder / "session_latest" / "logs", kept)
        raise


def _ray_parent() -> str:
    """Where the folder for Ray's files is made: another place where Ray's own choice is too long
    for its sockets."""
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    short = socket_folder(chosen, RAY_SOCKET, "RAY_TMPDIR")
    if short != chosen:
        logger.info("Ray keeps its files in %s: %s is too long for its sockets", short, chosen)
    return short


def worker_environment(cpu_threads: int) -> dict[str, str]:
    """Environment variables of every worker process."""
    return {
        "OMP_NUM_THREADS": str(cpu_threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars of several processes would overwrite the run's
    }


@contextmanager
def open_tracker(
    run: SessionConfig, record: dict[str, Any], folder: Path, checkpoint: Path | None
) -> Iterator[Tracking]:
    """A resumed run goes on in the same files and the same W&B run, after the restored step.

    `record`: what trackers keep of the configuration and the versions. `checkpoint`: the one that
    is restored.
    """
    state = {"tracker": None, "step": None}
    if checkpoint is not None and checkpoint.parent == folder:  # not one of another run
        state = load_driver_state(checkpoint)
    tracker = Tracking(
        run.project_name,
        run.experiment_name,
        run.logger,
        config=record,
        run_dir=folder,
        resume_ids=state["tracker"],
        resume_step=state["step"],
    )
    try:
        yield tracker
    finally:
        tracker.finish()


def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` for uncommitted changes; None outside git."""
    if shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def _join(address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at ray_kwargs.ray_init.address={address} "
            f"({error}); start one with `ray start --head`, or leave the address out"
        ) from error
    check_token(address)
