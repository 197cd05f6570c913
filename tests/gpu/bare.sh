#!/usr/bin/env bash
# Checks and times the trainer on a machine that has one GPU and little else, in 8 minutes.
#
#   bash tests/gpu/bare.sh [folder]      results there, runs/bare by default
#
# Needs a Python (PYTHON, python3 by default) with PyTorch 2.11 or newer and transformers, and the
# packages below, which are plain wheels; no vLLM, no network. WHEELS names a folder of wheels that
# are to be installed first, into a folder of their own. Every part has a time limit, and what one
# part found stays when another fails. SHAPES and TOKENS choose the models that are timed.
#
#   ray tensordict pyvers cloudpickle hydra-core omegaconf antlr4-python3-runtime jsonschema
#   jsonschema-specifications referencing rpds-py gymnasium farama-notifications
#   (and, where missing: peft accelerate psutil tqdm pytest pytest-timeout hypothesis matplotlib)
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
out="$(mkdir -p "${1:-runs/bare}" && cd "${1:-runs/bare}" && pwd -P)"
python="${PYTHON:-python3}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

if [[ -n "${WHEELS:-}" ]]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" "$WHEELS"/*.whl
    PYTHONPATH="$out/site:${PYTHONPATH:-}"
fi
export PYTHONPATH="$root:${PYTHONPATH:-}"
cd "$root"

part() { # part NAME SECONDS COMMAND...: its output in NAME.log, how it ended in parts.txt
    local name="$1" limit="$2" start=$SECONDS code
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    [[ "$code" == 0 ]] || { echo "== $name" && tail -n 40 "$out/$name.log"; }
    printf '%-10s exit code %d after %d s\n' "$name" "$code" $((SECONDS - start)) >>"$out/parts.txt"
}

: >"$out/parts.txt"
part numbers 120 "$python" -m pytest tests/gpu/test_numbers.py -p no:cacheprovider --tb=short
part training 160 "$python" -m pytest tests/gpu/test_frozen_lake.py -p no:cacheprovider --tb=short
for shape in ${SHAPES:-0.5b 1.5b 7b}; do
    recompute=()
    [[ "$shape" != 7b ]] || recompute=(--gradient_checkpointing)
    # shellcheck disable=SC2086 # several numbers
    part "$shape" 100 "$python" benchmarks/policy_update.py "$shape" --tokens ${TOKENS:-4096 16384} \
        --output "$out/$shape.json" ${recompute[@]+"${recompute[@]}"}
done

"$python" benchmarks/policy_update.py table "$out"/*.json
cat "$out/parts.txt"
! grep -v 'exit code 0' "$out/parts.txt"
