#!/usr/bin/env bash
# ALFWorld on a CPU: generated games, a few training steps of the small policy.
#
#   bash examples/alfworld_cpu.sh [ppo|grpo] [hydra overrides]
#
# Games come from $ALFWORLD_DATA; without it, 60 are made in runs/alfworld_games at the first call.
# Every call is a run of its own, in runs/epo/alfworld_<algorithm>_<time>. It shows that everything
# works together: the small policy has learned ScienceWorld's words and wins no game here.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
algorithm=ppo
case "${1:-}" in
    ppo | grpo) algorithm="$1"; shift ;;
esac

bash "$root/examples/setup_env.sh" alfworld
cd "$root"
if [[ -z "${ALFWORLD_DATA:-}" ]]; then
    export ALFWORLD_DATA="$root/runs/alfworld_games"
    .venv/bin/python -m agent_system.environments.env_package.alfworld.generate \
        --out "$ALFWORLD_DATA" --games 60 --receptacles 4-8 --objects 4-8
fi
exec .venv/bin/python -m verl.trainer.main_ppo --config-name alfworld_small "algo=$algorithm" \
    "trainer.experiment_name=alfworld_${algorithm}_$(date +%Y%m%d_%H%M%S)" "$@"
