"""The rooms and the one direction between them, and the house rules a program can check."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("pipelines", "ssr_cli") for path in (ROOT / package).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]
LINES = 400

FLOORS = [
    # each may use the rooms below it; those on one floor may use one another, but not in a circle
    {"ssr_cli"},
    {"pipelines.stages"},
    {"pipelines.workdir", "pipelines.mmsegmentation"},
    {"pipelines.method"},
    {"pipelines.training"},
    {"pipelines.models"},
    {"pipelines.encoders", "pipelines.figures"},
    {"pipelines.datasets", "pipelines.execution", "pipelines.evaluation"},
    {"pipelines.stores", "pipelines.ops", "pipelines.config"},
    {"pipelines.options", "pipelines.sample", "pipelines.plugins", "pipelines.errors"},
]
OPS_MAY = {"numpy", "torch", "PIL", "skimage", "sklearn", "threadpoolctl", "pydensecrf"}


def room_of(module: str) -> str:
    """``pipelines.stages.cams`` -> ``pipelines.stages``."""
    parts = module.split(".")
    return parts[0] if parts[0] == "ssr_cli" else ".".join(parts[:2])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, inside functions and for types too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [f"{node.module}.{alias.name}" if node.module == "pipelines" else str(node.module) for alias in node.names]
    return found


def floor(room: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


def test_there_are_files_and_every_room_is_known():
    assert len(FILES) > 50
    rooms = {room_of(module_of(path)) for path in FILES} - {"pipelines", "pipelines.recipes"}
    assert rooms == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_downwards(path):
    own = room_of(module_of(path))
    if own in {"pipelines", "pipelines.recipes"}:
        assert imports_of(path) == []
        return
    for module in imports_of(path):
        if module.split(".")[0] in {"pipelines", "ssr_cli"}:
            room = room_of(module)
            assert room == own or floor(room) >= floor(own), f"{own} imports {module}"


def test_rooms_do_not_form_a_circle():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        own = room_of(module_of(path))
        used = {room_of(m) for m in imports_of(path) if m.split(".")[0] in {"pipelines", "ssr_cli"}}
        edges.setdefault(own, set()).update(used - {own})
    done: set[str] = set()
    while len(done) < len(edges):
        free = {room for room in edges if room not in done and edges[room] <= done | {"pipelines.errors"}}
        assert free, f"a circle among {sorted(set(edges) - done)}"
        done |= free


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "ops"], ids=lambda path: path.name)
def test_ops_know_arrays_and_nothing_else(path):
    for module in imports_of(path):
        known = (
            module.startswith(("pipelines.ops", "pipelines.errors"))
            or module.split(".")[0] in OPS_MAY | sys.stdlib_module_names
        )
        assert known, f"{path.name} imports {module}"
        assert module.split(".")[0] not in {"pathlib", "os", "io", "h5py", "json"}, (
            f"{path.name} imports {module}: ops hold no files"
        )


@pytest.mark.parametrize("path", [p for p in FILES if "pipelines" in p.parts], ids=lambda path: path.name)
def test_library_neither_prints_nor_reads_the_command_line(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input", "exit", "quit", "breakpoint"}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            assert node.attr not in {"argv", "exit", "stdout", "stderr"}, f"{path}:{node.lineno}"
    assert not {"typer", "rich", "click", "argparse"} & {module.split(".")[0] for module in imports_of(path)}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_house_style(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES, f"{path} has {len(text.splitlines())} lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    if len(tree.body) > 1:
        assert "from __future__ import annotations" in text


def public(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.AST]]:
    """Public functions, classes and methods, not those inside functions or private classes."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public(node, f"{prefix}{node.name}.")
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_everything_public_is_documented(path):
    bare = [name for name, node in public(ast.parse(path.read_text(encoding="utf-8"))) if not ast.get_docstring(node)]
    assert not bare


UNSAFE = {"pickle.load", "pickle.loads", "yaml.load", "eval", "exec", "os.system", "torch.hub.load"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_unsafe_is_called(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE, f"{path}:{node.lineno}"
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert given.get("shell") != "True", f"{path}:{node.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"


def test_only_scoring_and_asking_open_ground_truth():
    """`read_mask` and `labels_from_masks` are the only doors; these rooms use them, both trainings only where told to."""
    users = {module_of(path) for path in FILES if any("ground_truth" in m or "mask_labels" in m for m in imports_of(path))}
    assert users == {
        "pipelines.stages.evaluate",
        "pipelines.stages.retrain.data",
        "pipelines.stages.show",
        "pipelines.stages.train.crops",
        "pipelines.stages.train.validation",
        "pipelines.datasets.labels",
    }
