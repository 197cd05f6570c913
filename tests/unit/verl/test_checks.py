"""Start-up checks: every refusal names the value and the remedy."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from verl.config import machine as machine_module
from verl.config.checks import TOKEN_LIMITS, check_values
from verl.config.compose import compose_config
from verl.config.machine import Machine, check_machine
from verl.config.plan import make_plan
from verl.utils.errors import UserError

ACTOR = "actor_rollout_ref.actor"
HF = "actor_rollout_ref.rollout.name=hf"  # the default depends on whether vLLM is installed
VLLM = "actor_rollout_ref.rollout.name=vllm"
ROOMY = Machine(cores=64, memory_gb=512.0, gpus=8)
SMALL = Machine(cores=2, memory_gb=8.0, gpus=0)


@cache
def config(*overrides, preset="ppo_trainer"):
    mini = ["actor_rollout_ref.actor.ppo_mini_batch_size=64", "critic.ppo_mini_batch_size=16"]
    return compose_config(["actor_rollout_ref.model.path=m", *mini, *overrides], preset)[1]


def check(asked, device, machine):
    """As the trainer does it on a machine with such devices."""
    asked = replace(asked, trainer=replace(asked.trainer, device=device))
    check_machine(asked, make_plan(asked), machine)


@pytest.mark.parametrize("preset", ["ppo_trainer", "launch", "quickstart", "smollm2"])
def test_presets_pass(preset):
    model = "actor_rollout_ref.model.path=m"
    mini = [] if preset in ("quickstart", "smollm2") else [f"{ACTOR}.ppo_mini_batch_size=64"]
    assert check_values(compose_config([model, *mini], preset)[1]) is None


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
@pytest.mark.parametrize("epo", ["off", "sciworld", "alfworld", "two_sided", "published"])
def test_combinations_of_presets_pass(algo, epo):
    assert check_values(config(f"algo={algo}", f"epo={epo}", "data.train_batch_size=64")) is None


@pytest.mark.parametrize(("switch", "limit"), TOKEN_LIMITS.items())
def test_a_token_limit_holds_the_longest_row(switch, limit):
    # 2048 of prompt + 512 of response = 2560
    check_values(config(f"{switch}=true", f"{limit}=2560"))
    check_values(config(f"{limit}=2559"))
    with pytest.raises(UserError, match=f"{limit}=2559 is less than .* 2560; raise it to 2560"):
        check_values(config(f"{switch}=true", f"{limit}=2559"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # trajectory context: 4 tasks * 8 episodes = 32 rows, fewer than a mini-batch of 64
        (["data.train_batch_size=4"], "ppo_mini_batch_size=64 is more than the 32 rows.*to 32"),
        (["algo=ppo", "data.train_batch_size=32"], "ppo_mini_batch_size=64 is more than the 32"),
        (
            ["env.rollout.n=1", "data.train_batch_size=64"],
            "=grpo compares.*to at least 2",
        ),
        (["algorithm.adv_estimator=grop"], "adv_estimator=grop is unknown; available: .*grpo"),
        (["algorithm.adv_estimator=remax"], "adv_estimator=remax is unknown; available: gae"),
        (["algorithm.adv_estimator=gdpo"], "adv_estimator=gdpo is unknown; available: gae"),
        (["algorithm.adv_estimator=no.such:thing"], r"cannot load 'no.such:thing'"),
        (
            ["algorithm.adv_estimator=verl.algorithms.advantages:compute_remax_outcome_advantage"],
            "needs reward_baselines, which rollouts do not produce",
        ),
        (
            [
                "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
                "actor_rollout_ref.actor.loss_agg_mode=token-mean",
            ],
            "loss_agg_mode=token-mean has no effect with policy_loss.loss_mode=gspo",
        ),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=no.such:thing"], "cannot load"),
        (["critic.optim.warmup_style=linear"], "warmup_style=linear is unknown; available: cons"),
        (
            ["critic.optim.warmup_style=cosine", "critic.optim.num_cycles=1"],
            "critic.optim.num_cycles=1.0 .* a step at 0 learns nothing; set .*min_lr_ratio above 0",
        ),
        (["actor_rollout_ref.actor.policy_loss.loss_mode=x"], "loss_mode=x is unknown.*vanilla"),
        # 2048 + 512 = 2560
        (["actor_rollout_ref.rollout.max_model_len=2000"], "max_model_len=2000 .*2560"),
        (["actor_rollout_ref.actor.clip_ratio_c=1.0"], "clip_ratio_c=1.0"),
        (["trainer.critic_warmup=2"], "critic_warmup=2 needs a critic"),
        (
            ["algo=ppo", "data.train_batch_size=64", "trainer.critic_warmup=30"],
            "critic_warmup=30 leaves the actor no step out of 30",
        ),
        (["trainer.resume_mode=resume_path"], "needs trainer.resume_from_path"),
        (["trainer.test_freq=0"], "test_freq=0 makes no sense; use -1"),
        (["trainer.validation.modes=[]"], "modes=.* leaves nothing to measure; name sampled"),
        (["trainer.nnodes=2"], "nnodes=2 needs a Ray cluster.*ray_init.address=auto"),
        (["~env.val.l0", "~env.val.l1"], "no validation set in env.val"),
        (
            ["epo=sciworld", "actor_rollout_ref.actor.entropy_coeff=0.01"],
            "entropy_coeff=0.01; set that to 0.*epo.entropy_coeff",
        ),
        (["trainer.logger=[console,wandbb]"], "trainer.logger=wandbb is unknown; .*tensorboard"),
        (["trainer.logger=[file,no_such.mod:Mine]"], "cannot load 'no_such.mod:Mine'"),
        (["epo=sciworld", "epo.penalty=abs"], "epo.penalty=abs is unknown; available: relu"),
        (["trainer.seed=-1"], "trainer.seed=-1 makes no sense; it has to be between 0 and"),
        (["epo=sciworld", "epo.kappa_l=3"], "kappa_l=3.0 is above epo.kappa_r=2.0"),
    ],
)
def test_disagreements_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        check_values(config(*overrides))


def test_a_run_without_validation_needs_no_validation_set():
    off = ["trainer.val_before_train=false", "trainer.val_after_train=false"]
    assert check_values(config("~env.val.l0", "~env.val.l1", *off)) is None


def test_several_nodes_run_on_a_cluster():
    assert check_values(config("trainer.nnodes=2", "ray_kwargs.ray_init.address=auto")) is None


def test_turn_context_allows_any_mini_batch():
    # the number of rows is only known after the rollout
    assert check_values(config("env.context.kind=turn", "data.train_batch_size=2")) is None


def test_quickstart_fits_two_cores_and_eight_gigabytes():
    assert check(config(preset="quickstart"), "cpu", SMALL) is None


@pytest.mark.parametrize(
    ("overrides", "device", "machine", "message"),
    [
        (["trainer.n_gpus_per_node=4"], "cuda", SMALL, "torch sees 0 GPUs.*trainer.device=cpu"),
        (["trainer.n_gpus_per_node=16"], "cuda", ROOMY, "torch sees 8 GPUs.*lower it to 8"),
        (["trainer.n_gpus_per_node=8"], "cpu", SMALL, "8 workers.* 2 cores; lower it to 2"),
        (["actor_rollout_ref.rollout.workers=5"], "cpu", SMALL, "rollout.workers asks for 5"),
        # 1 training worker + 1 rollout worker + 1 for the driver = 3
        (["ray_kwargs.ray_init.num_cpus=2"], "cpu", ROOMY, "num_cpus=2 is less .* 3 processes"),
        # 2 workers * 0.5 GB + 40 slots * 0.25 GB = 11 GB
        ([HF, "env.pool.slots_per_worker=40"], "cpu", SMALL, "about 11.0 GB, but 8.0 GB are free"),
    ],
)
def test_machine_too_small(overrides, device, machine, message):
    with pytest.raises(UserError, match=message):
        check(config(*overrides), device, machine)


def sparse_weights(folder, gigabytes):
    """A folder whose weights have that size, without the space on the disk."""
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(int(gigabytes * 1e9))
    return folder


# 2 workers * 0.5 + 8 slots * 0.25 = 3 GB, and 0.1 GB a copy of the weights
@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], 3.5),  # 4 trained + 1 in the engine
        ([f"{ACTOR}.use_kl_loss=true"], 3.6),  # and the reference
        (["algorithm.use_kl_in_reward=true"], 3.6),
        (["algo=ppo"], 3.9),  # and 4 of the critic
        # adapters only: 1 + 1 in the engine, and the reference is the policy without adapters
        (["actor_rollout_ref.model.lora_rank=4", f"{ACTOR}.use_kl_loss=true"], 3.2),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_model_weights_count_towards_memory(overrides, needed, by_name, tmp_path, monkeypatch):
    folder = sparse_weights(tmp_path, 0.1)
    monkeypatch.setattr(machine_module, "SMALL_POLICY", folder)
    model = f"actor_rollout_ref.model.path={'small' if by_name else folder}"
    asked = config(model, HF, *overrides)
    check(asked, "cpu", Machine(cores=2, memory_gb=needed + 0.04, gpus=0))
    with pytest.raises(UserError, match=rf"about {needed} GB"):
        check(asked, "cpu", Machine(cores=2, memory_gb=needed - 0.04, gpus=0))


def test_gpu_rollout_workers_need_a_gpu_each_on_a_cluster_too():
    address = "ray_kwargs.ray_init.address=auto"
    places = ["trainer.nnodes=2", "trainer.n_gpus_per_node=4", address]
    check(config("actor_rollout_ref.rollout.workers=8", *places), "cuda", SMALL)
    with pytest.raises(UserError, match=r"workers=9 engines of 1 GPUs .*8 GPUs.*lower it to 8"):
        check(config("actor_rollout_ref.rollout.workers=9", *places), "cuda", SMALL)


@pytest.fixture
def with_vllm(monkeypatch):
    """Whether or not it is installed here."""
    monkeypatch.setattr(machine_module, "is_installed", lambda package: True)


def test_vllm_counts_its_processes_and_its_cache(with_vllm, tmp_path):
    # 2 workers * 0.5 + 8 slots * 0.25 + weights 5 * 0.1 = 3.5 GB; with vLLM a scheduler of 0.4, 2
    # processes of 0.4 and a cache of 2 * 2**30 = 2.147 GB: 3.5 + 1.2 + 2.147 = 6.847
    model = f"actor_rollout_ref.model.path={sparse_weights(tmp_path, 0.1)}"
    engine = [VLLM, "actor_rollout_ref.rollout.tensor_model_parallel_size=2"]
    asked = config(model, *engine, "actor_rollout_ref.rollout.cpu_kv_cache_gb=2.0")
    needed = 6.847
    check(asked, "cpu", Machine(cores=2, memory_gb=needed + 0.04, gpus=0))
    with pytest.raises(UserError, match=r"about 6\.8 GB"):
        check(asked, "cpu", Machine(cores=2, memory_gb=needed - 0.04, gpus=0))


def test_the_processes_of_an_engine_need_a_core_each(with_vllm):
    asked = config(VLLM, "actor_rollout_ref.rollout.tensor_model_parallel_size=4")
    with pytest.raises(
        UserError, match=r"workers x tensor_model_parallel_size asks for 4 .*2 core"
    ):
        check(asked, "cpu", SMALL)


def test_engines_with_gpus_of_their_own_need_them_beside_the_trainers(with_vllm):
    # 4 for training + 2 engines * 2 = 8
    asked = ["actor_rollout_ref.rollout.tensor_model_parallel_size=2", "trainer.n_gpus_per_node=4"]
    asked += [VLLM, "actor_rollout_ref.rollout.mode=disaggregated"]
    check(config(*asked, "actor_rollout_ref.rollout.workers=2"), "cuda", ROOMY)
    with pytest.raises(UserError, match=r"4 GPUs for training .* 6 for engines .* sees 8 on this"):
        check(config(*asked, "actor_rollout_ref.rollout.workers=3"), "cuda", ROOMY)


@pytest.mark.parametrize(
    ("overrides", "device", "message"),
    [
        (["weight_sync=nccl"], "cuda", "weight_sync=nccl is not possible: with .*colocated"),
        (["weight_sync=ipc"], "cpu", "weight_sync=ipc is not possible: .* on cpu; set it to auto"),
        (["weight_sync=ipc", "name=hf"], "cuda", "part of vLLM, and the engine is hf"),
        (["tensor_model_parallel_size=2", "name=hf"], "cpu", "=2 needs rollout.name=vllm"),
    ],
)
def test_engines_that_cannot_work_are_refused_at_the_start(overrides, device, message, with_vllm):
    keys = [f"actor_rollout_ref.rollout.{override}" for override in overrides]
    with pytest.raises(UserError, match=message):
        check(config(VLLM, *keys), device, ROOMY)


@pytest.mark.parametrize(
    ("overrides", "device", "message"),
    [
        (["actor_rollout_ref.model.lora_rank=8"], "cuda", "lora_rank=8 needs the package peft"),
        (
            ["actor_rollout_ref.model.attn_implementation=flash_attention_2"],
            "cuda",
            "flash_attention_2 needs the package flash-attn",
        ),
        (
            ["algo=ppo", "critic.model.attn_implementation=flash_attention_2"],
            "cpu",
            "critic.model.attn_implementation=flash_attention_2 needs a GPU.*auto or sdpa",
        ),
    ],
)
def test_what_a_model_needs_has_to_be_installed(overrides, device, message, monkeypatch):
    monkeypatch.setattr(machine_module, "is_installed", lambda package: False)
    with pytest.raises(UserError, match=message):
        check(config(HF, *overrides), device, ROOMY)


def test_a_critic_that_is_not_built_needs_no_package(monkeypatch):
    monkeypatch.setattr(machine_module, "is_installed", lambda package: False)
    assert check(config(HF, "critic.model.lora_rank=8"), "cpu", ROOMY) is None


def test_a_cluster_is_not_measured_by_this_machine():
    cluster = config("ray_kwargs.ray_init.address=auto", "trainer.n_gpus_per_node=16")
    assert check(cluster, "cuda", SMALL) is None


def test_rollout_workers_are_spread_over_nodes():
    spread = config("actor_rollout_ref.rollout.workers=4", "trainer.nnodes=2")
    assert check(spread, "cpu", Machine(cores=2, memory_gb=100.0, gpus=0)) is None
