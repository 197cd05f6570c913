"""A run over several Ray nodes, of which some die: on one machine, each with its own processes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from verl.trainer.ppo.rollout_log import read_rollouts

from ..machines import Machines, can_hide, machines
from ..runs import LAKE, REPO, command, run
from ..waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

# A game that waits for `open` once the path in `closes_at` is there.
GAME = """
import os, time
from pathlib import Path
from agent_system.environments.text_game import Reply, TextGame, game_package

GATE = Path(os.environ["GATE"])


class Even(TextGame):
    task_text = "Say a word with an even number of letters."

    def start(self, task):
        return Reply("Which word?")

    def play(self, command):
        closes_at = GATE / "closes_at"
        if closes_at.exists() and Path(closes_at.read_text()).exists():
            (GATE / f"held_{os.getpid()}").touch()
            while not (GATE / "open").exists():
                time.sleep(0.05)
        return Reply("Yes." if len(command) % 2 == 0 else "No.", success=len(command) % 2 == 0)


PACKAGE = game_package(Even, rules="You say words.")
"""
SETTINGS = [
    *LAKE,
    "env=custom_env",
    "env.env_name=even:PACKAGE",
    "env.pool.slots_per_worker=1",  # one after the other: the last digits depend on the company
    "actor_rollout_ref.model.path=small",
    "actor_rollout_ref.actor.optim.lr=0.001",
    "actor_rollout_ref.rollout.name=hf",
    "trainer.save_freq=1",
    "data.train_batch_size=3",
    "actor_rollout_ref.actor.ppo_mini_batch_size=3",
]
ELSEWHERE = "elsewhere"  # what the last machine does not have
# Prints the nodes of pools of 3 and 4 workers.
POOLS = """
import sys, ray
from verl.single_controller.ray import resource_pool
from verl.utils.errors import UserError

resource_pool._PLACEMENT_NOTICE_S = resource_pool._PLACEMENT_TIMEOUT_S = 5
ray.init(address=sys.argv[1], log_to_driver=False)
for nodes in (3, 4):
    pool = resource_pool.RayResourcePool([1] * nodes, False, max_colocate_count=1, apart=True)
    try:
        print(len({place.node_id for place in pool.places("STRICT_PACK", "cpu")}))
    except UserError as error:
        print(error)
    for group in pool.pgs or []:
        ray.util.remove_placement_group(group)
"""
COMPARED = ("actor/", "episode/success_rate", "training/")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    (folder / "gate").mkdir()
    (folder / ELSEWHERE).mkdir()
    (folder / "even.py").write_text(GAME)
    return folder


@pytest.fixture(scope="module")
def cluster(place):
    with machines(GATE=str(place / "gate"), PYTHONPATH=f"{place}:{REPO}") as cluster:
        cluster.start()
        cluster.start(cpus=1)  # for a rollout worker
        cluster.start(without=elsewhere(place))
        yield cluster


def elsewhere(place: Path) -> Path | None:
    """A folder that a machine can be without."""
    return place / ELSEWHERE if can_hide(place / ELSEWHERE) else None


def settings(folder: Path, *overrides: str) -> list[str]:
    return [*SETTINGS, f"trainer.default_local_dir={folder}", *overrides]


def spread(cluster: Machines, workers: int) -> list[str]:
    address = f"ray_kwargs.ray_init.address={cluster.address}"
    return [address, "trainer.nnodes=2", f"actor_rollout_ref.rollout.workers={workers}"]


def test_the_ranks_of_each_node_are_on_a_machine_of_their_own(cluster):
    done = subprocess.run(
        [sys.executable, "-c", POOLS, cluster.address],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    of_three, of_four = done.stdout.splitlines()
    assert of_three == "3"
    assert "cannot place [1, 1, 1, 1] workers a node" in of_four
    assert "on 4 different nodes" in of_four and "free on 3 nodes are 4 of 7 CPU" in of_four


def test_a_folder_that_one_machine_lacks_is_refused(cluster, place):
    if elsewhere(place) is None:
        pytest.skip("this machine lets nobody mount a file system of his own")
    folder = place / ELSEWHERE / "run"
    arguments = settings(folder, *spread(cluster, 2))
    done = run("main_ppo", *arguments, cwd=place, env=cluster.environment)
    assert done.returncode == 2, done.stderr[-4000:]
    refusal = f"default_local_dir={folder} is not the same folder on the machine 127.0.0.13 "
    assert refusal in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.glob(".unfinished-*"))


def test_machines_die_and_the_numbers_are_those_of_one(cluster, place):
    """One that has a rollout worker, in the middle of a rollout; one that has a rank, while its
    ranks compute."""
    one = place / "one"
    arguments = settings(one, "trainer.n_gpus_per_node=2")
    done = run("main_ppo", *arguments, cwd=place, env=cluster.environment)
    assert done.returncode == 0, done.stderr[-4000:]

    folder, gate = place / "run", place / "gate"
    arguments = settings(folder, *spread(cluster, 3), "trainer.max_restarts=0")
    (gate / "closes_at").write_text(str(folder / "global_step_1"))
    with started(arguments, cluster, place) as (process, console):
        wait_for(process, lambda: len(list(gate.glob("held_*"))) == 3)
        for name in ("ray::RolloutWorker", "agent_system.environments.worker"):
            assert [len(machine.running(name)) for machine in cluster.all] == [1, 1, 1]
        assert [len(machine.running("ray::Colocated")) for machine in cluster.all] == [1, 0, 1]
        _, with_rollouts, with_rank = cluster.all
        (rank,) = with_rank.running("ray::Colocated")
        rank.suspend()  # the other one will wait for it
        with_rollouts.die()
        (gate / "open").touch()
        wait_for(process, lambda: steps_played(folder) == {1, 2})
        with_rank.die()
        assert process.wait(200) == 3
    told = console.read_text()
    assert re.search(r"rollout worker \d died and is started anew", told)
    (sentence,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert "training rank 1 died" in sentence and "goes on from step 1" in sentence
    assert "Traceback" not in told

    cluster.start()
    done = run("main_ppo", *arguments, cwd=place, env=cluster.environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [step["training/global_step"] for step in numbers(one)] == [1, 2]
    for step, expected in zip(numbers(folder), numbers(one), strict=True):
        assert step == pytest.approx(expected, rel=1e-6, abs=1e-9)


@contextmanager
def started(
    arguments: list[str], cluster: Machines, place: Path
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A run, and the file in which its stderr is."""
    console = place / "console.txt"
    with (
        console.open("w") as file,
        subprocess.Popen(
            command("main_ppo", *arguments), cwd=place, env=cluster.environment, stderr=file
        ) as process,
    ):
        try:
            yield process, console
        finally:
            process.kill()


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """While the run goes on."""
    wait_until(lambda: condition() or process.poll() is not None, 200)
    assert process.poll() is None, "the run has ended"


def steps_played(folder: Path) -> set[int]:
    return {episode["step"] for episode in read_rollouts(folder / "rollouts", "train")}


def numbers(folder: Path) -> list[dict[str, float]]:
    """The tracked ones of each step that do not depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name.startswith(COMPARED)} for line in lines
    ]
