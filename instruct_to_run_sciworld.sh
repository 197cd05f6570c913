#!/usr/bin/env bash
# From a clone on a GPU machine to a ScienceWorld training run with PPO and EPO.
#
#   bash instruct_to_run_sciworld.sh [model] [more flags of examples/general_running_server.sh]
#
# model     a folder or a hub name, default Qwen/Qwen2.5-7B-Instruct
# EXTRAS    more optional packages: EXTRAS=flash-attn (faster attention)
# ENGINE    vllm (default) or hf
# ALGO      ppo (default) or grpo
#
# Several machines: start Ray on each (ray start ...), then add
#   -- ray_kwargs.ray_init.address=auto trainer.nnodes=<machines>
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
export MODEL="${1:-Qwen/Qwen2.5-7B-Instruct}"
flags=("${@:2}")

engine="${ENGINE:-vllm}"
extras="sciworld${EXTRAS:+,$EXTRAS}"
[[ "$engine" != vllm ]] || extras+=,vllm
bash "$root/examples/setup_env.sh" "$extras"

exec bash "$root/examples/${ALGO:-ppo}_trainer/run_sciworld.sh" --engine "$engine" "${flags[@]}"
