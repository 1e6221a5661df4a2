"""Imports run downwards only, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

FLOORS = (
    {"names", "errors"},
    {"files", "launch", "classes"},
    {"huggingface"},
    {"gradients", "options"},
    {"data", "model"},
    {"runs"},
    {"evaluation"},
    {"inference", "training", "reporting"},
    {"train", "evaluate", "predict", "export", "demo", "ablate", "report", "exporting", "data.__main__"},
    {"__init__", "console"},
)
"""From the ground up: a package imports from floors below its own, and from itself."""
HIDDEN = {
    "gradients": {"options", "errors", "files", "launch"},
    "data": {"options", "gradients"},
    "model": {"options", "gradients"},
    "evaluation": {"options", "gradients"},
    "inference": {"options", "gradients"},
    "reporting": {"gradients"},
}
"""What lies below a package, and is none of its business."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted((ROOT / "unetseg").rglob("*.py"))


def room_of(path) -> str:
    """Return the file's package below unetseg, or its own name at the top; a package's __main__ is a command."""
    parts = path.relative_to(ROOT / "unetseg").with_suffix("").parts
    return ".".join(parts) if parts[-1] == "__main__" else parts[0]


def imported(path) -> set[str]:
    """Return the modules of unetseg that a file imports, dotted, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "unetseg":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unetseg."):
            base = node.module.removeprefix("unetseg.")
            below = ROOT / "unetseg" / base.replace(".", "/")
            modules |= {f"{base}.{a.name}" if (below / f"{a.name}.py").exists() else base for a in node.names}
        elif isinstance(node, ast.Import):
            modules |= {a.name.removeprefix("unetseg.") for a in node.names if a.name.startswith("unetseg.")}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_package_and_the_floors_below(path):
    own = room_of(path)
    for module in imported(path):
        room = module.partition(".")[0]
        assert room == own or FLOOR[room] < FLOOR[own], f"{path.name} imports {module}"
        assert room not in HIDDEN.get(own, ()), f"{path.name} imports {module}"


def test_every_file_has_a_floor():
    assert {room_of(path) for path in FILES} == FLOOR.keys()


def test_no_file_imports_itself_by_way_of_others():
    graph = {".".join(p.relative_to(ROOT / "unetseg").with_suffix("").parts): imported(p) for p in FILES}
    graph = {name.removesuffix(".__init__"): modules for name, modules in graph.items()}
    while leaves := {name for name, modules in graph.items() if not modules & graph.keys()}:
        graph = {name: modules - leaves for name, modules in graph.items() if name not in leaves}
    assert not graph, f"these import each other in a circle, or what does: {sorted(graph)}"


def test_few_files_know_the_options():
    knowing = [p for p in FILES if room_of(p) != "options" and any(m.startswith("options") for m in imported(p))]
    assert len(knowing) <= 20, knowing


def test_the_top_holds_the_commands_and_the_ground_only():
    assert len(list((ROOT / "unetseg").glob("*.py"))) <= 15


@pytest.mark.parametrize(
    "module", ["unetseg", *(f"unetseg.{name}" for name in ("train", "evaluate", "ablate", "report"))]
)
def test_what_starts_fast_imports_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'lightning', 'wandb', 'cv2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_network_alone_brings_neither_options_nor_lightning():
    code = (  # smp itself brings much along
        "import sys, segmentation_models_pytorch; before = set(sys.modules); from unetseg.model import SkipUnet; "
        "parts = ('pydantic', 'pydantic_core', 'hydra', 'omegaconf', 'lightning', 'unetseg.options'); "
        "print([name for name in parts if name in sys.modules.keys() - before])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
