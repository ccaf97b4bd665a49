"""Who may import whom, and other rules of the code's shape that no other tool checks. All of it read by `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARY = "trl_grpo_ext"
PLUGIN = "llamafactory_plugin"

# Feature folders of the library. They never import one another, but for what stands in MAY_USE, and that by the
# folder's public name only.
FEATURES = {"losses", "rewards", "batching", "experience", "training_free", "bitdelta", "evaluation", "serving"}
FEATURES |= {"cli", "gym", "health", "report"}
MAY_USE = {"training_free": {"experience", "rewards"}, "serving": {"experience"}, "cli": FEATURES - {"cli"}}
MAY_USE["gym"] = {"bitdelta", "experience", "rewards", "training_free"}
# Formulas and stores: testable, and usable, without TRL.
PURE = {"advantages.py", "kl.py", "presets.py", "sampling.py", "self_certainty.py"}
PURE_FOLDERS = {"losses"}
PURE_IN_FEATURES = {"records.py", "store.py", "sampler.py", "codecs.py"}


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` with an empty name."""

    path: Path
    line: int
    module: str
    name: str

    @property
    def root(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        statement = f"from {self.module} import {self.name}" if self.name else f"import {self.module}"
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}: {statement}"


def sources(package: str) -> list[Path]:
    found = sorted((REPOSITORY / package).rglob("*.py"))
    assert found, f"no Python files in {package}"
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def dotted_package(path: Path) -> list[str]:
    """The package that relative imports of a file start from."""
    return list(path.relative_to(REPOSITORY).parent.parts)


def imports(path: Path, nodes: Iterator[ast.AST] | None = None) -> list[Import]:
    found = []
    for node in nodes or ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = dotted_package(path)[: None if node.level == 1 else 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [Import(path, node.lineno, module, alias.name) for alias in node.names]
    return found


def all_imports(package: str) -> list[Import]:
    return [item for path in sources(package) for item in imports(path)]


def listed(items: list[Import]) -> str:
    return "\n".join(map(str, items))


def test_library_knows_nothing_of_llamafactory() -> None:
    wrong = [item for item in all_imports(LIBRARY) if item.root in (PLUGIN, "llamafactory")]
    assert not wrong, listed(wrong)


def target(item: Import) -> tuple[str, bool] | None:
    """The feature folder an import reaches, and whether it reaches into a module below the folder's own name."""
    parts = [*item.module.split("."), *([item.name] if item.name else [])]
    if parts[0] != LIBRARY or len(parts) < 2 or parts[1] not in FEATURES:
        return None
    return parts[1], len(item.module.split(".")) > 2


def test_feature_folders_do_not_import_one_another() -> None:
    wrong = []
    for path in sources(LIBRARY):
        folder = path.relative_to(REPOSITORY / LIBRARY).parts[0]
        if folder not in FEATURES:
            continue
        for item in imports(path):
            reached = target(item)
            if reached is None or reached[0] == folder:
                continue
            if reached[0] not in MAY_USE.get(folder, ()) or reached[1]:
                wrong.append(item)
    assert not wrong, listed(wrong)


def test_every_folder_of_the_library_is_known_here() -> None:
    folders = {path.parent.name for path in (REPOSITORY / LIBRARY).glob("*/__init__.py")}
    assert folders <= FEATURES, "add the new folder to FEATURES"


def exported(module: str) -> set[str]:
    """The names in `__all__` of a module of the library."""
    path = REPOSITORY.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in parse(path).body:
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") == "__all__" for name in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def test_plugin_uses_only_public_names_of_the_library() -> None:
    """`_compat` is allowed beside them: what one TRL needs and the other does not belongs there, for both packages."""
    wrong = [
        item
        for item in all_imports(PLUGIN)
        if item.root == LIBRARY
        and item.module != f"{LIBRARY}._compat"
        and not (item.module == LIBRARY and item.name == "_compat")
        and item.name not in exported(item.module)
    ]
    assert not wrong, listed(wrong)


def test_pure_modules_need_torch_or_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"torch", "safetensors"}
    wrong = []
    for path in sources(LIBRARY):
        feature = path.parent != REPOSITORY / LIBRARY
        if path.parent.name not in PURE_FOLDERS and path.name not in (PURE_IN_FEATURES if feature else PURE):
            continue
        for item in imports(path):
            own = item.module.startswith(f"{LIBRARY}.") and not item.module.endswith("._compat")
            if item.root not in allowed and not own:
                wrong.append(item)
    assert not wrong, listed(wrong)


def test_callbacks_need_transformers_and_their_own_folder_only() -> None:
    allowed = sys.stdlib_module_names | {"torch", "transformers", LIBRARY}
    wrong = [
        item
        for path in sources(LIBRARY)
        if path.name == "callback.py"
        for item in imports(path)
        if item.root not in allowed
    ]
    assert not wrong, listed(wrong)


def test_only_compat_asks_for_versions() -> None:
    wrong = []
    for path in sources(LIBRARY):
        if path.name == "_compat.py":
            continue
        wrong += [
            str(item)
            for item in imports(path)
            if item.name not in ("EntryPoint", "entry_points")
            and (item.module in ("importlib.metadata", "packaging.version") or item.name == "metadata")
        ]
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and node.attr == "__version__":
                wrong.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def llamafactory_names(tree: ast.Module) -> set[str]:
    """Names that a file binds to modules of LLaMA-Factory, or to objects out of them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llamafactory":
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found = (alias for alias in node.names if alias.name.split(".")[0] == "llamafactory")
            names |= {alias.asname or alias.name.split(".")[0] for alias in found}
    return names


def base_name(node: ast.AST) -> str:
    """`a` of `a.b["c"].d` and of `vars(a)`; empty for other expressions."""
    while True:
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "vars" and node.args:
            node = node.args[0]
        else:
            return node.id if isinstance(node, ast.Name) else ""


def assigned_into(tree: ast.Module) -> Iterator[ast.expr]:
    """Every expression whose base a statement changes: `x.y = 1`, `x["y"] = 1`, `del x.y`, `setattr(x, ...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("setattr", "delattr") and node.args:
                yield node.args[0]
            elif isinstance(function, ast.Attribute) and function.attr in ("update", "pop", "setdefault", "clear"):
                yield function.value


def test_only_register_assigns_into_llamafactory() -> None:
    wrong = []
    for path in sources(PLUGIN):
        if path.name == "register.py":
            continue
        tree = parse(path)
        names = llamafactory_names(tree)
        wrong += [
            f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(node)}"
            for node in assigned_into(tree)
            if base_name(node) in names
        ]
    assert not wrong, "\n".join(wrong)


def test_start_up_hook_imports_what_every_interpreter_has_loaded() -> None:
    path = REPOSITORY / PLUGIN / "_boot.py"
    # Not below `if TYPE_CHECKING:`, whose body never runs, and not inside functions, which run later.
    top_level = imports(path, iter(parse(path).body))
    assert {item.module for item in top_level} == {"_thread", "os", "sys"}
    code = "import sys; sys.exit(not {'_thread', 'os', 'sys'} <= set(sys.modules))"
    assert subprocess.run([sys.executable, "-I", "-c", code]).returncode == 0


def test_plugin_package_itself_imports_nothing() -> None:
    assert imports(REPOSITORY / PLUGIN / "__init__.py") == []


def test_examples_use_public_names() -> None:
    found = [item for path in (REPOSITORY / "examples").rglob("*.py") for item in imports(path)]
    wrong = [
        item
        for item in found
        if item.root in (LIBRARY, PLUGIN)
        and any(part.startswith("_") for part in f"{item.module}.{item.name}".split("."))
    ]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("package", [LIBRARY, PLUGIN])
def test_public_functions_and_classes_have_docstrings_and_hints(package: str) -> None:
    wrong = []
    for path in sources(package):
        tree = parse(path)
        if not ast.get_docstring(tree):
            wrong.append(f"{path.relative_to(REPOSITORY)}: the module has no docstring")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith(
                "_"
            ):
                continue
            where = f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.name}"
            if not ast.get_docstring(node):
                wrong.append(f"{where} has no docstring")
            if not isinstance(node, ast.ClassDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                wrong += [f"{where}: {item.arg} has no type" for item in arguments if item.annotation is None]
                if node.returns is None:
                    wrong.append(f"{where} has no return type")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", [LIBRARY, PLUGIN])
def test_public_lists_are_without_repetition_and_in_order(package: str) -> None:
    """The order of ruff's RUF022: constants, classes, the rest, each by name."""

    def key(name: str) -> tuple[int, str]:
        plain = name.lstrip("_")
        return (0 if plain.isupper() else 1 if plain[:1].isupper() else 2, name)

    for path in sources(package):
        for node in parse(path).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names = ast.literal_eval(node.value)
                assert names == sorted(set(names), key=key), path


def test_there_is_one_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    for package in (LIBRARY, PLUGIN):
        assert f'__version__ = "{project}"\n' in (REPOSITORY / package / "__init__.py").read_text(), package


def tracked_files() -> list[Path]:
    """What git tracks or would add; an unpacked source archive has no git, and then there is nothing to check."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in result.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


# In two halves, or this file would find itself.
FORBIDDEN = ["/" + "root/", "/" + "home/", "/" + "Users/", "/" + "work/", "/tmp" + "/line"]
FORBIDDEN += ["pypi" + ".org", "python" + "hosted.org", "registry" + ".npmjs", "download" + ".pytorch.org"]
FORBIDDEN += ["conda" + ".anaconda.org", "/opt" + "/pypi", "/opt" + "/wheels"]


def test_no_path_of_one_machine_and_no_package_registry_is_written_down() -> None:
    wrong = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        wrong += [f"{path.relative_to(REPOSITORY)}: {item}" for item in FORBIDDEN if item in text]
    assert not wrong, "\n".join(wrong)
