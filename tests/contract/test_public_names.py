"""Names that users of verl and verl-agent extend or call: importable, and behaving alike."""

import importlib
import inspect

import numpy as np
import pytest
import torch

NAMES = {
    "verl": ["DataProto"],
    "verl.protocol": [
        "DataProto",
        "pad_dataproto_to_divisor",
        "union_numpy_dict",
        "union_tensor_dict",
        "unpad_dataproto",
    ],
    "verl.single_controller.base": ["Worker", "WorkerGroup"],
    "verl.single_controller.base.decorator": ["Dispatch", "Execute", "register"],
    "verl.single_controller.base.worker": ["Worker"],
    "verl.single_controller.ray.base": [
        "RayClassWithInitArgs",
        "RayResourcePool",
        "RayWorkerGroup",
        "create_colocated_worker_cls",
    ],
    "verl.trainer.ppo.core_algos": [
        "AdaptiveKLController",
        "AdvantageEstimator",
        "FixedKLController",
        "agg_loss",
        "compute_gae_advantage_return",
        "compute_gdpo_outcome_advantage",
        "compute_gpg_outcome_advantage",
        "compute_grpo_outcome_advantage",
        "compute_grpo_passk_outcome_advantage",
        "compute_opo_outcome_advantage",
        "compute_policy_loss",
        "compute_policy_loss_cispo",
        "compute_policy_loss_geo_mean",
        "compute_policy_loss_gpg",
        "compute_policy_loss_gspo",
        "compute_policy_loss_vanilla",
        "compute_reinforce_plus_plus_baseline_outcome_advantage",
        "compute_reinforce_plus_plus_outcome_advantage",
        "compute_remax_outcome_advantage",
        "compute_rloo_outcome_advantage",
        "compute_value_loss",
        "get_adv_estimator_fn",
        "get_kl_controller",
        "get_policy_loss_fn",
        "kl_penalty",
        "register_adv_est",
        "register_policy_loss",
    ],
    "agent_system.environments.base": ["EnvironmentManagerBase"],
    "agent_system.environments.env_package.alfworld.projection": ["alfworld_projection"],
    "agent_system.environments.env_package.sciworld.projection": ["sciworld_projection"],
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in NAMES.items() for name in names]
)
def test_the_name_can_be_imported(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_data_proto_has_the_methods_that_are_called():
    from verl import DataProto

    methods = (
        "from_dict from_single_dict select pop union repeat chunk split concat reorder "
        "make_iterator select_idxs"
    )
    missing = [name for name in methods.split() if not callable(getattr(DataProto, name, None))]
    assert missing == []


def test_arguments_go_by_the_names_that_are_known():
    from verl.single_controller.base.decorator import register
    from verl.single_controller.ray.base import RayResourcePool, RayWorkerGroup
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_policy_loss

    expected = {
        register: ["dispatch_mode", "execute_mode"],
        RayResourcePool.__init__: ["process_on_nodes", "use_gpu", "name_prefix"],
        RayWorkerGroup.__init__: ["resource_pool", "ray_cls_with_init", "bin_pack", "name_prefix"],
        compute_grpo_outcome_advantage: ["token_level_rewards", "response_mask", "index"],
        compute_policy_loss: ["old_log_prob", "log_prob", "advantages", "response_mask"],
    }
    for function, names in expected.items():
        parameters = [name for name in inspect.signature(function).parameters if name != "self"]
        assert parameters[: len(names)] == names, function


def test_a_batch_goes_through_a_typical_user_loop():
    from verl import DataProto
    from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto

    batch = DataProto.from_single_dict(
        {"ids": torch.arange(3), "uid": np.array(["a", "b", "c"], dtype=object)}
    )
    prompts = batch.pop(batch_keys=["ids"])
    padded, pad_size = pad_dataproto_to_divisor(prompts, 2)
    answers = DataProto.concat(
        [DataProto.from_dict({"out": 2 * part.batch["ids"]}) for part in padded.chunk(2)]
    )
    batch = batch.union(unpad_dataproto(answers, pad_size)).repeat(2, interleave=True)
    assert batch.batch["out"].tolist() == [0, 0, 2, 2, 4, 4]
    assert batch.non_tensor_batch["uid"].tolist() == ["a", "a", "b", "b", "c", "c"]


def test_grpo_by_verls_name_is_the_group_relative_advantage():
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    advantages, returns = get_adv_estimator_fn("grpo")(
        token_level_rewards=torch.tensor([[0.0, 1.0], [0.0, 3.0]]),
        response_mask=torch.ones(2, 2),
        index=np.array(["task", "task"]),
        norm_adv_by_std_in_grpo=False,
    )
    assert advantages.tolist() == [[-1.0, -1.0], [1.0, 1.0]]  # rewards 1 and 3, mean 2
    assert torch.equal(advantages, returns)
