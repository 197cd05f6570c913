"""The agent's world: text environments, the rollout loop, memory and rewards. Knows neither Ray, vLLM nor verl."""
