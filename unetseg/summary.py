"""summary.json: what a run was and what came out, and the table that is shown at its end."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PACKAGES = ("torch", "torchvision", "lightning", "segmentation-models-pytorch", "albumentations", "numpy")


def cost(model: nn.Module, size: int) -> dict[str, int]:
    """Return the parameters, and the floating-point operations of one forward pass of one size x size picture.

    A multiplication with its addition counts as two, in convolutions and matrix products (torch.utils.flop_counter).
    """
    was_training = model.training
    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    model.train(was_training)
    return {"parameters": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops()}


def provenance() -> dict[str, Any]:
    """Return what is needed to repeat a run: command, versions, git commit, machine."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version(), "unetseg": _version("unetseg")}
        | {name: _version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }


def git_commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" where tracked files differ; None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changed.stdout.strip() else "")


def show(summaries: Sequence[dict[str, Any]]) -> None:
    """Print the runs of a call, one row each."""
    rows = [
        {
            "skip": s["variant"],
            "encoder": s["encoder"],
            "seed": str(s["seed"]),
            **_scores({name.removeprefix("test/"): value for name, value in s.items()}),
            "weights": f"{s['parameters'] / 1e6:.2f} M",
            "images/s": f"{s['images_per_second']:.1f}",
            "time": f"{int(s['seconds']) // 60}:{int(s['seconds']) % 60:02}",
        }
        for s in summaries
    ]
    _print_table("on the test split", rows)
    for entry in summaries:
        print(entry["folder"])


def show_groups(groups: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Print the scores of each group, and below them those over all images."""
    over_all = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith("test/")}
    rows = (
        [*groups.to_dict("records"), {"group": "all", **over_all}]
        if len(groups) > 1
        else [{"group": "all", **over_all}]
    )
    _print_table(
        f"on the {summary['split']} split",
        [{"group": row["group"], "images": str(row["images"]), **_scores(row)} for row in rows],
    )
    print(summary["folder"])


def _scores(row: dict[str, Any]) -> dict[str, str]:
    names = {"IoU": "iou", "per image": "iou_per_image", "Dice": "dice", "boundary": "boundary_iou"}
    return {title: f"{row[name]:.4f}" for title, name in names.items()}


def _print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """Print rows of strings under their names; words stand left, numbers right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("skip", "encoder", "group") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
