"""The vLLM engine. Only `engine` imports vLLM, and only when an engine is built."""
