#!/usr/bin/env bash
# PPO or GRPO, with or without EPO, from flags. `--help` lists them, `--dry_run` trains nothing.
# The flags live in verl/config/compat.py.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"
[[ -x "$python" ]] || python="$(command -v python3 || command -v python)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m verl.trainer.launcher "$@"
