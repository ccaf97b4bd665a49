"""Stores one group after the other, from the first; to be killed. `crash_writer.py LIBRARY WRITER GROUPS`."""

import sys

from trl_grpo_ext.experience import ExperienceLibrary, RolloutGroup

SIZE = 8


def group(writer, number):
    """Four of eight rollouts are stored; the prompt says of which group they are."""
    responses = [f"{writer}/{number}/{place} " + "text " * 50 for place in range(SIZE)]
    return RolloutGroup(
        f"{writer}/{number}", responses, [float(place < 4) for place in range(SIZE)], uid=f"{writer}/{number}"
    )


def main(path, writer, groups):
    with ExperienceLibrary(path, timeout=60) as library:
        print("open", flush=True)
        for number in range(int(groups)):
            library.add_rollout_groups([group(writer, number)], step=number)


if __name__ == "__main__":
    main(*sys.argv[1:])
