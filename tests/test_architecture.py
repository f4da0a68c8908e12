"""The rooms and the one direction between them, and the house rules a program can check."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from ssr_cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("pipelines", "ssr_cli") for path in (ROOT / package).rglob("*.py"))
LINES = 400

FLOORS = [
    # each may use the rooms below it; those on one floor may use one another, but not in a circle
    {"ssr_cli"},
    {"pipelines.stages"},
    {"pipelines.workdir", "pipelines.api", "pipelines.mmsegmentation"},
    {"pipelines.method"},
    {"pipelines.training"},
    {"pipelines.models"},
    {"pipelines.encoders", "pipelines.figures", "pipelines.exports", "pipelines.corrections"},
    {"pipelines.datasets", "pipelines.execution", "pipelines.evaluation"},
    {"pipelines.stores", "pipelines.ops", "pipelines.config"},
    {"pipelines.options", "pipelines.sample", "pipelines.plugins", "pipelines.errors"},
]
PLANNED = {"pipelines.api"}
EMPTY = {"pipelines", "pipelines.recipes"}  # rooms without code of their own
OPS_MAY = {"numpy", "torch", "PIL", "skimage", "sklearn", "pydensecrf", "rasterio"}
COMMAND_OF = {
    "evaluate": "eval",
    "features": "show",
    "label_free": "predict",
    "check_labels": "labels",
    "corrections": "import",
}  # files of stages/ whose command has another name
METHOD_WRITES = {("pipelines.method.label_maps", "pipelines.stores.mask_store")}  # a label-map worker writes its own PNG
FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "imread", "load_file", "save_file", "fromfile"}
GROUND_TRUTH = {
    "pipelines.stages.evaluate",
    "pipelines.stages.export",
    "pipelines.stages.report",
    "pipelines.stages.retrain.data",
    "pipelines.stages.review",
    "pipelines.stages.show",
    "pipelines.stages.train.crops",
    "pipelines.stages.train.validation",
    "pipelines.datasets.check",
    "pipelines.datasets.labels",
    "pipelines.datasets.mask_labels",
}
UNSAFE = {"pickle.load", "pickle.loads", "yaml.load", "eval", "exec", "os.system", "torch.hub.load"}


def room_of(module: str) -> str:
    """``pipelines.stages.cams`` -> ``pipelines.stages``."""
    parts = module.split(".")
    return parts[0] if parts[0] == "ssr_cli" else ".".join(parts[:2])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(path)))


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, inside functions and for types too."""
    return tuple(_imports(path, nodes_of(path)))


def _imports(path: Path, nodes: tuple[ast.AST, ...]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (
                f"{node.module}.{alias.name}" if node.module == "pipelines" else str(node.module) for alias in node.names
            )


def ours(path: Path) -> list[str]:
    """Modules of this project that a file imports."""
    return [module for module in imports_of(path) if module.split(".")[0] in {"pipelines", "ssr_cli"}]


def floor(room: str) -> int:
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


def offenders(check: Callable[[Path], Iterator[str]], files: list[Path] = FILES) -> list[str]:
    """What a check finds in all files, each with its place."""
    return [f"{path.relative_to(ROOT)}: {fault}" for path in files for fault in check(path)]


def files_of(*rooms: str) -> list[Path]:
    files = [path for path in FILES if room_of(module_of(path)) in rooms]
    assert files, rooms
    return files


def test_there_are_files_and_every_room_is_on_a_floor():
    assert len(FILES) > 50
    rooms = {room_of(module_of(path)) for path in FILES} - EMPTY
    assert rooms | PLANNED == set().union(*FLOORS)


def test_imports_point_downwards():
    def upward(path: Path) -> Iterator[str]:
        room = room_of(module_of(path))
        if room not in EMPTY:
            yield from (f"imports {m}" for m in ours(path) if room_of(m) != room and floor(room_of(m)) < floor(room))

    assert offenders(upward) == []


def test_package_itself_imports_nothing_until_a_name_is_asked_for():
    """`import pipelines` is instant: what it offers is imported inside functions, or for type checkers only."""
    path = ROOT / "pipelines/__init__.py"
    at_once = tuple(
        node for node in tree_of(path).body if not isinstance(node, ast.If) or "TYPE_CHECKING" not in ast.unparse(node.test)
    )
    nodes = tuple(inner for node in at_once if not isinstance(node, ast.FunctionDef) for inner in ast.walk(node))
    assert {module.split(".")[0] for module in _imports(path, nodes)} <= sys.stdlib_module_names
    assert imports_of(ROOT / "pipelines/recipes/__init__.py") == ()


def test_rooms_do_not_form_a_circle():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        room = room_of(module_of(path))
        edges.setdefault(room, set()).update({room_of(module) for module in ours(path)} - {room})
    done: set[str] = set()
    while len(done) < len(edges):
        free = {room for room in edges if room not in done and edges[room] <= done}
        assert free, f"a circle among {sorted(set(edges) - done)}"
        done |= free


def test_stages_holds_commands_only():
    names = {
        path.stem for path in (ROOT / "pipelines/stages").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {COMMAND_OF.get(name, name) for name in names - {"__init__", "launch"}} <= set(COMMANDS)


def test_method_opens_no_file():
    """It is handed arrays and hands back arrays; `METHOD_WRITES` is the exception."""

    def opening(path: Path) -> Iterator[str]:
        for module in imports_of(path):
            store = module.startswith(("pipelines.stores", "h5py", "safetensors"))
            if store and (module_of(path), module) not in METHOD_WRITES:
                yield f"imports {module}"
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in FILE_CALLS:
                yield f"{node.lineno} calls {ast.unparse(node.func)}"

    assert offenders(opening, files_of("pipelines.method")) == []


def test_ops_know_arrays_and_nothing_else():
    def other(path: Path) -> Iterator[str]:
        for module in imports_of(path):
            top = module.split(".")[0]
            known = module.startswith(("pipelines.ops", "pipelines.errors")) or top in OPS_MAY | sys.stdlib_module_names
            if not known or top in {"pathlib", "os", "io", "h5py", "json"}:
                yield f"imports {module}"

    assert offenders(other, files_of("pipelines.ops")) == []


def test_library_neither_prints_nor_reads_the_command_line():
    def speaking(path: Path) -> Iterator[str]:
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in {"print", "input", "exit", "quit", "breakpoint"}:
                    yield f"{node.lineno} calls {node.func.id}"
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.argv", "sys.exit", "sys.stdout", "sys.stderr"}:
                yield f"{node.lineno} uses {ast.unparse(node)}"
        yield from {"typer", "rich", "click", "argparse"} & {module.split(".")[0] for module in imports_of(path)}

    assert offenders(speaking, [path for path in FILES if "pipelines" in path.relative_to(ROOT).parts]) == []


def public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions, classes and methods, not those inside functions or private classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def test_house_style():
    """Files are short, and they and everything public are documented."""

    def odd(path: Path) -> Iterator[str]:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LINES:
            yield f"{len(text.splitlines())} lines"
        if not ast.get_docstring(tree_of(path)):
            yield "no docstring"
        if len(tree_of(path).body) > 1 and "from __future__ import annotations" not in text:
            yield "no `from __future__ import annotations`"
        yield from (f"{name} has no docstring" for name, node in public(tree_of(path)) if not ast.get_docstring(node))

    assert offenders(odd) == []


def test_nothing_unsafe_is_called():
    def unsafe(path: Path) -> Iterator[str]:
        for node in nodes_of(path):
            if isinstance(node, ast.Call):
                name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                if (
                    name in UNSAFE
                    or (name == "torch.load" and given.get("weights_only") != "True")
                    or given.get("shell") == "True"
                    or given.get("allow_pickle", "False") != "False"
                ):
                    yield f"{node.lineno} {ast.unparse(node)}"

    assert offenders(unsafe) == []


def test_only_scoring_and_asking_open_ground_truth():
    """`read_mask` and `labels_from_masks` are the only doors; these files use them, both trainings only where told to."""
    users = {module_of(path) for path in FILES if any("ground_truth" in m or "mask_labels" in m for m in imports_of(path))}
    assert users == GROUND_TRUTH
