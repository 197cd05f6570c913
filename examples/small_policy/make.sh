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
folder="${1:-runs/small_policy}"

bash examples/small_policy/clone.sh examples/small_policy/demonstrations.py "$folder" "${@:2}"

echo "[small policy] playing unseen variations (L1_test), sampled and greedy"
OMP_NUM_THREADS=1 .venv/bin/python -m verl.trainer.main_ppo --config-name quickstart \
    "actor_rollout_ref.model.path=$folder/model" trainer.val_only=true \
    "trainer.default_local_dir=$folder/evaluation" trainer.resume_mode=disable
echo "[small policy] the policy is in $folder/model; to train it on:"
echo "bash examples/quickstart.sh actor_rollout_ref.model.path=$folder/model"
