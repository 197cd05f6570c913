"""One folder per environment; `agent_system.environments.registry` knows them by name."""
