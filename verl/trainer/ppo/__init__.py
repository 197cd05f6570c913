"""PPO and its relatives: advantages, losses, KL control, metrics and the trainer."""
