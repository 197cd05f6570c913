"""Which package may import which: the directions keep every part usable on its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports_of(path):
    """(line, top-level name or dotted module) of every import, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module


def violations(paths, forbidden):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in paths
        for line, module in imports_of(path)
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
