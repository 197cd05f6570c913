"""What has to hold for every architecture: trainer, transformers and hf engine compute the same.

Each function returns None, or what is wrong as the end of a sentence about the architecture.
Log-probs are compared in float32, in nats; rows R, tokens S.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from agent_system.types import SamplingParams
from verl.algorithms.aggregation import loss_normalizers
from verl.algorithms.entropy_control import StepContext
from verl.config.actor import ActorConfig, ActorRolloutRefConfig, RolloutConfig
from verl.config.model import FSDPConfig, ModelConfig
from verl.config.optim import OptimConfig
from verl.config.plan import EnginePlan
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.architecture import ATTENTION
from verl.workers.checkpoint_names import CheckpointNames
from verl.workers.forward import forward_inputs, policy_forward, value_forward
from verl.workers.model_loading import load_architecture, load_causal_lm, load_value_model
from verl.workers.rollout.base import Generation, RolloutEngine
from verl.workers.rollout.engines import build_engine
from verl.workers.rollout.row_cache import ROW_ATTENTION
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext
from verl.workers.weight_sync import WeightUpdate, pack_weights
from verl.workers.weight_sync.source import MergedWeights, export

TOLERANCE = 1e-3  # nats; rounding of float32 gives up to 5e-5 in these models
LENGTHS = (12, 30, 21)  # tokens of the rows, the first ones their prompts
PROMPT = 4
TURNS = 2
NEW_TOKENS = 12
Weights = dict[str, Tensor]


def rows_of(lengths: Sequence[int] = LENGTHS) -> TensorDict:
    """Random rows, padded on both sides as a rollout's are."""
    generator = torch.Generator().manual_seed(0)
    count, responses = len(lengths), max(lengths) - PROMPT
    columns = {
        "input_ids": torch.randint(10, 270, (count, PROMPT + responses), generator=generator),
        "attention_mask": torch.zeros(count, PROMPT + responses, dtype=torch.long),
        "response_mask": torch.zeros(count, responses, dtype=torch.long),
        "old_log_probs": torch.full((count, responses), -6.0),
        "advantages": torch.randn(count, responses, generator=generator),
    }
    for row, length in enumerate(lengths):
        columns["attention_mask"][row, :length] = 1
        columns["response_mask"][row, : length - PROMPT] = 1
    return TensorDict(columns, batch_size=[count])


def transformers_log_probs(folder: Path, rows: TensorDict) -> Tensor:
    """(R, T) of transformers alone, eager attention, a row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    result = torch.zeros(rows["response_mask"].shape)
    for row, mask in enumerate(rows["attention_mask"]):
        length = int(mask.sum())
        ids = rows["input_ids"][row, :length]
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
        log_p = logits.log_softmax(dim=-1)[PROMPT - 1 : -1]
        chosen = log_p.gather(-1, ids[PROMPT:, None]).squeeze(-1)
        result[row, : length - PROMPT] = chosen
    return result


def trainer_log_probs(model: PreTrainedModel, rows: TensorDict, *, packed: bool = False) -> Tensor:
    """(R, T) of the trainer's forward."""
    with torch.no_grad():
        return policy_forward(model, forward_inputs(rows, packed=packed), 1.0).log_prob_N


def distance(one: Tensor, other: Tensor) -> float:
    """Largest, in nats; not a number counts as infinite."""
    value = float((one - other).abs().max())
    return math.inf if math.isnan(value) else value


def wrong_in_forward(folder: Path) -> str | None:
    rows = rows_of()
    model = load_causal_lm(ModelConfig(path=str(folder)), torch.float32).eval()
    together = trainer_log_probs(model, rows)
    alone = torch.cat([_alone(model, rows, row) for row in range(len(rows))])

    begun = rows_of([length - 4 for length in LENGTHS])  # without the last tokens
    for row, length in enumerate(LENGTHS):
        begun["input_ids"][row, : length - 4] = rows["input_ids"][row, : length - 4]
    shorter = torch.cat([_alone(model, begun, row) for row in range(len(begun))])
    known = begun["response_mask"].bool()
    full = alone[:, : known.shape[1]][known]
    if (nats := distance(full, shorter[known])) > TOLERANCE:
        return f"lets a token's log-prob depend on later tokens ({nats:.2g} nats)"
    if (nats := distance(together, alone)) > TOLERANCE:
        return f"gives a row other log-probs beside other rows ({nats:.2g} nats)"
    if (nats := distance(trainer_log_probs(model.train(), rows), together)) > TOLERANCE:
        return f"computes something else in an update than before it ({nats:.2g} nats)"
    if (nats := distance(transformers_log_probs(folder, rows), alone)) > TOLERANCE:
        return f"differs from its own eager attention ({nats:.2g} nats)"
    return None


def wrong_when_packed(folder: Path) -> str | None:
    rows = rows_of()
    model = load_causal_lm(ModelConfig(path=str(folder)), torch.float32).eval()
    packed = trainer_log_probs(model, rows, packed=True)
    if (nats := distance(packed, trainer_log_probs(model, rows))) > TOLERANCE:
        return f"rows leak into each other ({nats:.2g} nats)"
    return None


def wrong_in_training(folder: Path, scratch: Path) -> str | None:
    """Updates, a resumed run against an uninterrupted one, the exported model against both."""
    rows = rows_of()
    policy = Policy(ModelConfig(path=str(folder)))
    before = policy.log_probs(rows)
    policy.update(rows)
    if distance(policy.log_probs(rows), before) < TOLERANCE:
        return "does not change in an update"
    policy.sharded.save_checkpoint(scratch / "checkpoint")
    policy.update(rows)
    want = policy.log_probs(rows)
    resumed = Policy(ModelConfig(path=str(folder)))
    resumed.sharded.load_checkpoint(scratch / "checkpoint")
    resumed.update(rows)
    if (nats := distance(resumed.log_probs(rows), want)) > TOLERANCE:
        return f"goes on otherwise after a resume ({nats:.2g} nats)"
    return _wrong_in_export(policy, rows, scratch / "export")


def wrong_with_lora(folder: Path, scratch: Path) -> str | None:
    rows = rows_of()
    policy = Policy(ModelConfig(path=str(folder), lora_rank=4, target_modules="all-linear"))
    before = policy.log_probs(rows)
    for _ in range(2):
        policy.update(rows)
    if distance(policy.log_probs(rows), before) < TOLERANCE:
        return "has adapters that change nothing"
    return _wrong_in_export(policy, rows, scratch / "export_lora")


def wrong_in_critic(folder: Path) -> str | None:
    rows = rows_of()
    model = load_value_model(ModelConfig(path=str(folder)), torch.float32).eval()
    if value_forward(model, forward_inputs(rows, packed=False)).any():
        return "does not begin with values of 0"
    with torch.no_grad():
        nn.init.normal_(model.get_output_embeddings().weight)
        together = value_forward(model, forward_inputs(rows, packed=False))
        alone = torch.cat(
            [value_forward(model, forward_inputs(rows[r : r + 1], packed=False)) for r in range(3)]
        )
    if (difference := distance(together, alone)) > TOLERANCE:
        return f"gives a row other values beside other rows ({difference:.2g})"
    return None if alone.any() else "has no value head"


def wrong_in_hf_engine(folder: Path) -> str | None:
    """Sampled log-probs over turns, with the first weights and with others."""
    text = load_architecture(ModelConfig(path=str(folder))).get_text_config(decoder=True)
    states = set(getattr(text, "layer_types", None) or ()) - ATTENTION
    if states:
        kinds = " and ".join(sorted(states))
        return f"has {kinds} layers, and the engine's cache rows hold keys and values only"
    config = ActorRolloutRefConfig(
        model=ModelConfig(path=str(folder)), rollout=RolloutConfig(name="hf", max_num_seqs=4)
    )
    engine = build_engine(config, EnginePlan("hf", "cpu", torch.float32, 128))
    engine.start()
    try:
        return wrong_in_engine(engine, folder)
    finally:
        engine.close()


def wrong_in_vllm(engine: RolloutEngine, folder: Path) -> str | None:
    """As `wrong_in_engine`, of an engine that reads checkpoints."""
    return wrong_in_engine(engine, folder, CheckpointNames(ModelConfig(path=str(folder))).convert)


def wrong_in_engine(
    engine: RolloutEngine, folder: Path, named: Callable[[Weights], Weights] = dict
) -> str | None:
    """A started engine against the trainer: as it is, after it is sent the weights that it has,
    and after it is sent changed ones. `named`: from the model's names to the engine's."""
    policy = Policy(ModelConfig(path=str(folder)))
    for version, when in enumerate(("at first", "after the same weights", "after new weights")):
        if version == 2:
            policy.update(rows_of())
        if version > 0:
            weights = named(MergedWeights(policy.sharded, policy.config)())
            engine.load_weights(WeightUpdate(version, pack_weights(weights), None, None))
        if (nats := _engine_distance(engine, policy)) > TOLERANCE:
            return f"samples with other log-probs than the trainer's {when} ({nats:.2g} nats)"
    return None


class Policy:
    """A policy that learns, on one rank."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.sharded = ShardedModel(
            partial(load_causal_lm, config),
            FSDPConfig(mixed_precision="float32"),
            WorkerRuntime("cpu", seed=0, cpu_threads=torch.get_num_threads()),
            OptimConfig(lr=1e-2),
            10,
        )
        self._actor = DataParallelPPOActor(
            ActorConfig(use_kl_loss=True), self.sharded, temperature=1.0
        )

    def log_probs(self, rows: TensorDict) -> Tensor:
        return trainer_log_probs(self.sharded.model.eval(), rows)

    def update(self, rows: TensorDict) -> dict[str, float]:
        """On-policy, against a reference that is the policy itself."""
        rows["old_log_probs"] = rows["ref_log_prob"] = self.log_probs(rows)
        context = UpdateContext(StepContext(0, 10), **loss_normalizers(rows["response_mask"]))
        metrics = self._actor.update_policy(rows, context)
        assert metrics["actor/skipped_steps"].value == 0, "a gradient that is not finite"
        return {name: metric.value for name, metric in metrics.items()}


def _alone(model: PreTrainedModel, rows: TensorDict, row: int) -> Tensor:
    return trainer_log_probs(model, rows[row : row + 1])


def _wrong_in_export(policy: Policy, rows: TensorDict, folder: Path) -> str | None:
    export(policy.sharded, policy.config, folder)
    exported = transformers_log_probs(folder, rows)
    if (nats := distance(exported, policy.log_probs(rows))) > TOLERANCE:
        return f"is another model when it is exported ({nats:.2g} nats)"
    return None


def _engine_distance(engine: RolloutEngine, policy: Policy) -> float:
    """Over conversations of some turns that run side by side."""
    conversations = asyncio.run(_conversations(engine))
    distances = []
    for prompt, generation in conversations:
        ids = torch.tensor([[*prompt, *generation.token_ids]])
        mask = torch.ones(1, len(generation.token_ids), dtype=torch.long)
        columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "response_mask": mask}
        want = policy.log_probs(TensorDict(columns, batch_size=[1]))
        distances.append(distance(want, torch.tensor([generation.log_probs])))
    return max(distances)


async def _conversations(engine: RolloutEngine) -> list[tuple[list[int], Generation]]:
    async def converse(row: int) -> list[tuple[list[int], Generation]]:
        turns, prompt = [], list(range(20 + row, 20 + row + 6 * (row + 1)))
        for turn in range(TURNS):
            settings = SamplingParams(max_tokens=NEW_TOKENS + row, temperature=1.0, seed=turn)
            generation = await engine.generate(prompt, settings, trajectory_id=str(row))
            turns.append((prompt, generation))
            prompt = [*prompt, *generation.token_ids, *range(100, 103 + row)]
        engine.release(str(row))
        return turns

    conversations = await asyncio.gather(*(converse(row) for row in range(3)))
    return [turn for turns in conversations for turn in turns]


def judged(check: Callable[..., str | None], *arguments: Path) -> str | None:
    """What `check` finds; an error is a finding too."""
    try:
        return check(*arguments)
    except Exception as error:  # whatever a model does
        cause = error.__cause__ or error
        if isinstance(cause, KeyError) and cause.args == (ROW_ATTENTION,):
            return "has attention layers of its own, which the engine's cache rows do not fit"
        return f"ends with {first_line(cause)}"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
