"""summary.json: what a run was and what came out, and the table that is shown at its end."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    import pandas as pd

LESION_SCORES = (("IoU", "iou"), ("boundary", "boundary_iou"))
PACKAGES = ("torch", "torchvision", "lightning", "segmentation-models-pytorch", "albumentations", "numpy")


def cost(model: nn.Module, size: int) -> dict[str, int]:
    """Return what the model costs for one picture of size x size.

    Returns:
        parameters; flops: floating-point operations of a forward pass, where a multiplication with its addition counts
        as two, in convolutions and matrix products (torch.utils.flop_counter); activation_memory: bytes that a forward
        pass in float32 keeps for the backward pass, the peak of a training step besides weights and gradients.
    """
    was_training = model.training
    device = next(model.parameters()).device
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    uncompiled = torch.compiler.set_stance("force_eager")  # what is compiled may keep less, and can't be counted
    with torch.enable_grad(), uncompiled, hooks, FlopCounterMode(display=False) as counter:
        # in eval mode, which keeps the same tensors: a batch of one is too small for batch normalisation's statistics
        logits = model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    del logits  # until here the kept storages were alive, so that no address was used twice
    model.train(was_training)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": counter.get_total_flops(),
        "activation_memory": sum(kept.values()),
    }


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


def show_lesions(tables: dict[str, pd.DataFrame]) -> None:
    """Print what each level alone and all together lose when cut, and each level's Shapley value."""
    lesion, worth = tables["lesion"], tables["shapley"].set_index(["cut", "level"])
    levels = [str(level) for level in worth.index.unique("level")]
    rows = []
    for _, row in lesion[lesion.levels.isin([*levels, "+".join(levels)])].iterrows():
        alone = row["levels"] in levels
        line = {"cut by": row["cut"], "level": row["levels"] if alone else "all"}
        for title, name in LESION_SCORES:
            line[f"{title} lost"] = _with_interval(row, f"{name}_loss")
            share = worth.loc[(row["cut"], int(row["levels"]))] if alone else None
            line[f"{title} Shapley"] = "" if share is None else _with_interval(share, name)
        rows.append(line)
    _print_table("what this model loses without its long skips (95 % over the images)", rows)


def _with_interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _scores(row: dict[str, Any]) -> dict[str, str]:
    names = {"IoU": "iou", "per image": "iou_per_image", "Dice": "dice", "boundary": "boundary_iou"}
    return {title: f"{row[name]:.4f}" for title, name in names.items()}


def _print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """Print rows of strings under their names; words stand left, numbers right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(
            name, justify="left" if name in ("skip", "encoder", "group", "cut by") else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
