#!/usr/bin/env bash
# From a clone on a GPU machine to an ALFWorld training run with PPO and EPO.
#
# The ALFWorld environment is not part of this version yet: the script says so and stops with exit
# code 2 after the set-up, before it downloads the games.
#
#   bash instruct_to_run_alfworld.sh [model] [more flags of examples/general_running_server.sh]
#
# model     a folder or a hub name, default Qwen/Qwen2.5-3B-Instruct
# EXTRAS    more optional packages: EXTRAS=flash-attn (faster attention)
# ALGO      ppo (default) or grpo
#
# Several machines: start Ray on each (ray start ...), then add
#   -- ray_kwargs.ray_init.address=auto trainer.nnodes=<machines>
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
export MODEL="${1:-Qwen/Qwen2.5-3B-Instruct}"
flags=("${@:2}")

bash "$root/examples/setup_env.sh" "alfworld${EXTRAS:+,$EXTRAS}"

PYTHONPATH="$root" "$root/.venv/bin/python" - <<'PY'
import sys
from agent_system.environments.registry import get_env_package
try:
    get_env_package("alfworld/AlfredTWEnv")
except ValueError as error:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(2)
PY

# Games go to ~/.cache/alfworld, or to $ALFWORLD_DATA; what is there already is not fetched again.
"$root/.venv/bin/alfworld-download"

exec bash "$root/examples/${ALGO:-ppo}_trainer/run_alfworld.sh" "${flags[@]}"
