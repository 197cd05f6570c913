"""docs/configuration.md out of the dataclasses: `python -m verl.config.docs`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from verl.config.compat import FLAG_ALIASES, FLAGS
from verl.config.compose import CONFIG_DIR, load_schemas, presets
from verl.config.keys import GROUPS, ConfigKeys, dataclass_in
from verl.config.root import PPOConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Generated from the dataclasses by `python -m verl.config.docs`; edit those.

Every key can be set on the command line of `python -m verl.trainer.main_ppo`, for example
`trainer.seed=1`. Presets live in `verl/trainer/config`:

"""
FLAGS_INTRODUCTION = """
## Flags of `examples/general_running_server.sh`

Hydra overrides go after `--` and win over flags. `--dry_run` prints the composed configuration.

| flag | default | meaning |
|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One key: `default` as one writes it on the command line, `comment` from the source."""

    key: str
    default: str
    comment: str


def page() -> str:
    """The whole page."""
    keys = ConfigKeys(load_schemas())
    sections = [_section(name, node(), keys) for name, node in keys.fields(PPOConfig).items()]
    return INTRODUCTION + _preset_list() + "".join(sections) + FLAGS_INTRODUCTION + _flag_rows()


def rows(defaults: Any, prefix: str, keys: ConfigKeys) -> Iterator[Row]:
    """The keys of a dataclass instance and of those below it, in source order."""
    comments = field_comments(type(defaults))
    for name, annotation in keys.fields(type(defaults)).items():
        inner, value = dataclass_in(annotation), getattr(defaults, name)
        if inner is None:
            yield Row(f"{prefix}{name}", _text(value), comments[name])
        elif isinstance(value, dict):
            yield from rows(inner(), f"{prefix}{name}.<name>.", keys)
        else:
            yield from rows(value, f"{prefix}{name}.", keys)


@cache
def field_comments(node: type) -> dict[str, str]:
    """The comment beside or above each field, inherited ones included; '' without one."""
    inherited = [field_comments(base) for base in node.__bases__ if dataclasses.is_dataclass(base)]
    source = inspect.getsource(node)
    by_line = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    own = {
        statement.target.id: _comment_at(statement, by_line)
        for statement in ast.walk(ast.parse(source))
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    return {name: text for comments in (*inherited, own) for name, text in comments.items()}


def _comment_at(statement: ast.AnnAssign, by_line: dict[int, tuple[str, bool]]) -> str:
    """`by_line`: text of a line's comment, and whether the comment stands alone on it."""
    above: list[str] = []
    line = statement.lineno - 1
    while line in by_line and by_line[line][1]:
        above.insert(0, by_line[line][0])
        line -= 1
    last = statement.end_lineno or statement.lineno
    inside = [by_line[n][0] for n in range(statement.lineno, last + 1) if n in by_line]
    return " ".join(above + inside)


def _preset_list() -> str:
    choices = {"--config-name ": CONFIG_DIR} | {f"{group}=": CONFIG_DIR / group for group in GROUPS}
    return "".join(f"- `{start}{'|'.join(presets(at))}`\n" for start, at in choices.items())


def _section(name: str, defaults: Any, keys: ConfigKeys) -> str:
    lines = [f"\n## `{name}`\n", "| key | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{row.key}` | `{row.default}` | {_cell(row.comment)} |"
        for row in rows(defaults, f"{name}.", keys)
    ]
    return "\n".join(lines) + "\n"


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
