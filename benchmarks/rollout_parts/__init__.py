"""The pieces of `benchmarks/rollout.py`, one module a subcommand and what they share."""
