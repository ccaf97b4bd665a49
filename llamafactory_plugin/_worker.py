"""What torchrun runs in each process of `python -m llamafactory_plugin train`, in place of LLaMA-Factory's launcher.

LLaMA-Factory re-executes `launcher.__file__` as a script; `__main__` points that at this file, so that the children
are patched without a start-up file too.
"""

import os
import sys


def make_package_importable() -> None:
    """Replace the script's own folder on `sys.path`, where `errors` or `dataset` would shadow others, by its parent.

    The parent goes last: it may be site-packages, which must not come before the standard library.
    """
    folder = os.path.dirname(os.path.realpath(__file__))
    # `python -P` and PYTHONSAFEPATH do not put the folder there.
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]
    parent = os.path.dirname(folder)
    if parent not in map(os.path.realpath, sys.path):
        sys.path.append(parent)


def main() -> None:
    """Train in this process, as LLaMA-Factory's `launcher.py` does when torchrun runs it."""
    make_package_importable()
    from llamafactory_plugin import _boot

    _boot.insert_finder()
    from llamafactory.train.tuner import run_exp

    run_exp()


if __name__ == "__main__":
    main()
