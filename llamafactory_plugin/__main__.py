"""`python -m llamafactory_plugin train ...` and `python -m llamafactory_plugin doctor`.

`train` is `llamafactory-cli train` for installations without a working start-up file (`pip install --target`,
`python -S`, a locked environment): it inserts the import hook itself, in this process and in torchrun's children. It
does so even under `LLAMAFACTORY_GRPO=0`, which switches off only what happens without being asked for.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence

USAGE = """usage: python -m llamafactory_plugin train CONFIG.yaml [key=value ...]
       python -m llamafactory_plugin doctor

train    what `llamafactory-cli train` does, with `stage: grpo`, where the start-up file cannot work
doctor   say whether the start-up hook is active, what it patched, which versions are installed, and what is wrong"""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if command == "train":
        return train(rest)
    if command == "doctor" and not rest:
        from llamafactory_plugin import doctor

        return doctor.main()
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    print(USAGE, file=sys.stderr)
    return 2


def train(arguments: Sequence[str]) -> int:
    """Launch LLaMA-Factory's training with the hook in this process and in every process that torchrun starts."""
    if importlib.util.find_spec("llamafactory") is None:
        from llamafactory_plugin.doctor import LLAMAFACTORY_MISSING

        print(f"error: {LLAMAFACTORY_MISSING}", file=sys.stderr)
        return 1
    from llamafactory_plugin import _boot, register

    _boot.insert_finder()
    from llamafactory import launcher

    sys.argv = [sys.argv[0], "train", *arguments]
    # Torchrun re-executes `launcher.__file__`, whose children would know nothing of the hook.
    with register.swapped(launcher, __file__=os.path.join(os.path.dirname(os.path.realpath(__file__)), "_worker.py")):
        launcher.launch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
