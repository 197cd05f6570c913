"""The trainer's workers, one process a rank: policy with reference, and critic.

Rows arrive as this rank's share of a batch; tensors go back on the CPU.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ray
import torch

from verl.algorithms.entropy_control import EntropyRegularizer
from verl.config.actor import ActorRolloutRefConfig
from verl.config.critic import CriticConfig
from verl.config.model import MicroBatchConfig
from verl.config.plan import RunPlan
from verl.protocol import DataProto
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.base.worker import Worker
from verl.utils.logging import setup_logging
from verl.utils.metrics import Metric
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.actor.reference import ReferencePolicy
from verl.workers.critic.dp_critic import DataParallelPPOCritic
from verl.workers.forward import ForwardInputs, policy_forward, policy_statistics
from verl.workers.model_loading import (
    load_causal_lm,
    load_value_model,
)
from verl.workers.model_support import packs_rows
from verl.workers.passes import measure
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel
from verl.workers.update_context import UpdateContext
from verl.workers.weight_sync.client import Receivers
from verl.workers.weight_sync.source import PolicyWeights, export


class TrainingWorker(Worker):
    """What policy and critic have in common: a sharded model that is stepped and saved."""

    _sharded: ShardedModel

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def step_lr(self) -> float:
        """Advance the schedule by one training step; returns the rate of the step that ended."""
        return self._sharded.step_lr()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, path: str) -> None:
        """See `ShardedModel.save_checkpoint`."""
        self._sharded.save_checkpoint(Path(path))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, path: str) -> None:
        """See `ShardedModel.load_checkpoint`."""
        self._sharded.load_checkpoint(Path(path))


class PolicyWorker(TrainingWorker):
    """The policy that is trained, its reference, and the source of the rollout engines' weights."""

    def __init__(
        self,
        config: ActorRolloutRefConfig,
        plan: RunPlan,
        runtime: WorkerRuntime,
        regularizer: EntropyRegularizer | None,
    ) -> None:
        super().__init__()
        setup_logging(worker=self.rank)
        self._config = config
        self._plan = plan
        self._runtime = runtime
        self._regularizer = regularizer
        self._packed = packs_rows(config.model, runtime.device)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self, total_steps: int) -> None:
        """Build policy, optimiser and reference. `total_steps`: those that train the policy.

        Raises:
            UserError: the model is missing, or a setting of the actor is unknown.
        """
        actor, model = self._config.actor, self._config.model
        load = partial(load_causal_lm, model)
        self._sharded = ShardedModel(
            load, actor.fsdp_config, self._runtime, actor.optim, total_steps
        )
        self._reference = None
        if self._plan.has_reference and model.lora_rank > 0:
            self._reference = ReferencePolicy(self._sharded, is_actor=True)
        elif self._plan.has_reference:
            frozen = ShardedModel(load, self._config.ref.fsdp_config, self._runtime)
            self._reference = ReferencePolicy(frozen, is_actor=False)
        self._actor = DataParallelPPOActor(
            actor,
            self._sharded,
            temperature=self._config.rollout.temperature,
            packed=self._packed,
            regularizer=self._regularizer,
            reference=self._reference,
        )
        checked = self._config.rollout.check_weights
        self._weights = PolicyWeights(self._sharded, model, self._plan.engine, checked=checked)

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def compute_log_prob(self, data: DataProto) -> DataProto:
        """`old_log_probs` and `entropys`, (R, T), of one forward."""
        result = self._actor.compute_log_prob(data.batch, self._log_prob_cut())
        return DataProto.from_dict(
            {"old_log_probs": result["log_probs"], "entropys": result["entropys"]}
        )

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def score(self, data: DataProto) -> DataProto:
        """`log_probs`, (R, T), of softmax(logits): what `ScoringEngine.score` has to be."""

        def forward(inputs: ForwardInputs) -> dict[str, torch.Tensor]:
            statistics = policy_forward(self._sharded.model, inputs, temperature=1.0)
            return {"log_probs": statistics.log_prob_N}

        log_probs = measure(self._sharded, data.batch, self._log_prob_cut(), self._packed, forward)
        self._sharded.reshard()  # engines on the same GPUs need the room now
        return DataProto.from_dict(log_probs)

    def _log_prob_cut(self) -> MicroBatchConfig:
        rollout = self._config.rollout
        return MicroBatchConfig(
            rollout.log_prob_micro_batch_size_per_gpu,
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        )

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def compute_ref_log_prob(self, data: DataProto) -> DataProto:
        """`ref_log_prob`, (R, T)."""
        ref, temperature = self._config.ref, self._config.rollout.temperature
        reference = self._reference
        assert reference is not None, "this run has no reference policy"
        micro_batch = MicroBatchConfig(
            ref.log_prob_micro_batch_size_per_gpu,
            ref.log_prob_use_dynamic_bsz,
            ref.log_prob_max_token_len_per_gpu,
        )

        def forward(inputs: ForwardInputs) -> dict[str, torch.Tensor]:
            logits_NV = reference.logits(inputs)
            statistics = policy_statistics(logits_NV, inputs, temperature)
            return {"ref_log_prob": statistics.log_prob_N}

        sharded = reference.sharded
        return DataProto.from_dict(measure(sharded, data.batch, micro_batch, self._packed, forward))

    @register(dispatch_mode=Dispatch.DP_COMPUTE_METRIC)
    def update_actor(self, data: DataProto, context: UpdateContext) -> dict[str, Metric]:
        """One optimiser step on a mini-batch; see `DataParallelPPOActor.update_policy`."""
        return self._actor.update_policy(data.batch, context)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def publish_weights(self, version: int) -> list[ray.ObjectRef]:
        """See `PolicyWeights.publish`."""
        return self._weights.publish(version)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def connect_rollouts(self, receivers: Receivers) -> None:
        """See `PolicyWeights.connect`."""
        self._weights.connect(receivers, self.get_available_master_addr_port())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def send_weights(self, version: int) -> None:
        """See `PolicyWeights.send`."""
        self._weights.send(version)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export_hf(self, path: str, dtype: torch.dtype | None = None) -> None:
        """Write the merged policy and its tokenizer as a Hugging Face folder; see `export`."""
        export(self._sharded, self._config.model, Path(path), dtype)


class CriticWorker(TrainingWorker):
    """The value function."""

    def __init__(self, config: CriticConfig, runtime: WorkerRuntime) -> None:
        super().__init__()
        setup_logging(worker=self.rank)
        self._config = config
        self._runtime = runtime

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self, total_steps: int) -> None:
        """Build the value model on the policy's trunk. Raises UserError when it is missing."""
        config = self._config
        self._sharded = ShardedModel(
            partial(load_value_model, config.model),
            config.model.fsdp_config,
            self._runtime,
            config.optim,
            total_steps,
        )
        packed = packs_rows(config.model, self._runtime.device)
        self._critic = DataParallelPPOCritic(config, self._sharded, packed=packed)

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def compute_values(self, data: DataProto) -> DataProto:
        """`values`, (R, T): of the state before each response token."""
        return DataProto.from_dict({"values": self._critic.compute_values(data.batch)})

    @register(dispatch_mode=Dispatch.DP_COMPUTE_METRIC)
    def update_critic(self, data: DataProto, context: UpdateContext) -> dict[str, Metric]:
        """One optimiser step on a mini-batch; see `DataParallelPPOCritic.update_critic`."""
        return self._critic.update_critic(data.batch, context)
