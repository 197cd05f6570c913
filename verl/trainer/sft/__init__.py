"""Behaviour cloning: conversations, batches, the worker and the loop."""
