"""The layers of docs/design.md, read from the imports: each module imports only lower ones."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

import finetune

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "finetune"
LAYERS = [
    {"tasks"},
    {"values", "bands"},
    {"sections"},
    {"errors", "types", "settings", "randomness", "cache_dir", "csv_cells", "wording"},
    {"ranks", "heap"},
    {"whole", "process", "threads", "arguments", "belongings", "inline", "underway", "hub"},
    {"cache_entries", "timings"},
    {"images"},
    {"recipe", "device", "data", "optim", "backbone", "environment"},
    {"features", "evaluation", "checkpoint", "tracking"},
    {"strategy", "train"},
    {"search", "exports", "report"},
    {"prepare"},
    {"runs"},
    {"workflow"},
    {"cli", "__init__"},
    {"__main__"},
]
MOST_OF_ALL = 0.15  # of the lines of the package in one room
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


@cache
def imports_of(module: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a module, those inside functions too."""
    nodes = ast.walk(ast.parse((PACKAGE / module).read_text()))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_rooms(module: Path) -> set[str]:
    """Every room that a module imports, those inside functions too."""
    found = set()
    for node in imports_of(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("finetune.")}
    return found


def test_a_module_imports_only_lower_layers() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imported_rooms(module)
        if name != room(module) and layer(name) >= layer(room(module))
    ]
    assert wrong == []


def test_a_verb_imports_no_verb() -> None:
    wrong = [
        f"{module}: {node.module}"
        for module in MODULES
        if room(module) == "workflow"
        for node in ast.walk(ast.parse((PACKAGE / module).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finetune.workflow")
    ]
    assert wrong == []


def test_a_module_is_on_a_layer_small_and_well_named() -> None:
    assert {room(module) for module in MODULES} <= {name for names in LAYERS for name in names}
    assert [module for module in MODULES if len((PACKAGE / module).read_text().splitlines()) > 400] == []
    words = {"utils", "helpers", "common", "misc"}
    assert [module for module in MODULES if words & {part.removesuffix(".py") for part in module.parts}] == []


def test_no_room_holds_more_than_its_share() -> None:
    lines = Counter(room(module) for module in MODULES for _ in (PACKAGE / module).read_text().splitlines())
    assert {name: count for name, count in lines.items() if count > MOST_OF_ALL * lines.total()} == {}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("timm.models", {"backbone"}),
        ("timm.optim", {"optim"}),
        ("accelerate", {"device", "tracking"}),
        ("torch.distributed", {"ranks"}),
        ("jinja2", {"report", "exports"}),
        ("matplotlib", {"report"}),
    ],
)
def test_a_library_is_imported_in_its_own_room_only(library: str, rooms: set[str]) -> None:
    users = set()
    for module in MODULES:
        for node in imports_of(module):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name == library or name.startswith(f"{library}.") for name in names):
                users.add(room(module))
    assert users
    assert users <= rooms


@pytest.mark.parametrize("command", ["import finetune", "from finetune.cli.app import app"])
def test_what_answers_at_once_imports_no_torch(command: str) -> None:
    code = f"import sys; {command}; print([m for m in ('torch', 'timm', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_is_sorted_complete_and_importable() -> None:
    assert finetune.__all__ == sorted(finetune.__all__)
    assert all(getattr(finetune, name) is not None for name in finetune.__all__)
    assert set(dir(finetune)) == set(finetune.__all__)


def test_a_function_of_the_public_api_is_not_hidden_by_a_room() -> None:
    """Importing finetune.x makes the module the attribute x of finetune, whatever stood there."""
    rooms = {room(module) for module in MODULES} - {"__init__", "__main__"}
    for name in rooms:
        importlib.import_module(f"finetune.{name}")
    assert rooms & set(finetune.__all__) == set()
    assert all(callable(getattr(finetune, name)) for name in finetune.__all__ if name != "__version__")


def test_a_docstring_says_yield_of_generators_alone() -> None:
    wrong = []
    folders = [ROOT / name for name in ("finetune", "tools", "benchmarks", "tests")]
    for file in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (ast.get_docstring(node) or "").startswith("Yield"):
                returns = ast.unparse(node.returns) if node.returns else ""
                wrong += [] if returns.startswith(("Iterator", "Generator")) else [f"{file.name}: {node.name}"]
    assert wrong == []


# Public names that stand for more than one thing, and why that does not mislead.
SHARED = {
    "of a command and of the verb that it calls": {
        "augment", "check", "clear", "compare", "doctor", "ensemble", "evaluate", "export", "find_lr", "plan",
        "rank", "run", "shard", "soup", "tune",
    },
    "verbs that are always read with their module: recipe.load, split.read, page.write, sheet.draw, best.settle": {
        "draw", "list_them", "load", "read", "show", "told", "write",
    },
    "control characters spelt out: names in a file's text, or all that a terminal shows": {"printable"},
}  # fmt: skip


def test_a_public_name_stands_for_one_thing() -> None:
    homes = defaultdict(set)
    for module in MODULES:
        for node in ast.parse((PACKAGE / module).read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(str(module))
    doubled = {name for name, modules in homes.items() if len(modules) > 1 and "classics" not in str(modules)}
    assert doubled == {name for names in SHARED.values() for name in names}
