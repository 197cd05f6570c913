"""Walls between packages, floors within, no circles: every part stays usable on its own.

An import counts wherever it stands, also inside a function or under TYPE_CHECKING: a reader follows
it all the same.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Three towers, the top floor first. A room imports itself and the floors below it, never another
# room of its floor. The bare name of a package is its face: what its `__init__` hands out.
HOUSE = """
verl.trainer                  | agent_system.adapters                    | epo
verl.workers                  | agent_system.multi_turn_rollout          | epo.plugin
verl.single_controller        | agent_system.environments                | epo.regularizer
verl.config   verl            | agent_system.memory agent_system.rewards | epo.config
verl.protocol verl.algorithms | agent_system.interfaces agent_system     | epo.history
verl.utils                    | agent_system.types agent_system.config   | epo.corridor epo.schedule
"""
FLOORS = [line.replace("|", " ").split() for line in HOUSE.strip().splitlines()]
HEIGHT = {room: height for height, floor in enumerate(reversed(FLOORS)) for room in floor}


def imports_of(source):
    """(line, module, name imported from it or None) of every import, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name of what you import"
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)


def import_graph(sources):
    """Module -> the modules among `sources` (name -> source text) that it imports.

    `from package import name` is an import of the submodule of that name where there is one, so a
    package that re-exports its submodules makes no circle unless one of those imports the package.
    """

    def target(module, name):
        submodule = f"{module}.{name}"
        return submodule if submodule in sources else module

    return {
        importer: {target(module, name) for _, module, name in imports_of(source)} & sources.keys()
        for importer, source in sources.items()
    }


def circle(graph):
    """Modules that import each other in a ring, the first one again at the end; else empty."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def room_of(module):
    room = ".".join(module.split(".")[:2])
    assert room in HEIGHT, f"'{room}' has no floor yet; draw it into HOUSE"
    return room


def climbs(graph):
    """The imports of a room that is not below the importer's."""
    return [
        f"{importer} imports {imported}"
        for importer, targets in graph.items()
        for imported in sorted(targets)
        if room_of(importer) != room_of(imported)
        and HEIGHT[room_of(importer)] <= HEIGHT[room_of(imported)]
    ]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def house():
    paths = modules("verl", "agent_system", "epo")
    return import_graph({name_of(path): path.read_text(encoding="utf-8") for path in paths})


def test_no_modules_import_each_other_in_a_circle(house):
    assert circle(house) == []


def test_every_import_goes_down(house):
    assert climbs(house) == []
    assert {room_of(module) for module in house} == HEIGHT.keys()  # no room is drawn that is gone


def test_a_circle_is_seen_also_inside_a_function_and_through_a_package():
    sources = {
        "verl.utils.a": "import verl.utils.b",
        "verl.utils.b": "def late():\n    from verl.utils.pack import thing",
        "verl.utils.pack": "from verl.utils.pack.part import thing",
        "verl.utils.pack.part": "import os",
    }
    assert circle(import_graph(sources)) == []  # a package may re-export its parts
    sources["verl.utils.pack.part"] = "if TYPE_CHECKING:\n    from verl.utils import a"
    found = circle(import_graph(sources))
    assert found[0] == found[-1]
    assert set(found) == sources.keys()


@pytest.mark.parametrize(
    ("importer", "source", "goes_down"),
    [
        ("verl.config.plan", "from verl.utils import errors", True),
        ("verl.config.plan", "from verl.config.root import PPOConfig", True),
        ("verl.config.plan", "from verl import DataProto", False),  # beside it, not below
        ("verl.utils.errors", "def late():\n    from verl.config import root", False),
        ("agent_system.types", "import agent_system.interfaces", False),
    ],
)
def test_an_import_of_a_room_beside_or_above_is_seen(importer, source, goes_down):
    others = ["verl", "verl.utils.errors", "verl.config.root", "agent_system.interfaces"]
    graph = import_graph(dict.fromkeys(others, "") | {importer: source})
    assert len(graph[importer]) == 1
    assert (climbs(graph) == []) == goes_down


def violations(paths, forbidden):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in paths
        for line, module, _ in imports_of(path.read_text(encoding="utf-8"))
        if forbidden(module.partition(".")[0])
    ]


def modules(*folders):
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"no module in {folders}"
    return found


def test_epo_imports_torch_and_the_standard_library_only():
    allowed = {"torch", "epo", *sys.stdlib_module_names}
    assert violations(modules("epo"), lambda top: top not in allowed) == []


def test_the_agent_core_imports_neither_verl_nor_ray():
    core = [
        path
        for path in modules("agent_system")
        if (ROOT / "agent_system" / "adapters") not in path.parents
    ]
    assert violations(core, lambda top: top in {"verl", "ray", "vllm", "epo", "torch"}) == []


def test_verl_imports_neither_the_agent_system_nor_epo():
    assert violations(modules("verl"), lambda top: top in {"agent_system", "epo"}) == []


def test_maths_and_config_import_no_engine():
    maths = modules("verl/algorithms")
    assert (
        violations(
            [*modules("verl/config"), *maths], lambda top: top in {"ray", "vllm", "transformers"}
        )
        == []
    )


def loaded_by(modules):
    """Top-level packages in memory after importing `modules` in a fresh interpreter."""
    code = f"import sys, {modules}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


ENGINES = {"ray", "vllm", "transformers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("agent_system.multi_turn_rollout", {"verl", "torch", "epo", *ENGINES}),
        ("epo", {"verl", "agent_system", "hydra", *ENGINES}),
        ("verl.config.root, verl.trainer.ppo.core_algos", {"agent_system", "epo", *ENGINES}),
    ],
)
def test_importing_stays_light(modules, forbidden):
    assert loaded_by(modules) & forbidden == set()
