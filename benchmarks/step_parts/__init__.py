"""The parts of `benchmarks/step.py`; `benchmarks/ppo_vs_grpo.py` uses some of them."""
