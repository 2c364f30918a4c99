"""The house rests on its plan: who imports whom, how far, and how much stands in one place."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
PACKAGES = ("moeut", "tasks", "runners")

SHELF = 15
"""Rooms on the top floor of ``runners``; commands are thin files beside them."""
LINES = 450
"""Length of a file."""
IMPORTED = 30
"""Own modules that ``import runners.train`` executes; what a run needs is imported after that."""
TRAINED = 130
"""Own modules that are loaded when the quickstart's MoEUT has trained and is scored."""

FLOORS = (
    {"tasks", "moeut"},
    {"config", "process"},
    {"training", "scoring", "reporting"},
    {"run"},
    {"sweeping", "analysis"},
    {
        "bench",
        "sweep",
        "train",
        "evaluate",
        "report",
        "generate",
        "export",
        "harness",
        "analyze",
        "watch",
        "compare",
    },
)
"""Rooms of ``runners`` from the ground up: each imports from its own floor and those below."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports() -> dict[str, set[str]]:
    """Return what each module imports of the packages, wherever in the file it says so.

    Imports in functions count, and those for type checkers alone.
    """
    return {
        name: set(_named_by(ast.walk(_parse(path)), name, path)) for name, path in modules().items()
    }


def _parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _executed(node):
    """Yield the statements that importing a module executes: functions' and type checkers' not."""
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if is_function or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            continue
        yield child
        yield from _executed(child)


def _named_by(nodes, module, path):
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = name if name in modules() else name.rpartition(".")[0]
            if found in modules() and found != module:
                yield found


def reach(start: str) -> set[str]:
    """Return the modules that importing one executes, with the packages that they lie in."""
    found: set[str] = set()
    left = [start]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += _named_by(_executed(_parse(modules()[name])), name, modules()[name])
            left += [name.rpartition(".")[0]] if "." in name else []
    return {name for name in found if not _is_docstring(modules()[name])}


def _is_docstring(path: Path) -> bool:
    return path.name == "__init__.py" and len(_parse(path).body) <= 1


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name):
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


@pytest.mark.parametrize(
    ("package", "others"), [("moeut", ("tasks", "runners")), ("tasks", ("moeut", "runners"))]
)
def test_packages_import_one_way(package, others):
    arrows = [
        f"{name} -> {other}"
        for name, found in imports().items()
        if name.split(".")[0] == package
        for other in found
        if other.split(".")[0] in others
    ]
    assert arrows == []


def test_no_module_imports_itself_through_others():
    assert circles(imports()) == []


def test_rooms_of_runners_import_from_their_floor_and_those_below():
    floor_of = {room: height for height, floor in enumerate(FLOORS) for room in floor}

    def place(name):
        parts = name.split(".")
        return parts[1] if parts[0] == "runners" and len(parts) > 1 else parts[0]

    assert {place(name) for name in modules()} <= {*floor_of, "runners"}
    arrows = [
        f"{name} -> {other}"
        for name, found in imports().items()
        for other in found
        if "runners" not in (place(name), place(other))
        and floor_of[place(name)] < floor_of[place(other)]
    ]
    assert arrows == []


def test_top_floor_of_runners_is_a_shelf():
    rooms = {path.parent.name for path in (ROOT / "runners").glob("*/__init__.py")}
    assert len(rooms) <= SHELF, sorted(rooms)


def test_files_are_short():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules().values()
    }
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_importing_the_command_reads_few_modules():
    assert len(reach("runners.train")) <= IMPORTED, sorted(reach("runners.train"))


TRAIN = """
import sys
from runners import train
status = train.main(sys.argv[1:])
packages = ("moeut", "tasks", "runners")
compiler = [name for name in ("torch._dynamo", "sympy") if name in sys.modules]
print(*compiler)
print(status, *(name for name in sys.modules if name.partition(".")[0] in packages))
"""


def test_a_training_run_reads_few_modules(tmp_path):
    """And no kind of block, task or objective that it does not have."""
    sweep = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    run = sweep["base"]
    run["model"] |= sweep["variants"]["moeut"]["model"]
    run["train"] |= {"steps": 1, "warmup_steps": 0, "batch_size": 2}
    run["evaluate"] = {"splits": ["iid"], "rows_per_category": 1}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(run), encoding="utf-8")
    command = [sys.executable, "-c", TRAIN, str(config), f"--run-directory={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    compiler, line = done.stdout.splitlines()[-2:]
    status, *loaded = line.split()
    assert status == "0", done.stderr
    assert len(loaded) <= TRAINED, sorted(loaded)
    if hasattr(TorchDispatchMode, "_should_skip_dynamo"):
        assert compiler == ""  # more than a second of every process, for those who never compile
    others = {
        "moeut.blocks.attention.dense",
        "moeut.blocks.feed_forward.dense",
        "moeut.presets",
        "moeut.recurrence.halting",
        "runners.scoring.text",
        "tasks.base.text",
        "tasks.scan",
    }
    assert others <= set(modules())
    assert not others & set(loaded)
