"""The start-up hook: one `sys.meta_path` finder, standard library only.

`llamafactory_grpo.pth` (and `llamafactory_grpo.start`, PEP 829) call `install()` at every interpreter start of the
environment. That only inserts the finder below; nothing of LLaMA-Factory, torch or TRL is imported. When, and only
when, a process imports one of the modules in `PATCHES`, `llamafactory_plugin.register` patches it right after its
own code ran. Set `LLAMAFACTORY_GRPO=0` to switch the hook off.

The three imports are modules that every interpreter has loaded before it reads start-up files, so they cost nothing.
"""

import _thread
import os
import sys

# `typing` is not among them; type checkers take the name for its constant.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SWITCH = "LLAMAFACTORY_GRPO"

PATCHES = {
    "llamafactory.hparams.parser": "patch_parser",
    "llamafactory.train.tuner": "patch_tuner",
    "llamafactory.extras.constants": "patch_constants",
    "llamafactory.webui.control": "patch_control",
}

# Patch name -> why `register` itself could not be asked. `register.status()` knows everything else.
failures: dict[str, str] = {}


def is_switched_off() -> bool:
    """Whether the environment switches the start-up hook off."""
    return os.environ.get(SWITCH, "1").strip().lower() in ("0", "false", "no", "off")


def apply_patch(name: str, module: "ModuleType") -> None:
    """Patch the LLaMA-Factory module `name`; a failure is told in one line and never raised into LLaMA-Factory."""
    try:
        from llamafactory_plugin import register

        register.apply(PATCHES[name], module)
    except Exception as error:
        failures[PATCHES[name]] = f"{type(error).__name__}: {error}"
        _warn(f"{name} is not patched, so `stage: grpo` is unknown in this process ({failures[PATCHES[name]]})")


class _PatchingLoader:
    """Runs the module's own loader, then the patch. Everything else is the own loader's."""

    def __init__(self, name: str, loader: "Loader") -> None:
        self._name = name
        self._loader = loader

    def __getattr__(self, attribute: str) -> object:
        # A copied or unpickled loader asks before it has `_loader`: without this line it would ask for ever.
        if attribute == "_loader":
            raise AttributeError(attribute)
        return getattr(self._loader, attribute)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        # Later readers (importlib.resources, inspect, importlib.reload) must meet the module's own loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        try:
            self._loader.exec_module(module)
        except Exception as error:
            _add_version_note(error)
            raise
        apply_patch(self._name, module)


class PatchingFinder:
    """Finds the modules of `PATCHES` where the other finders find them, and none else."""

    def __init__(self) -> None:
        self._searches: set[tuple[str, int]] = set()

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of the first other finder that knows `name`, its loader wrapped; None for any other module."""
        if name not in PATCHES:
            return None
        # A finder that works like this one, as wrapt's does, asks back: two of them would recurse for ever.
        search = (name, _thread.get_ident())
        if search in self._searches:
            return None
        self._searches.add(search)
        try:
            return self._search(name, path, target)
        finally:
            self._searches.discard(search)

    def _search(self, name: str, path: "Sequence[str] | None", target: "ModuleType | None") -> "ModuleSpec | None":
        for finder in tuple(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                # A finder may hand out one spec object twice, and a namespace package has no loader.
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _PatchingLoader):
                    spec.loader = _PatchingLoader(name, spec.loader)
                return spec
        return None


def is_installed() -> bool:
    """Whether this interpreter has the finder."""
    return any(isinstance(finder, PatchingFinder) for finder in sys.meta_path)


def install() -> None:
    """What the start-up file calls: the finder, unless the environment switches it off."""
    if not is_switched_off():
        insert_finder()


def insert_finder() -> None:
    """Insert the finder once, and patch what this process has imported before."""
    if is_installed():
        return
    sys.meta_path.insert(0, PatchingFinder())
    for name in PATCHES:
        module = sys.modules.get(name)
        if module is None:
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            _warn(f"{name} was half imported when the hook came, so `stage: grpo` is unknown: insert the hook earlier")
        else:
            apply_patch(name, module)


def _add_version_note(error: Exception) -> None:
    """LLaMA-Factory refuses packages by its own pins, and an old release would send the reader to an old TRL."""
    try:
        from llamafactory_plugin.doctor import version_problems

        # The error passes through every patched module that imports the one that failed.
        told = getattr(error, "__notes__", ())
        for note in (f"llamafactory_plugin: {problem}" for problem in version_problems()):
            if note not in told:
                error.add_note(note)
    except Exception as own_error:
        _warn(f"no version check ({type(own_error).__name__}: {own_error})")


def _warn(text: str) -> None:
    print(f"llamafactory_plugin: {text}", file=sys.stderr)
