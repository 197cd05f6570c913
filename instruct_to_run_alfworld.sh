#!/usr/bin/env bash
# From a clone on a GPU machine to an ALFWorld training run with PPO and EPO.
#
#   bash instruct_to_run_alfworld.sh [model] [more flags of examples/general_running_server.sh]
#
# model          a folder or a hub name, default Qwen/Qwen2.5-3B-Instruct
# ALFWORLD_DATA  where the games are or go, default ~/.cache/alfworld
# EXTRAS         more optional packages: EXTRAS=flash-attn (faster attention)
# ENGINE         vllm (default) or hf
# ALGO           ppo (default) or grpo
#
# Several machines: start Ray on each (ray start ...), put the games in one folder that all of them
# see, then add
#   -- ray_kwargs.ray_init.address=auto trainer.nnodes=<machines>
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
export MODEL="${1:-Qwen/Qwen2.5-3B-Instruct}"
export ALFWORLD_DATA="${ALFWORLD_DATA:-$HOME/.cache/alfworld}"
flags=("${@:2}")

engine="${ENGINE:-vllm}"
extras="alfworld${EXTRAS:+,$EXTRAS}"
[[ "$engine" != vllm ]] || extras+=,vllm
bash "$root/examples/setup_env.sh" "$extras"

# The last file that a download writes; generated games need none.
if [[ ! -e "$ALFWORLD_DATA/logic/alfred.twl2" && ! -e "$ALFWORLD_DATA/generated.json" ]]; then
    "$root/.venv/bin/alfworld-download" --data-dir "$ALFWORLD_DATA" || {
        echo "error: the download of the ALFWorld games failed; without a connection make some with" \
            "$root/.venv/bin/python -m agent_system.environments.env_package.alfworld.generate" \
            "--out <folder> and set ALFWORLD_DATA=<folder>" >&2
        exit 2
    }
fi

exec bash "$root/examples/${ALGO:-ppo}_trainer/run_alfworld.sh" --engine "$engine" "${flags[@]}"
