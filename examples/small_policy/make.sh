#!/usr/bin/env bash
# Makes the small policy of the quickstart out of nothing but the simulator.
#
#   bash examples/small_policy/make.sh [folder]      default: runs/small_policy
#
# The model ends up in <folder>/model; examples/small_policy/model holds one made like this. Hydra
# overrides of the cloning may follow the folder, e.g. trainer.stop_after_epochs=20.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$root/examples/setup_env.sh" sciworld
cd "$root"
python=.venv/bin/python
folder="${1:-runs/small_policy}"
demonstrations="$folder/demonstrations.jsonl"
mkdir -p "$folder"
export PYTHONPATH="$root" OMP_NUM_THREADS=1

say() { echo "[small policy] $*"; }

say "1/4 a scripted player wins every training variation: $demonstrations"
"$python" examples/small_policy/demonstrations.py --output "$demonstrations"

say "2/4 a tokenizer for these words, and the architecture: $folder/blank"
"$python" examples/small_policy/tokenizer.py \
    --demonstrations "$demonstrations" --output "$folder/blank"

say "3/4 cloning: $folder/clone"
"$python" -m verl.trainer.main_sft --config-name sft_small_policy \
    "model.path=$folder/blank" "data.train_files=[$demonstrations]" \
    "trainer.default_local_dir=$folder/clone" "trainer.export_dir=$folder/model" "${@:2}"

say "4/4 playing unseen variations (L1_test), sampled and greedy"
"$python" -m verl.trainer.main_ppo --config-name quickstart \
    "actor_rollout_ref.model.path=$folder/model" trainer.val_only=true \
    "trainer.default_local_dir=$folder/evaluation" trainer.resume_mode=disable
say "the policy is in $folder/model; to train it on:"
say "bash examples/quickstart.sh actor_rollout_ref.model.path=$folder/model"
