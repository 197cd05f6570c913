"""The parts of benchmarks/environments.py."""
