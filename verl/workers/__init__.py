"""Ray workers: FSDP actor, reference and critic, and the rollout engines."""
