"""The rules that DESIGN and STYLE set for the code as a whole, read off its syntax trees."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tokenizer", "generative", "datasets_scripts")

# The rooms of each package, from what people run down to what needs nothing else. A room imports
# only from rooms below it, for type annotations too; inside a room files may import each other.
ROOMS = (
    # tokenizer
    "tokenizer.__main__",
    "tokenizer.benchmarks",
    "tokenizer.cli",
    "tokenizer.__init__",
    "tokenizer.app",
    "tokenizer.evaluation",
    "tokenizer.training",
    "tokenizer.export",
    "tokenizer.transcoding",
    "tokenizer.codefile",
    "tokenizer.model",
    "tokenizer.autoencoders",
    "tokenizer.quantizers",
    "tokenizer.networks",
    "tokenizer.audio",
    "tokenizer.command",
    "tokenizer.saving",
    "tokenizer.hub",
    "tokenizer.devices",
    "tokenizer.precision",
    "tokenizer._clash",
    "tokenizer.errors",
    "tokenizer._moved",
    "tokenizer._registering",
    # generative
    "generative.__main__",
    "generative.benchmarks",
    "generative.cli",
    "generative.__init__",
    "generative.evaluation",
    "generative.runs",
    "generative.diffusion",
    "generative.language_model",
    "generative.training",
    "generative.conditioning",
    "generative.protocol",
    # datasets_scripts
    "datasets_scripts.__main__",
    "datasets_scripts.benchmarks",
    "datasets_scripts.cli",
    "datasets_scripts.__init__",
    "datasets_scripts.preparation",
    "datasets_scripts.dataset",
    "datasets_scripts.corpora",
    "datasets_scripts.sources",
)

# What encoding and decoding consist of, and what they must never load.
INFERENCE = (
    "tokenizer.model.latent_tokenizer",
    "tokenizer.model.loading",
    "tokenizer.codefile",
    "tokenizer.transcoding.files",
    "tokenizer.transcoding.piping",
)
TRAINING_ONLY = ("tokenizer.training", "tokenizer.evaluation", "tokenizer.app")
HEAVY = (
    "faiss", "ray", "diffusers", "matplotlib", "tensorboard", "datasets", "visqol", "gradio",
)  # fmt: skip

# Each of these runs code that comes with data.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.hub.load", "yaml.load", "os.system"}
FORBIDDEN_FLAGS = {"shell", "allow_pickle", "trust_remote_code"}


@dataclass(frozen=True)
class Import:
    """One imported name: by whom, what, and whether for type checkers only or by a string."""

    source: str
    target: str
    line: int
    types_only: bool
    by_string: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(module: str) -> list[Import]:
    """All imports of a module, those inside functions too, and modules named by a string."""

    def visit(node: ast.AST, types_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(module, name.name, node.lineno, types_only)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                target = f"{'.' * node.level}{node.module or ''}.{name.name}"
                yield Import(module, target, node.lineno, types_only)
        elif isinstance(node, ast.Constant) and node.value in modules() and "." in node.value:
            yield Import(module, node.value, node.lineno, types_only, by_string=True)
        elif is_type_checking(node):
            assert isinstance(node, ast.If)
            for child in node.body:
                yield from visit(child, types_only=True)
            for child in node.orelse:
                yield from visit(child, types_only)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, types_only)

    return list(visit(tree(module), types_only=False))


def all_imports() -> list[Import]:
    return [found for module in modules() for found in imports(module)]


def internal(target: str) -> str:
    """The module of ours that a dotted name is in: the longest prefix that is one."""
    while target not in modules():
        target = target.rpartition(".")[0]
    return target


def room(module: str) -> str:
    """The room that a module is in: its package's folder or, beside the rooms, a file."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else f"{module}.__init__"


def is_ours(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def exports(package: str) -> dict[str, str]:
    """The names that the ``__init__.pyi`` of a package or room exports, and the module of each."""
    path = ROOT.joinpath(*package.split("."), "__init__.pyi")
    stub = ast.parse(path.read_text(encoding="utf-8"))
    return {
        name.name: f"{package}.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


def bound_names(module: str) -> set[str]:
    """What a module defines or imports at its top level, and what it exports by a stub."""
    stub = modules()[module].with_suffix(".pyi")
    names = set(exports(module)) if stub.exists() else set()
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
    return names


def test_every_module_has_a_room():
    homeless = sorted({room(module) for module in modules()} - set(ROOMS))
    assert not homeless, f"Add {homeless} to ROOMS, above what they import."
    assert not set(ROOMS) - {room(module) for module in modules()}


def test_imports_point_downward():
    upward = []
    for found in all_imports():
        package = found.source.split(".")[0]
        # A registry names by a string what it loads on demand.
        if not is_ours(found.target, package) or found.by_string:
            continue
        # Benchmarks run other benchmarks as programs, and __init__ names what it exports.
        source, target = room(found.source), room(internal(found.target))
        if source != target and ROOMS.index(source) >= ROOMS.index(target):
            upward.append(str(found))
    assert not upward, "\n".join(["A room imports only from rooms below it:", *upward])


def test_there_are_no_circles():
    graph = {module: set() for module in modules()}
    for found in all_imports():
        ours = any(is_ours(found.target, package) for package in PACKAGES)
        # A registry names by a string what it loads on demand, and that may import the registry.
        if not ours or found.by_string:
            continue
        if internal(found.target) != found.source:
            graph[found.source].add(internal(found.target))
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_imports_are_absolute():
    relative = [str(found) for found in all_imports() if found.target.startswith(".")]
    assert not relative, relative


# Rooms of the tokenizer that the other packages build on, besides what it exports.
SHARED = (
    "tokenizer._registering", "tokenizer.audio", "tokenizer.command", "tokenizer.devices",
    "tokenizer.errors", "tokenizer.evaluation", "tokenizer.hub", "tokenizer.saving",
    "tokenizer.training",
)  # fmt: skip


def test_packages_use_only_what_the_ones_below_export():
    # generative trains on what datasets_scripts prepares; both stand on tokenizer.
    below = {
        "tokenizer": (),
        "datasets_scripts": ("tokenizer",),
        "generative": ("tokenizer", "datasets_scripts"),
    }
    wrong = []
    for found in all_imports():
        package = found.source.split(".")[0]
        others = [p for p in PACKAGES if p != package and is_ours(found.target, p)]
        # Their __init__.py looks whether the tokenizer is ours at all; _moved has old names of all.
        # Command lines print its version.
        whole = found.target == "tokenizer" and found.source.split(".")[1:] in ([], ["cli"])
        if not others or whole:
            continue
        if found.source == "tokenizer._moved":
            continue
        names = {p: {"__version__", *exports(p)} for p in below[package]}
        allowed = {f"{p}.{name}" for p in names for name in names[p]}
        shared = any(is_ours(found.target, room) for room in SHARED)
        if found.target not in allowed and not shared:
            wrong.append(str(found))
    assert not wrong, "\n".join(["Not exported by a package below:", *wrong])


@pytest.mark.parametrize(
    "package",
    [
        ".".join(path.relative_to(ROOT).parent.parts)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("__init__.pyi"))
    ],
)
def test_exports_exist_under_the_same_name(package):
    for name, module in exports(package).items():
        assert name in bound_names(module), f"{module} has no {name}"


def test_inference_reaches_no_training_code():
    reached, todo = set(), [name for name in INFERENCE if name in modules()]
    while todo:
        module = todo.pop()
        if module in reached:
            continue
        reached.add(module)
        todo += [
            internal(found.target)
            for found in imports(module)
            if is_ours(found.target, "tokenizer") and not found.types_only
        ]
    wrong = {name for name in reached if room(name) in TRAINING_ONLY}
    assert "tokenizer.model.latent_tokenizer" in reached
    assert not wrong


@pytest.mark.slow
def test_importing_for_inference_loads_nothing_heavy():
    statement = (
        f"import sys; from importlib import import_module as load\n"
        f"for name in {INFERENCE!r}: load(name)\n"
        f"print(*(name for name in sys.modules if name.startswith({TRAINING_ONLY!r})"
        f" or name.split('.')[0] in {HEAVY!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_runs_code_that_comes_with_data(package):
    wrong = []
    for module in modules():
        if not is_ours(module, package):
            continue
        # What names stand for: after `from torch import load as get`, get is torch.load.
        stands_for = {}
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Import):
                stands_for |= {n.asname: n.name for n in node.names if n.asname}
            elif isinstance(node, ast.ImportFrom):
                stands_for |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
        wrong += [
            str(found)
            for found in imports(module)
            if found.target.split(".")[0] in FORBIDDEN_MODULES
        ]
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.Call):
                continue
            first, dot, rest = ast.unparse(node.func).partition(".")
            call = stands_for.get(first, first) + dot + rest
            flags = {
                keyword.arg
                for keyword in node.keywords
                if keyword.arg in FORBIDDEN_FLAGS and ast.unparse(keyword.value) != "False"
            }
            if call in FORBIDDEN_CALLS or flags:
                wrong.append(f"{module}:{node.lineno} calls {call}({', '.join(sorted(flags))})")
    assert not wrong, "\n".join(wrong)


def test_no_module_hides_another():
    # `python tokenizer/train.py` puts the file's folder first on sys.path: `import datasets` would
    # then find a datasets.py there.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = [re.split(r"[^\w-]", line)[0].replace("-", "_") for group in groups for line in group]
    taken = {*sys.stdlib_module_names, *needed, *PACKAGES, "faiss", "ray", "PIL", "yaml"}
    taken.remove("latent_tokenizer")  # extras name this distribution itself
    names = {
        path: path.parent.name if path.stem == "__init__" else path.stem
        for module, path in modules().items()
        if module not in PACKAGES and path.stem != "__main__"
    }
    assert not {str(path.relative_to(ROOT)) for path, name in names.items() if name in taken}


def test_only_main_is_run():
    # For the same reason; `latok` and `python -m` are the ways in. Benchmarks are scripts.
    runnable = [
        module
        for module, path in modules().items()
        if path.stem != "__main__"
        and ".benchmarks." not in module
        and "if __name__ ==" in path.read_text()
    ]
    assert not runnable
