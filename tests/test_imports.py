"""The import direction between rooms, as a table; a new arrow is a change to this file. And who stays without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOT_MODULES = {"settings", "messages", "telemetry", "freed_memory", "grammar", "file_store", "images", "web_target"}
MAY_IMPORT: dict[str, set[str]] = {
    "messages": set(),
    "freed_memory": set(),
    "grammar": {"messages"},
    "images": {"messages"},
    "web_target": set(),
    "settings": {"messages"},
    "telemetry": {"settings"},
    "file_store": {"messages"},
    "observability": ROOT_MODULES,
    "kernels": set(),
    "broker": ROOT_MODULES | {"observability"},
    "engine": ROOT_MODULES | {"kernels"},
    "kv_transfer": ROOT_MODULES | {"kernels"},
    "prefill_worker": ROOT_MODULES | {"broker", "engine", "kv_transfer", "observability"},
    "decode_worker": ROOT_MODULES | {"broker", "engine", "kv_transfer", "kernels", "observability"},
    "api": ROOT_MODULES | {"broker", "observability"},
    "batch_worker": ROOT_MODULES | {"broker", "observability"},
    "bench": {"settings", "messages"},
    # A simulation decides by the workers' own schedulers, which are pure, and speaks of loads and figures as the bench.
    "planning": ROOT_MODULES | {"bench", "prefill_worker", "decode_worker"},
    "cli": ROOT_MODULES | {"broker", "observability"},
}
# Inside a function only: one command's room, loaded when that command is run.
MAY_IMPORT_LAZILY: dict[str, set[str]] = {
    "cli": {"api", "prefill_worker", "decode_worker", "bench", "engine", "kv_transfer", "planning", "batch_worker"},
    "bench": {"engine"},
}
# The in-process baseline that the queue path is compared with; the load generator itself knows HTTP only.
# And what launches kernels alone, which the load generator never loads; and what tells whether all of it works here.
MAY_IMPORT_UNDER: dict[str, set[str]] = {
    "bench/in_process.py": {"engine"},
    "bench/kernels": {"kernels", "engine"},
    "bench/kv_transfer.py": {"kernels", "kv_transfer"},
    "bench/chaos": {
        "broker",
        "cli",
        "decode_worker",
        "engine",
        "kernels",
        "kv_transfer",
        "prefill_worker",
        "telemetry",
    },
    # Two workers that run as they are, with marks in them.
    "bench/handoff": {"broker", "cli", "decode_worker", "engine", "kv_transfer", "prefill_worker"},
    "bench/doctor": {"kernels", "engine", "kv_transfer"},
    # A model that writes by schemas, and a judge.
    "bench/guided": {"engine"},
    # Workers without a model, beside the Redis that `pdq serve` brings along.
    "bench/relay": {"broker", "cli", "telemetry"},
    # A cluster whose workers sleep in place of computing.
    "bench/scaling": {"broker", "cli", "engine"},
    # Those who read what comes through Redis.
    "bench/chaos/fuzz.py": {"broker", "kv_transfer"},
    # A cluster in one thread: the rooms' own loops, stepped.
    "bench/chaos/protocol": {"broker", "engine", "kv_transfer", "prefill_worker", "decode_worker"},
    # What steps cost is measured with the engine itself.
    "planning/step_bench.py": {"engine", "kernels"},
    "cli/doctor.py": {"bench"},
    "cli/host_checks.py": {"bench", "kernels"},
}


def python_files(room: str) -> list[Path]:
    module = ROOT / f"{room}.py"
    return [module] if module.exists() else sorted((ROOT / room).rglob("*.py"))


def imported_names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        # `from . import x` has no module; the house imports by full name only.
        return {node.module if node.module and not node.level else "."}
    return set()


def imports(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Top-level names imported (when the module is loaded, inside functions)."""
    eager: set[str] = set()
    lazy: set[str] = set()

    def visit(node: ast.AST, is_lazy: bool) -> None:
        (lazy if is_lazy else eager).update(name.split(".")[0] for name in imported_names(node))
        for child in ast.iter_child_nodes(node):
            visit(child, is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, False)
    return eager, lazy


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_downwards(room: str) -> None:
    files = python_files(room)
    assert files
    for file in files:
        eager, lazy = imports(ast.parse(file.read_text()))
        rooms = MAY_IMPORT.keys() - {room}
        place = str(file.relative_to(ROOT))
        under = [rooms for folder, rooms in MAY_IMPORT_UNDER.items() if f"{place}/".startswith(f"{folder}/")]
        allowed = MAY_IMPORT[room].union(*under)
        assert eager & rooms <= allowed, file
        assert lazy & rooms <= allowed | MAY_IMPORT_LAZILY.get(room, set()), file
        assert "" not in eager | lazy, f"{file}: a relative import"


def test_every_room_is_in_the_table() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {path.stem for path in ROOT.glob("*.py")}
    assert rooms == MAY_IMPORT.keys()


def test_the_table_has_no_circle() -> None:
    remaining = dict(MAY_IMPORT)
    while remaining:
        free = [room for room, allowed in remaining.items() if not allowed & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for room in free:
            del remaining[room]


def test_the_lint_sees_a_planted_import() -> None:
    eager, lazy = imports(ast.parse("import broker.keys\ndef f():\n    from api.app import create_app\n"))
    assert (eager, lazy) == ({"broker"}, {"api"})


def module_names(*rooms: str) -> list[str]:
    names = []
    for room in rooms:
        for file in python_files(room):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__main__":  # importing one of these runs it
                names.append(".".join(parts).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize(
    "rooms",
    [("messages", "settings", "telemetry", "file_store", "observability", "broker", "batch_worker", "api"), ("cli",)],
    ids=lambda rooms: rooms[-1],
)
def test_torch_is_not_loaded_by(rooms: tuple[str, ...]) -> None:
    modules = [*module_names(*rooms), *(["cli.__main__"] if "cli" in rooms else [])]
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit(', '.join(sorted({'torch', 'transformers', 'triton'} & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["bench.cli", "planning.cli"])
def test_torch_is_not_loaded_by_the_load_generator_and_the_simulation(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


def test_the_sweep_of_shared_memory_needs_no_torch() -> None:
    """The janitor sweeps while `pdq serve` ends, within a second; loading torch takes two."""
    program = "import sys, kv_transfer.segment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
