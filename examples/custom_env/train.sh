#!/usr/bin/env bash
# Two steps of GRPO on the environment of this folder, with the small policy, on a CPU.
#
#   bash examples/custom_env/train.sh [hydra overrides]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
bash "$root/examples/setup_env.sh"
cd "$root"
exec .venv/bin/python -m verl.trainer.main_ppo --config-name custom_env \
    "trainer.experiment_name=custom_env_$(date +%Y%m%d_%H%M%S)" "$@"
