"""The parts of `benchmarks/learning.py`: two tasks, the arms, one run, the intervals, the tables."""
