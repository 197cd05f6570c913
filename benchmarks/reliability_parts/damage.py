"""Damages checkpoints in many ways and loads them as a resumed run does: what comes of it?"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from rollout_parts.report import Cell, show

from reliability_parts import strangers
from reliability_parts.policy import Policy
from verl.config.trainer import SessionConfig
from verl.trainer.checkpoint import CheckpointStore, load_driver_state
from verl.utils.errors import UserError

STEPS = (1, 2, 3)
OUTCOMES = (
    "an older one taken",
    "refused in a sentence",
    "loaded as it was saved",
    "LOADED WRONG",
    "CODE EXECUTED",
    "OTHER EXCEPTION",
)
Damage = Callable[[Path, Path, random.Random], None]  # of a checkpoint, with another at hand


def flip(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """One bit of a file."""
    file = any_file(checkpoint, rng)
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def zero(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """A block of 4 KiB, as a disk loses it."""
    file = any_file(checkpoint, rng)
    content = bytearray(file.read_bytes())
    start = 4096 * rng.randrange(1 + len(content) // 4096)
    end = min(start + 4096, len(content))
    content[start:end] = bytes(end - start)
    file.write_bytes(content)


def cut(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """The end of a file, or all of it."""
    file = any_file(checkpoint, rng)
    with file.open("r+b") as opened:
        opened.truncate(rng.choice((0, rng.randrange(file.stat().st_size))))


def delete(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """A file, or all that the workers wrote."""
    if rng.random() < 0.2:
        shutil.rmtree(checkpoint / "actor")
    else:
        any_file(checkpoint, rng).unlink()


def swap(checkpoint: Path, other: Path, rng: random.Random) -> None:
    """A file with that of another checkpoint, or all of them."""
    if rng.random() < 0.2:
        exchange(checkpoint, other)
    else:
        file = any_file(checkpoint, rng)
        exchange(file, other / file.relative_to(checkpoint))


KINDS: dict[str, Damage] = {
    "a bit flipped": flip,
    "4 KiB zeroed": zero,
    "cut": cut,
    "deleted": delete,
    "exchanged with another checkpoint's": swap,
    "code in the table of tensors": strangers.evil_table,
    "code in an entry": strangers.evil_entry,
    "code in driver.pt": strangers.evil_driver,
    "code in a random state": strangers.evil_random_state,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        counted = measure(Path(folder), options.cases, options.seed)
    show(("damage", "cases", *OUTCOMES), table(counted))


def measure(folder: Path, cases: int, seed: int) -> dict[str, Counter[str]]:
    """Outcome -> number of cases, for each kind of damage. Kinds take turns.

    Every other case names its checkpoint; the rest take the newest of the folder.
    """
    policy, rng = Policy(folder / "model"), random.Random(seed)
    saved = save_run(policy, folder / "saved")
    counted: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for case in range(cases):
        kind = list(KINDS)[case % len(KINDS)]
        root = folder / "damaged"
        shutil.copytree(folder / "saved", root)
        newest, other = root / f"global_step_{STEPS[-1]}", root / f"global_step_{STEPS[0]}"
        KINDS[kind](newest, other, rng)
        named = newest if case // len(KINDS) % 2 else None
        counted[kind][outcome(policy, root, named, saved)] += 1
        shutil.rmtree(root)
    return counted


def save_run(policy: Policy, root: Path) -> dict[int, str]:
    """Three checkpoints of a policy that is trained; step -> fingerprint of what was saved."""
    store, fingerprints = CheckpointStore(SessionConfig(default_local_dir=str(root))), {}
    for step in STEPS:
        policy.train_step()
        state = {"step": step, "tracker": {}}
        store.save(step, state, lambda folder: policy.save(folder / "actor"))
        fingerprints[step] = fingerprint(policy, step)
    return fingerprints


def outcome(policy: Policy, root: Path, named: Path | None, saved: dict[int, str]) -> str:
    """What comes of resuming in `root`, from the checkpoint `named` or the newest."""
    mode = "auto" if named is None else "resume_path"
    path = None if named is None else str(named)
    store = CheckpointStore(
        SessionConfig(default_local_dir=str(root), resume_mode=mode, resume_from_path=path)
    )
    try:
        checkpoint = store.find()
        assert checkpoint is not None, "there is one"
        step = load_driver_state(checkpoint)["step"]
        policy.load(checkpoint / "actor")
        right = fingerprint(policy, step) == saved[int(checkpoint.name.rpartition("_")[2])]
        newest = checkpoint.name == f"global_step_{STEPS[-1]}"
        result = OUTCOMES[3] if not right else OUTCOMES[2] if newest else OUTCOMES[0]
    except UserError:
        result = OUTCOMES[1]
    except Exception:  # the measurement: nothing but a UserError may come
        result = OUTCOMES[5]
    return OUTCOMES[4] if (root / strangers.TRACE).exists() else result


def fingerprint(policy: Policy, step: int) -> str:
    """Of all that decides how training goes on."""
    digest = hashlib.sha256(str(step).encode())
    for tensor in [*policy.tensors(), torch.get_rng_state()]:
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def any_file(checkpoint: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def table(counted: dict[str, Counter[str]]) -> list[list[Cell]]:
    """A line a kind, and their sum."""
    total: Counter[str] = sum(counted.values(), Counter())
    return [
        [kind, outcomes.total(), *(outcomes[name] for name in OUTCOMES)]
        for kind, outcomes in [*counted.items(), ("all", total)]
    ]
