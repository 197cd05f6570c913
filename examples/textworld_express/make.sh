#!/usr/bin/env bash
# TextWorldExpress from nothing: demonstrations, tokenizer, cloning, then RL, on a CPU.
#
#   bash examples/textworld_express/make.sh [folder] [hydra overrides of the RL run]
#
# Default folder: runs/textworld_express. The clone ends up in <folder>/model.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$root/examples/setup_env.sh" textworld_express
cd "$root"
folder="${1:-runs/textworld_express}"

# stopped early, so that something is left to learn
bash examples/small_policy/clone.sh examples/textworld_express/demonstrations.py "$folder" \
    data.augment=null trainer.total_epochs=30 trainer.stop_after_epochs=7 \
    trainer.experiment_name=twx_clone

echo "[textworld express] GRPO with EPO: $folder/rl"
OMP_NUM_THREADS=1 .venv/bin/python -m verl.trainer.main_ppo --config-name textworld_express_small \
    "actor_rollout_ref.model.path=$folder/model" "trainer.default_local_dir=$folder/rl" \
    trainer.total_training_steps=30 trainer.test_freq=10 trainer.val_before_train=true "${@:2}"
