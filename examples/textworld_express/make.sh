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
python=.venv/bin/python
folder="${1:-runs/textworld_express}"
demonstrations="$folder/demonstrations.jsonl"
mkdir -p "$folder"
export PYTHONPATH="$root" OMP_NUM_THREADS=1

say() { echo "[textworld express] $*"; }

say "1/4 the simulator's winning paths of 800 training tasks: $demonstrations"
"$python" examples/textworld_express/demonstrations.py --output "$demonstrations"

say "2/4 a tokenizer for these words, and the architecture: $folder/blank"
"$python" examples/small_policy/tokenizer.py \
    --demonstrations "$demonstrations" --output "$folder/blank"

say "3/4 cloning, stopped early: $folder/clone"
"$python" -m verl.trainer.main_sft --config-name sft_small_policy \
    "model.path=$folder/blank" "data.train_files=[$demonstrations]" data.augment=null \
    trainer.total_epochs=30 trainer.stop_after_epochs=7 trainer.experiment_name=twx_clone \
    "trainer.default_local_dir=$folder/clone" "trainer.export_dir=$folder/model"

say "4/4 GRPO with EPO: $folder/rl"
"$python" -m verl.trainer.main_ppo --config-name textworld_express_small \
    "actor_rollout_ref.model.path=$folder/model" "trainer.default_local_dir=$folder/rl" \
    trainer.total_training_steps=30 trainer.test_freq=10 trainer.val_before_train=true "${@:2}"
