"""Where the agent loop meets the trainer: only these modules may import verl or Ray."""
