"""The agent's world: text environments, the rollout loop, memory and rewards.

Its core knows neither Ray, vLLM nor verl; the adapters do.
"""
