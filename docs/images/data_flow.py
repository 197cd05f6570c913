"""Draws one training step, data_flow.svg: run `python docs/images/data_flow.py` after a change.

Lengths are pixels of the picture. A box is as high as its lines need.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT, BOX_WIDTH = 880, 652, 264
LEFT, MIDDLE, RIGHT = 12, 308, 604  # where the boxes of a column begin
STYLE = """\
text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13.5px }
.lane { font-weight: 600; fill: #57606a }
.file { font: 10.5px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #0550ae }
.flow { font-size: 11.5px; font-style: italic; fill: #57606a }
rect { fill: #f6f8fa; stroke: #8c959f }
.epo { fill: #ddf4ff; stroke: #54aeff }
path { fill: none; stroke: #57606a; stroke-width: 1.4; marker-end: url(#head) }
#head path { fill: #57606a; stroke: none; marker-end: none }"""


class Box(NamedTuple):
    """A part of the step: what it does, and the files to open."""

    x: int
    y: int
    title: str
    text: tuple[str, ...]
    files: tuple[str, ...]
    style: str = ""


class Arrow(NamedTuple):
    """What flows, along a line; the label begins at `label_at`."""

    line: str
    label: str = ""
    label_at: tuple[int, int] = (0, 0)


LANES = (
    (LEFT, "Rollout workers"),
    (MIDDLE, "Driver: verl/trainer/ppo/ray_trainer.py"),
    (RIGHT, "Ranks of actor and critic"),
)
BOXES = (
    Box(
        MIDDLE,
        44,
        "1  Tasks",
        ("groups: one task, env.rollout.n times",),
        ("agent_system/adapters/world.py", "agent_system/environments/tasks.py"),
    ),
    Box(
        LEFT,
        44,
        "Environments",
        ("one process each: reset, step",),
        ("agent_system/environments/pool.py", "agent_system/environments/env_package/"),
    ),
    Box(
        LEFT,
        180,
        "2  Collect",
        ("every episode at its own pace",),
        ("agent_system/adapters/rollout_worker.py", "agent_system/multi_turn_rollout/"),
    ),
    Box(
        LEFT,
        316,
        "Inference engine",
        ("vLLM or transformers",),
        ("verl/workers/rollout/engines.py", "verl/workers/rollout/supervised.py"),
    ),
    Box(
        MIDDLE,
        180,
        "3  Rows",
        ("a DataProto of the sampled tokens",),
        ("agent_system/adapters/rows.py", "verl/protocol/columns.py"),
    ),
    Box(
        RIGHT,
        149,
        "4  Score",
        ("old log-probs, entropies: one forward", "reference log-probs, values"),
        (
            "verl/workers/actor/dp_actor.py",
            "verl/workers/actor/reference.py",
            "verl/workers/critic/dp_critic.py",
        ),
    ),
    Box(
        MIDDLE,
        316,
        "5  Advantages",
        ("GRPO, GAE, ..., from the rewards",),
        ("verl/trainer/ppo/advantage_stage.py", "verl/algorithms/advantages.py"),
    ),
    Box(
        RIGHT,
        316,
        "6  Critic update",
        ("an optimiser step a mini-batch",),
        ("verl/workers/critic/dp_critic.py", "verl/trainer/ppo/batching.py"),
    ),
    Box(
        RIGHT,
        452,
        "7  Actor update",
        (
            "policy loss + KL",
            "- lambda * (L_H - beta * L_smooth)",
        ),
        ("verl/algorithms/policy_losses.py", "epo/regularizer.py"),
    ),
    Box(
        MIDDLE,
        452,
        "EPO: entropy history",
        ("corridor and beta, from the past steps",),
        ("epo/plugin.py", "epo/history.py"),
        style="epo",
    ),
    Box(
        MIDDLE,
        574,
        "8  Weight sync",
        ("GPU to GPU, or by shared memory",),
        ("verl/workers/weight_sync/sync.py",),
    ),
)
ARROWS = (
    Arrow("M308 92 H292 V206 H276", "tasks", (298, 158)),
    Arrow("M100 180 V122", "command", (36, 156)),
    Arrow("M180 122 V180", "observation", (186, 156)),
    Arrow("M100 258 V316", "prompt ids", (32, 292)),
    Arrow("M180 316 V258", "ids, log-probs", (186, 292)),
    Arrow("M276 236 H308"),
    Arrow("M572 220 H604"),
    Arrow("M604 244 H588 V344 H572"),
    Arrow("M572 372 H604"),
    Arrow("M736 394 V452"),
    Arrow("M440 394 V452", "entropies, for the next steps", (448, 428)),
    Arrow("M572 492 H604"),
    Arrow("M736 548 V606 H572", "weights", (744, 584)),
    Arrow("M308 606 H144 V394", "weights of version k + 1", (152, 500)),
)


def text(x: int, y: int, words: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{escape(words)}</text>'


def draw_box(box: Box) -> list[str]:
    lines = [(box.title, "title", 20)]
    lines += [(line, "", 17) for line in box.text]
    lines += [(file, "file", 16) for file in box.files]
    drawn, y = [], box.y
    for words, style, step in lines:
        y += step
        drawn.append(text(box.x + 9, y, words, style))
    shape = f'x="{box.x}" y="{box.y}" width="{BOX_WIDTH}" height="{y + 9 - box.y}" rx="6"'
    return [f'<rect {shape} class="{box.style}"/>', *drawn]


def draw() -> str:
    """The picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}">',
        "<title>One training step</title>",
        f"<style>\n{STYLE}\n</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 Z"/></marker>',
        f'<path d="M0 0 H{WIDTH} V{HEIGHT} H0 Z" style="fill: white; stroke: none; marker: none"/>',
        *(text(x, 28, words, "lane") for x, words in LANES),
    ]
    for arrow in ARROWS:
        parts.append(f'<path d="{arrow.line}"/>')
        parts.append(text(*arrow.label_at, arrow.label, "flow"))
    for box in BOXES:
        parts += draw_box(box)
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
