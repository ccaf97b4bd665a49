"""One run in LessonWorld, slow enough to be killed: `crash_run.py FOLDER CONCURRENCY SECONDS_PER_CALL`."""

import sys
import time
from dataclasses import replace

from tests.training_free.lesson_world import World
from tests.training_free.runs import learner, train

WORLD = replace(World(seed=2), malformed=0.2, wrong=0.2)


def main(folder, concurrency, seconds):
    run = learner(WORLD, folder, int(concurrency), failing=0.1)
    shown = run.policy._script

    def slowly(request, count):
        time.sleep(float(seconds))
        return shown(request, count)

    run.policy._script = slowly
    print("open", flush=True)
    train(run, WORLD, held_out=40)
    print(run.report.status, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
