"""Python runs this when it starts: on the CPU, DeepSpeed exchanges by gloo alone.

Otherwise it compiles an operator for ranks of one machine first, which needs a C++ compiler and takes minutes. It has
no setting for that; what it does where the operator is not for the platform, is what it does here.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class NothingCompiled(PathFinder):
    """Finds `deepspeed.ops` as Python does, with an empty table of operators."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "deepspeed.ops":
            return None
        spec = super().find_spec(name, path, target)
        execute = spec.loader.exec_module

        def load(module: ModuleType) -> None:
            execute(module)
            module.__compatible_ops__ = {}

        spec.loader.exec_module = load
        return spec


sys.meta_path.insert(0, NothingCompiled)
