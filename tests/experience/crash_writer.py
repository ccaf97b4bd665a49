"""Stores one group after the other, from the first; to be killed. `crash_writer.py LIBRARY WRITER GROUPS`."""

import sys

from trl_grpo_ext.experience import ExperienceConfig, ExperienceLibrary, RolloutGroup

SIZE = 8
# A fast machine stores more than the usual 10,000 between the kills, and what is pruned then is not lost.
CONFIG = ExperienceConfig(max_library_size=1_000_000)


def group(writer, number):
    """Four of eight rollouts are stored; the prompt says of which group they are."""
    responses = [f"{writer}/{number}/{place} " + "text " * 50 for place in range(SIZE)]
    return RolloutGroup(
        f"{writer}/{number}", responses, [float(place < 4) for place in range(SIZE)], uid=f"{writer}/{number}"
    )


def main(path, writer, groups):
    with ExperienceLibrary(path, CONFIG, timeout=60) as library:
        print("open", flush=True)
        for number in range(int(groups)):
            library.add_rollout_groups([group(writer, number)], step=number)


if __name__ == "__main__":
    main(*sys.argv[1:])
