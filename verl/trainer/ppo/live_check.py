"""After each weight sync: does every engine compute what the trainer computes?

Both score the same few rows of tokens. The trainer's loss is of its own log-probs, so an engine
that computes others samples from another policy than the one that is trained.

Shapes: R rows, S positions of the longest, T = S - 1 tokens that are scored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from verl.config.actor import TOLERANCES
from verl.config.model import compute_dtype
from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.protocol import DataProto
from verl.trainer.ppo.batching import gather, spread
from verl.trainer.ppo.cluster import Workers
from verl.utils.errors import UserError
from verl.workers.interfaces import AgentWorld

logger = logging.getLogger(__name__)

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "training/live_check_diff",
        "nats",
        "max",
        "largest difference of a log-prob between an engine and the trainer after a weight sync",
    ),
)

KEY = "actor_rollout_ref.rollout.live_check"
ROW_TOKENS = (32, 32, 24, 16)  # of each row; uneven, as the rows of a training batch are
NAMES_SHOWN = 3  # of tensors, in a message


class LiveCheck:
    """Compares all engines with the trainer, on rows made of the run's own tasks."""

    def __init__(
        self, config: PPOConfig, plan: RunPlan, world: AgentWorld, workers: Workers
    ) -> None:
        self._config = config
        self._plan = plan
        self._world = world
        self._workers = workers
        self._enabled = config.actor_rollout_ref.rollout.live_check.enable
        self._agreed_at: int | None = None  # the last step whose weights passed
        self._largest: float | None = None  # difference since the last `metrics`

    def run(self, step: int) -> None:
        """Compare; the engines hold the trainer's weights, of `step`, and are idle.

        An engine that cannot score is left unchecked, which is said once.

        Raises:
            UserError: the difference is beyond the tolerance.
        """
        if not self._enabled:
            return
        of_engines = self._workers.rollouts.begin_to_score(self._rows)
        expected_RT = self._of_trainer()
        scored = of_engines()
        if None in scored:
            self._enabled = False
            logger.warning(
                "actor_rollout_ref.rollout.name=%s cannot score rows of tokens, so nothing "
                "compares what it computes with the trainer (docs/extending.md: A rollout engine)",
                self._plan.engine.name,
            )
            return
        for worker, rows in enumerate(scored):
            self._compare(step, worker, self._padded(worker, rows), expected_RT)
        self._agreed_at = step

    def metrics(self) -> dict[str, float]:
        """Of the checks since the last call."""
        largest, self._largest = self._largest, None
        return {} if largest is None else {"training/live_check_diff": largest}

    @cached_property
    def _rows(self) -> list[list[int]]:
        """The beginning of one prompt and the ends of others: system texts begin alike."""
        data = self._config.data
        longest = data.max_prompt_length + data.max_response_length - 1  # one is sampled besides
        first, *others = self._world.sample_prompts(len(ROW_TOKENS), self._plan.chat_date)
        sizes = [min(size, longest) for size in ROW_TOKENS]
        tails = [ids[-size:] for ids, size in zip(others, sizes[1:], strict=True)]
        return [first[: sizes[0]], *tails]

    @cached_property
    def _dtype(self) -> str:
        """The coarser one of engine and trainer."""
        fsdp = self._config.actor_rollout_ref.actor.fsdp_config
        trainers = compute_dtype(fsdp.mixed_precision, self._plan.device)
        coarser = max(self._plan.engine.dtype, trainers, key=lambda dtype: torch.finfo(dtype).eps)
        return str(coarser).removeprefix("torch.")

    @property
    def _tolerance(self) -> float:
        asked = self._config.actor_rollout_ref.rollout.live_check.tolerance
        return TOLERANCES[self._dtype] if asked is None else asked

    def _of_trainer(self) -> Tensor:
        """(R, T), by all ranks together."""
        ids_RS = pad_sequence([torch.tensor(row) for row in self._rows], batch_first=True)
        length_R = torch.tensor([len(row) for row in self._rows])
        mask_RS = (torch.arange(ids_RS.shape[1]) < length_R[:, None]).long()
        batch = DataProto.from_dict(
            {"input_ids": ids_RS, "attention_mask": mask_RS, "response_mask": mask_RS[:, 1:]}
        )
        actor = self._workers.actor
        shared, order = spread(batch, actor.world_size, balance=False)
        return gather(actor.score(shared), order, len(batch)).batch["log_probs"]

    def _padded(self, worker: int, rows: Sequence[Sequence[float]]) -> Tensor:
        """(R, T). Raises UserError when the engine has not scored every token after the first."""
        wanted, got = [len(row) - 1 for row in self._rows], [len(row) for row in rows]
        if got != wanted:
            raise UserError(
                f"the engine of rollout worker {worker} ({self._plan.engine.name}) scored "
                f"{got} tokens of rows with {wanted} tokens after the first; its method score has "
                f"to return a log-prob of each, or set {KEY}.enable=false"
            )
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    def _compare(self, step: int, worker: int, engine_RT: Tensor, trainer_RT: Tensor) -> None:
        apart_RT = (engine_RT - trainer_RT).abs().where(engine_RT != trainer_RT, 0.0)
        apart_RT = apart_RT.nan_to_num(nan=float("inf"), posinf=float("inf"))
        self._largest = max(self._largest or 0.0, float(apart_RT.max()))
        beyond_R = (apart_RT > self._tolerance).any(dim=-1)
        if not beyond_R.any():
            return
        row = int(beyond_R.int().argmax())
        token = int(apart_RT[row].argmax())
        raise UserError(
            f"after the weight sync of step {step} the engine of rollout worker {worker} "
            f"({self._plan.engine.name}) does not compute what the trainer does: token {token + 1} "
            f"of check prompt {row} has log-prob {engine_RT[row, token]:.4f} there and "
            f"{trainer_RT[row, token]:.4f} in the trainer, which is {apart_RT[row, token]:.4f} "
            f"nats apart, more than {KEY}.tolerance={self._tolerance:g} ({self._dtype}): "
            f"{self._cause(worker)}; use another engine (actor_rollout_ref.rollout.name), or, "
            f"where you know and want the difference, raise the tolerance or set {KEY}.enable=false"
        )

    def _cause(self, worker: int) -> str:
        names = self._workers.rollouts.differing_weights()[worker]
        if names:
            shown = ", ".join(names[:NAMES_SHOWN])
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            return f"the engine does not hold these tensors as they were sent: {shown}{more}"
        if names is not None:
            return (
                "the engine holds every tensor as it was sent, so it computes something else with "
                "them (attention kernel, positions), or adapters were merged in another way"
            )
        if self._agreed_at is not None:
            return f"they agreed at step {self._agreed_at}, so new weights do not reach the engine"
        return (
            "this is the first comparison, so either the engine computes this architecture in "
            "another way than transformers, or it loads weights under other names"
        )
