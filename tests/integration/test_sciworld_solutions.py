"""All 30 tasks through the manager: the gold path wins each of them, waiting none."""

import pytest

from agent_system.config import EnvConfig, PoolConfig, TaskSetConfig
from agent_system.environments.env_manager import SciWorldEnvironmentManager
from agent_system.environments.env_package.sciworld.projection import sciworld_projection
from agent_system.environments.env_package.sciworld.tasks import sciworld_tasks
from agent_system.environments.pool import EnvPool
from agent_system.environments.tasks import TaskSampler
from agent_system.environments.vector_env import PoolVectorEnv
from agent_system.types import Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENV_NAME = "sciworld/SciWorldEnv"
ROWS = 3
# One test variation of each task, with a short gold path; ordered by its length, so that the rows
# of a batch end at about the same time.
VARIATIONS = {
    "lifespan-longest-lived": 105,
    "lifespan-shortest-lived": 105,
    "lifespan-longest-lived-then-shortest-lived": 105,
    "find-non-living-thing": 270,
    "chemistry-mix-paint-secondary-color": 27,
    "power-component": 15,
    "find-animal": 270,
    "find-living-thing": 270,
    "find-plant": 285,
    "power-component-renewable-vs-nonrenewable-energy": 15,
    "identify-life-stages-2": 6,
    "chemistry-mix-paint-tertiary-color": 27,
    "use-thermometer": 405,
    "test-conductivity": 675,
    "measure-melting-point-unknown-substance": 240,
    "chemistry-mix": 24,
    "test-conductivity-of-unknown-substances": 450,
    "identify-life-stages-1": 13,
    "measure-melting-point-known-substance": 327,
    "grow-plant": 105,
    "grow-fruit": 99,
    "melt": 21,
    "change-the-state-of-matter-of": 21,
    "inclined-plane-determine-angle": 126,
    "freeze": 23,
    "boil": 21,
    "inclined-plane-friction-unnamed-surfaces": 128,
    "inclined-plane-friction-named-surfaces": 1038,
    "mendelian-genetics-unknown-plant": 360,
    "mendelian-genetics-known-plant": 90,
}
TRIES = 3  # the simulator draws its solutions anew, and now and then one does not win


def tasks_of(names):
    return [Task(name, {"task_name": name, "variation": VARIATIONS[name]}) for name in names]


@pytest.fixture
def make_manager():
    """Managers whose simulators are in one Java process."""
    managers = []

    def make(**options):
        options |= {"simulators_per_jvm": ROWS, "jvm_heap_mb": 384}
        pool = EnvPool(ENV_NAME, options, PoolConfig(ROWS, reset_timeout_s=400.0))
        envs = PoolVectorEnv(pool, TaskSampler(tasks_of(VARIATIONS), seed=0), group_size=1)
        managers.append(SciWorldEnvironmentManager(envs, sciworld_projection, EnvConfig()))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def response(command):
    return f"<think>I know the solution.</think><action>{command}</action>"


def play(manager, tasks, scripts=None):
    """The last infos; each row plays its script, by default its gold path."""
    _, infos = manager.reset(tasks)
    scripts = scripts or [info["gold_path"] for info in infos]
    for step in range(max(map(len, scripts))):
        commands = [script[step] if step < len(script) else "look around" for script in scripts]
        _, _, dones, infos = manager.step([response(command) for command in commands])
        if all(dones):
            break
    return infos


def batches(names):
    names = list(names)
    return [names[start : start + ROWS] for start in range(0, len(names), ROWS)]


def filled(names):
    """Tasks for all rows; the manager has no empty ones."""
    return tasks_of([*names, *[names[0]] * (ROWS - len(names))])


def test_there_is_a_variation_of_every_task():
    listed = {task.key for task in sciworld_tasks(TaskSetConfig("all_test"))}
    assert len(VARIATIONS) == 30
    assert {task.key for task in tasks_of(VARIATIONS)} <= listed


def test_gold_paths_win_all_30_tasks(make_manager):
    manager = make_manager(gold_path=True)
    unsolved = list(VARIATIONS)
    for _ in range(TRIES):
        lost = []
        for names in batches(unsolved):
            infos = play(manager, filled(names))
            lost += [name for name, info in zip(names, infos, strict=False) if not info["success"]]
        unsolved = lost
    assert unsolved == []


def test_waiting_wins_no_task(make_manager):
    manager = make_manager()
    infos = []
    for names in batches(VARIATIONS):
        infos += play(manager, filled(names), [["wait"] * 10] * ROWS)[: len(names)]
    assert all(info["moves"] > 100 for info in infos)
    assert not any(info["success"] for info in infos)
    # By the published measure (a score above 0 after 100 moves) waiting wins 14 of these 30: they
    # give points for what holds at the start, or for passing the time.
    assert 12 <= sum(info["lenient_success"] for info in infos) <= 16
