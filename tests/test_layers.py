"""Imports run downwards only, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

LAYERS = (
    {"accepted"},
    {"config"},
    {"launch", "distributed"},
    {"runs", "options", "artifacts"},
    {"validation", "preflight", "cells"},
    {"cli", "tiff", "model", "data", "losses", "metrics", "statistics", "figures"},
    {"gradients", "pictures"},
    {
        "tiling",
        "engines",
        "module",
        "callbacks",
        "flow_readings",
        "loggers",
        "checkpoint",
        "summary",
        "lesions",
        "layer_sync",
    },
    {"guards", "checkpointing"},
    {"build", "exported"},
    {"predictor", "exporting"},
    {"reporting", "wandb_report", "outputs", "demo_page"},
    {"train", "evaluate", "predict", "export", "demo", "ablate", "report"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "unetseg").rglob("*.py"))


def part_of(dotted: str) -> str:
    """Return the layer's name of unetseg.data.pets: data."""
    return dotted.split(".")[1]


def imported(path) -> set[str]:
    """Return the modules of unetseg that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "unetseg":
            found |= {f"unetseg.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unetseg."):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("unetseg.")}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "unetseg" or p.stem != "__init__"], ids=str)
def test_a_file_imports_only_from_layers_below_its_own(path):
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imported(path):
        assert part_of(module) == own or RANK[part_of(module)] < RANK[own], f"{path.name} imports {module}"


def test_every_file_has_a_layer():
    assert {part_of(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in FILES} <= RANK.keys() | {"__init__"}


@pytest.mark.parametrize("module", ["unetseg", "unetseg.train", "unetseg.evaluate", "unetseg.report"])
def test_what_starts_fast_imports_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'lightning', 'wandb', 'cv2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_stay_under_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300
