"""Measurements of speed and memory, each beside its floor. `python -m benchmarks --help` lists them."""
