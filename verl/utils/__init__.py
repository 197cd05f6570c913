"""Helpers shared by the trainer and its workers."""
