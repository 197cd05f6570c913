#!/usr/bin/env bash
# The main job on a CPU: a small policy learns three ScienceWorld tasks with GRPO and EPO.
#
#   bash examples/quickstart.sh [hydra overrides]      e.g. trainer.seed=1
#
# Every call is a run of its own, in runs/epo/quickstart_<time>. An interrupted one goes on with
#   bash examples/quickstart.sh trainer.experiment_name=quickstart_<time>
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
bash "$root/examples/setup_env.sh" sciworld
cd "$root"
exec .venv/bin/python -m verl.trainer.main_ppo --config-name quickstart \
    "trainer.experiment_name=quickstart_$(date +%Y%m%d_%H%M%S)" "$@"
