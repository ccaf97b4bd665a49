"""The parts of benchmarks/bitdelta.py."""
