"""Whether every machine of a cluster has the run folder: all of them read and write in it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from verl.utils.atomic import TEMPORARY_PREFIX
from verl.utils.errors import UserError, in_short

ANSWER_S = 300.0  # for a process to start on another machine


def check_shared_folder(folder: Path) -> None:
    """Every node that can run a worker puts a file into a folder that was made here just now.

    Raises:
        UserError: one of them does not see it or may not write to it, or does not answer.
    """
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as meeting:
        answers = {_ask(node, Path(meeting)): node for node in _nodes()}
        ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S)
        problems = {node: problem for ref, node in answers.items() if (problem := _problem(ref))}
    alive = _nodes()  # one that has died meanwhile has no part in the run
    problems = {alive[node]: problem for node, problem in problems.items() if node in alive}
    if problems:
        address, problem = min(problems.items())
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            f"trainer.default_local_dir={folder} is not the same folder on the machine "
            f"{address}{more} ({problem}); with trainer.nnodes > 1 every machine writes there: "
            "choose a folder on a file system that all of them have"
        )


def _nodes() -> dict[str, str]:
    """Id -> address of those that can run a worker."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }


def _ask(node: str, meeting: Path) -> ray.ObjectRef:
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0)(_touch).options(scheduling_strategy=on_node)
    return task.remote(meeting / node)


def _touch(path: Path) -> str | None:
    """Why no file can be made in a folder that should be there."""
    try:
        path.touch()
    except OSError as error:
        return in_short(error)
    return None


def _problem(answer: ray.ObjectRef) -> str | None:
    try:
        return ray.get(answer, timeout=0)
    except RayTaskError:
        raise
    except RayError as error:  # the node died, or did not answer in time
        return in_short(error) or f"no answer for {ANSWER_S:.0f} s"
