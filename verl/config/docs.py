"""docs/configuration.md out of the dataclasses: `python -m verl.config.docs`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from verl.config.compat import FLAG_ALIASES, FLAGS
from verl.config.compose import (
    CONFIG_DIR,
    GROUPS,
    ppo_keys,
    presets,
    sft_keys,
    sft_presets,
)
from verl.config.fields import Facts
from verl.config.keys import ConfigKeys, dataclass_in

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Generated from the dataclasses by `python -m verl.config.docs`; edit those.

Every key can be set on the command line of `python -m verl.trainer.main_ppo`, for example
`trainer.seed=1`. ° marks keys that change nothing of what is learned: a resumed run may have other
values (`trainer.resume_changed`). Presets live in `verl/trainer/config`:

"""
FLAGS_INTRODUCTION = """
## Flags of `examples/general_running_server.sh`

Hydra overrides go after `--` and win over flags. `--dry_run` prints the composed configuration.

| flag | default | meaning |
|---|---|---|
"""
SFT_INTRODUCTION = """
# Keys of `python -m verl.trainer.main_sft`

"""


def page() -> str:
    """The whole page."""
    start = INTRODUCTION + _preset_list() + _sections(ppo_keys())
    cloning = SFT_INTRODUCTION + f"- `--config-name {'|'.join(sft_presets())}`\n"
    return start + FLAGS_INTRODUCTION + _flag_rows() + cloning + _sections(sft_keys())


def rows(defaults: Any, prefix: str, keys: ConfigKeys, *, harmless: bool = False) -> Iterator[str]:
    """The lines of a dataclass instance and of those below it, in source order."""
    facts = {entry.name: Facts.of(entry) for entry in fields(defaults)}
    for name, annotation in keys.fields(type(defaults)).items():
        inner, value = dataclass_in(annotation), getattr(defaults, name)
        free = harmless or facts[name].harmless
        if inner is None:
            yield _row(f"{prefix}{name}", value, facts[name], free)
        elif isinstance(value, dict):
            yield from rows(inner(), f"{prefix}{name}.<name>.", keys, harmless=free)
        else:
            yield from rows(value, f"{prefix}{name}.", keys, harmless=free)


def _row(key: str, default: Any, facts: Facts, harmless: bool) -> str:
    meaning = _cell(facts.doc) + (" °" if harmless else "")
    return f"| `{key}` | `{_text(default)}` | {_cell(facts.accepted)} | {meaning} |"


def _preset_list() -> str:
    choices = {"--config-name ": CONFIG_DIR} | {f"{group}=": CONFIG_DIR / group for group in GROUPS}
    return "".join(f"- `{start}{'|'.join(presets(at))}`\n" for start, at in choices.items())


def _sections(keys: ConfigKeys) -> str:
    return "".join(_section(name, n(), keys) for name, n in keys.fields(keys.root).items())


def _section(name: str, defaults: Any, keys: ConfigKeys) -> str:
    lines = [f"\n## `{name}`\n", "| key | default | accepted | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *rows(defaults, f"{name}.", keys)]) + "\n"


def _flag_rows() -> str:
    aliases = {of: alias for alias, of in FLAG_ALIASES.items()}
    lines = []
    for name, flag in FLAGS.items():
        also = f" (also `--{aliases[name]}`)" if name in aliases else ""
        lines.append(f"| `--{name}`{also} | `{_text(flag.default)}` | {_cell(flag.help)} |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "(required)" if value == "???" else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
