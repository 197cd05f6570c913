"""Entry points and the training loop."""
