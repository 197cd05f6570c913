"""What `auto` and unset keys stand for, decided once."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import date

import pytest
import torch

from verl.config import plan as plan_module
from verl.config.compose import compose_config
from verl.config.plan import EnginePlan, make_plan, resolve_device
from verl.utils.errors import UserError

ROLLOUT = "actor_rollout_ref.rollout"
KL = "actor_rollout_ref.actor.use_kl_loss=true"


def planned(*overrides, device="cpu"):
    fixed = ["actor_rollout_ref.model.path=m", f"trainer.device={device}"]
    return make_plan(compose_config([*fixed, *overrides])[1])


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(has_gpu, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert resolve_device("auto") == device
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize(("has_vllm", "name"), [(True, "vllm"), (False, "hf")])
def test_the_engine_is_vllm_where_it_is_installed(has_vllm, name, monkeypatch):
    monkeypatch.setattr(plan_module, "is_installed", lambda package: has_vllm)
    assert planned().engine.name == name
    assert planned(f"{ROLLOUT}.name=hf").engine.name == "hf"
    assert planned(f"{ROLLOUT}.name=my.engines:build").engine.name == "my.engines:build"


def test_an_engine_holds_a_prompt_and_its_response_in_the_dtype_of_the_device():
    # 2048 of prompt + 512 of response = 2560
    cpu = planned(f"{ROLLOUT}.name=hf").engine
    assert cpu == EnginePlan("hf", "cpu", torch.float32, 2560, "object_store", False)
    gpu = planned(f"{ROLLOUT}.name=vllm", f"{ROLLOUT}.max_model_len=3000", device="cuda").engine
    assert gpu == EnginePlan("vllm", "cuda", torch.bfloat16, 3000, "ipc", False)
    assert planned(f"{ROLLOUT}.dtype=float32", device="cuda").engine.dtype is torch.float32


@pytest.mark.parametrize(("name", "takes_adapters"), [("vllm", True), ("hf", False)])
def test_vllm_alone_takes_adapters(name, takes_adapters):
    lora = "actor_rollout_ref.model.lora_rank=8"
    assert planned(f"{ROLLOUT}.name={name}", lora).engine.takes_adapters is takes_adapters
    assert planned(f"{ROLLOUT}.name={name}").engine.takes_adapters is False


@pytest.mark.parametrize(
    ("overrides", "critic", "reference"),
    [
        ([], False, False),
        (["algo=ppo"], True, False),
        ([KL], False, True),
        (["algorithm.use_kl_in_reward=true"], False, True),
        (["algo=ppo", KL, "trainer.val_only=true"], False, False),  # nobody reads them
    ],
)
def test_critic_and_reference_are_there_where_a_step_reads_them(overrides, critic, reference):
    plan = planned(*overrides)
    assert (plan.has_critic, plan.has_reference) == (critic, reference)


def test_engines_own_gpus_only_where_there_are_gpus():
    own = [f"{ROLLOUT}.mode=disaggregated", f"{ROLLOUT}.workers=1"]
    assert planned(*own, device="cuda").engines_own_gpus
    assert not planned(*own).engines_own_gpus
    assert not planned(device="cuda").engines_own_gpus


def test_a_transport_that_is_impossible_here_is_refused():
    with pytest.raises(UserError, match=r"weight_sync=nccl is not possible.*on cpu"):
        planned(f"{ROLLOUT}.weight_sync=nccl")


def test_a_plan_is_not_changed():
    with pytest.raises(FrozenInstanceError):
        planned().device = "cuda"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_day_of_a_run_is_that_of_its_start_unless_told():
    assert planned().chat_date == date.today().isoformat()
    key = "actor_rollout_ref.model.chat_template_date"
    assert planned(f"{key}=2026-01-31").chat_date == "2026-01-31"
    with pytest.raises(UserError, match=r"chat_template_date=tomorrow is no date; write it as"):
        planned(f"{key}=tomorrow")
