"""The library in a few lines: store the rollouts that beat their group, draw one, save, read the figures.

    python examples/experience_library/quick_start.py

The Python form of the guide's quick start, configuration, statistics and API. No model: answers are drawn from a list.
"""

import random
import tempfile
from pathlib import Path

from trl_grpo_ext import Episode, ExperienceConfig, ExperienceLibrary

ANSWERS = ["def add(a, b): return a + b", "def add(a, b): return a - b", "add = sum", "def add(a, b) return a + b"]


def generate(randomness: random.Random) -> str:
    return randomness.choice(ANSWERS)


def evaluate(response: str) -> float:
    return float("a + b" in response) - 0.5 * float("):" not in response)


def fill(library: ExperienceLibrary, prompts: list[str], randomness: random.Random) -> None:
    """One group of `group_size` rollouts for each prompt; those above the group's mean reward are kept."""
    for prompt in prompts:
        responses = [generate(randomness) for _ in range(library.config.group_size)]
        rollouts = [(prompt, response) for response in responses]
        library.add_rollout_group(rollouts, [evaluate(response) for response in responses])


def custom_config() -> ExperienceConfig:
    return ExperienceConfig(
        group_size=16,  # larger groups give better estimates of the advantage
        max_library_size=50_000,
        max_experience_age=86_400 * 30,  # 30 days
        min_advantage_threshold=0.1,  # store clearly good rollouts only
        sampling_temperature=0.5,  # favours the best
        use_advantage_weighting=True,
    )


def show(episode: Episode | None) -> None:
    if episode is not None:
        print(f"Successful pattern: {episode.prompt} -> {episode.response}")
        fresh = not episode.is_stale(max_age=604_800)
        print(f"advantage {episode.advantage:+.3f}, {episode.age_seconds():.0f} seconds old, fresh: {fresh}")


def main() -> None:
    randomness = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        library = ExperienceLibrary(config=custom_config(), seed=0)
        fill(library, [f"Write a function that adds, variant {number}" for number in range(20)], randomness)
        show(library.sample_experience())
        print(library.stats().summary())
        print(f"full: {library.is_at_capacity()}")

        saved = Path(folder) / "experiences.json"
        library.save_to_file(saved)
        again = ExperienceLibrary(config=custom_config())
        again.load_from_file(saved)
        print(f"loaded: {again.library_size()} of {library.library_size()}")
        again.clear()
        print(f"cleared: {again.library_size()}")


if __name__ == "__main__":
    main()
