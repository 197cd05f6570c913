"""Text environments: packages by name, a pool of their processes, prompts and task lists."""
