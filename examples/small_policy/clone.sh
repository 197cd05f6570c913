#!/usr/bin/env bash
# Demonstrations -> tokenizer and architecture -> behaviour cloning, in an installed .venv.
#
#   bash examples/small_policy/clone.sh <demonstrations script> <folder> [hydra overrides of the cloning]
#
# The model ends up in <folder>/model. The two make.sh call this.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python
script="$1" folder="$2"
demonstrations="$folder/demonstrations.jsonl"
mkdir -p "$folder"
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1

say() { echo "[clone] $*"; }

say "1/3 winning episodes of training tasks: $demonstrations"
"$python" "$script" --output "$demonstrations"

say "2/3 a tokenizer for these words, and the architecture: $folder/blank"
"$python" examples/small_policy/tokenizer.py \
    --demonstrations "$demonstrations" --output "$folder/blank"

say "3/3 cloning: $folder/clone"
"$python" -m verl.trainer.main_sft --config-name sft_small_policy \
    "model.path=$folder/blank" "data.train_files=[$demonstrations]" \
    "trainer.default_local_dir=$folder/clone" "trainer.export_dir=$folder/model" "${@:3}"
