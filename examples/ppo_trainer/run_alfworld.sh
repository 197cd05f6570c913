#!/usr/bin/env bash
# PPO with EPO on ALFWorld, with the paper's settings (arXiv 2509.22576).
#
#   MODEL=<folder or hub name> bash examples/ppo_trainer/run_alfworld.sh [more flags]
set -euo pipefail

examples="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
exec bash "$examples/general_running_server.sh" \
    --environment alfworld --rl_algorithm ppo --model_load_method auto \
    --model_path "${MODEL:-Qwen/Qwen2.5-3B-Instruct}" \
    --lr 5e-6 --lr_warmup_steps_ratio 0.1 --min_lr_ratio 0.2 --warmup_style cosine \
    --total_epochs 150 --ppo_mini_batch_size 256 \
    --ppo_micro_batch_size_per_gpu 16 --log_prob_micro_batch_size_per_gpu 16 \
    --entropy_smooth True --enable_smooth_weights True --entropy_coeff 0.001 \
    --entropy_smooth_min_ratio 0 --entropy_smooth_max_ratio 2.0 \
    --entropy_smooth_out_range_penalty 0.1 \
    "$@"
