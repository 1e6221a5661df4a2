"""The end of a run: where it came from, and tables of its scores."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unetseg import launch
from unetseg.names import counted, minutes, shown

if TYPE_CHECKING:
    import pandas as pd

SPARE = ("images/s", "Dice", "weights", "per image", "time", "encoder", "boundary")
"""Columns of the runs that are left out where they don't fit, the first ones first."""
SPARE_OF_CLASSES = ("Dice", "pixels", "precision", "recall")
WORDS = ("skip", "encoder", "group", "class", "cut by", "weighed", "shift", "features")
"""Columns of words."""
SCORES = (("IoU", "iou"), ("boundary", "boundary_iou"))
PACKAGES = ("torch", "torchvision", "lightning", "segmentation-models-pytorch", "albumentations", "numpy")


def provenance() -> dict[str, Any]:
    """Return what is needed to repeat a run: command, versions, git commit, machine."""
    versions = {name: _version(name) for name in ("unetseg", *PACKAGES)}
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "command": launch.command_line(),
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": git_commit(),
        "machine": f"{platform.machine()}, {counted(torch.get_num_threads(), 'thread')}{gpu}",
    }


def git_commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" where tracked files differ; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changed.stdout.strip() else "")


def show(summaries: Sequence[dict[str, Any]]) -> None:
    """Print the run of a command as a list, or its runs as a table of one row each."""
    rows = [
        {
            "skip": s["variant"],
            "encoder": s["encoder"],
            "seed": str(s["seed"]),
            **_scores({name.removeprefix("test/"): value for name, value in s.items()}),
            "weights": f"{s['parameters'] / 1e6:.2f} M",
            "images/s": f"{s['images_per_second']:.1f}",
            "time": minutes(s["seconds"]),
        }
        for s in summaries
    ]
    if len({(row["skip"], row["encoder"], row["seed"]) for row in rows}) < len(rows):  # they differ in something else
        rows = [{"run": Path(s["folder"]).name, **row} for s, row in zip(summaries, rows, strict=True)]
    if len(rows) == 1:
        print("\n".join(["on the test split", *(f"  {name:10} {shown(value)}" for name, value in rows[0].items()), ""]))
    else:
        _print_table("on the test split", rows, SPARE)
    seeds_of: dict[tuple[Any, ...], set[int]] = {}
    for entry in summaries:
        seeds_of.setdefault((entry["variant"], entry["encoder"]), set()).add(entry["seed"])
    if len(seeds_of) > 1 and all(len(seeds) == 1 for seeds in seeds_of.values()):
        print("one seed decides nothing between these settings; the same command with seed=0,1,2 would\n")
    for entry in summaries:
        print(entry["folder"])


def show_groups(groups: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Print the scores of each group, and below them those over all images."""
    over_all = {name.removeprefix("test/"): value for name, value in summary.items() if name.startswith("test/")}
    group_rows = groups.to_dict("records") if len(groups) > 1 else []
    rows = [*group_rows, {"group": "all", **over_all}]
    single = sum(row["images"] == 1 for row in group_rows)
    of_one = f"; {single} of {len(group_rows)} groups are one image" if single else ""
    _print_table(
        f"on the {summary['split']} split{of_one}",
        [{"group": row["group"], "images": str(row["images"]), **_scores(row)} for row in rows],
    )


def show_surfaces(summary: dict[str, Any]) -> None:
    """Print how far surfaces are off, and how far confidence is."""
    all_images, tolerance = counted(summary["test/images"], "image"), summary["test/nsd_tolerance"]
    print(f"HD95 {summary['test/hd95']:.2f} px, over {summary['test/hd95_images']} of {all_images}")
    print(f"NSD {summary['test/nsd']:.3f} at {tolerance:g} px, over {summary['test/nsd_images']} of {all_images}")
    print(f"ECE {summary['test/ece']:.3f}\n")


def show_classes(classes: pd.DataFrame) -> None:
    """Print the scores of each class."""
    rows = [
        {
            "class": row["class"],
            "IoU": _score(row["iou"]),
            "Dice": _score(row["dice"]),
            "boundary": _score(row["boundary_iou"]),
            "precision": _score(row["precision"]),
            "recall": _score(row["recall"]),
            "HD95": _score(row["hd95"], digits=2),
            "NSD": _score(row["nsd"]),
            "pixels": f"{row['pixels']:,}",
            "images": str(row["images"]),
        }
        for row in classes.to_dict("records")
    ]
    _print_table("by class, over all pixels; HD95 and NSD are means over the images", rows, SPARE_OF_CLASSES)


def _score(value: float, digits: int = 3) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def show_lesions(tables: dict[str, pd.DataFrame]) -> None:
    """Print the scores that are lost when each level alone and all levels are cut, and each level's Shapley value."""
    lesion, worth = tables["lesion"], tables["shapley"].set_index(["cut", "level"])
    levels = [str(level) for level in worth.index.unique("level")]
    shown_rows = lesion[lesion.levels.isin([*levels, "+".join(levels)])]
    for title, name in SCORES:
        rows = []
        for _, row in shown_rows.iterrows():
            alone = row["levels"] in levels
            share = _with_interval(worth.loc[(row["cut"], int(row["levels"]))], name) if alone else ""
            lost = _with_interval(row, f"{name}_loss")
            level = row["levels"] if alone else "all"
            rows.append({"cut by": row["cut"], "level": level, f"{title} lost": lost, f"{title} Shapley": share})
        _print_table("what this model loses without its long skips (95 % over the images)", rows)


def show_shifts(table: pd.DataFrame) -> None:
    """Print the scores that are lost at each strength of each shift."""
    for title, name in SCORES:
        rows = []
        for shift, of_shift in table[table.strength > 0].groupby("shift", sort=False):
            lost = {str(row["strength"]): f"{row[f'{name}_loss']:.3f}" for _, row in of_shift.iterrows()}
            last = of_shift.iloc[-1]
            rows.append({"shift": str(shift), **lost, "95 % at 5": _ends(last, f"{name}_loss")})
        clean = table[table.strength == 0].iloc[0][name]
        _print_table(f"{title} lost by the strength of a shift, of {clean:.3f} (95 % over the images)", rows)


def show_freeu(table: pd.DataFrame) -> None:
    """Print how the scores change where the deep path, the long skips or both are weighed by FreeU's factors."""
    rows = [
        {
            "weighed": row["part"],
            "levels": row["levels"],
            "b": f"{row['b']:g}",
            "s": f"{row['s']:g}",
            **{f"{title} change": _with_interval(row, f"{name}_difference") for title, name in SCORES},
        }
        for _, row in table[table.part != "none"].iterrows()
    ]
    _print_table("what FreeU changes: the score less the untouched network's (95 % over the images)", rows)


MECHANISM_TITLES = {
    **{name: f"{name} of what meets at each level (95 % over the images)" for name in ("similarity", "rank", "reuse")},
    "sharpness": "curvature of the loss (top: the largest eigenvalue of the Hessian) and its rise (95 % over images)",
    "shattering": "gradients of neighbouring inputs, one point apart, by depth (95 % over lines between images)",
    "hellinger": "Hellinger distance of the features from those of training pictures (95 % over the images)",
    "norm_changes": "norms of the features over the readings of the training; change: from one to the next, relative",
}
"""What stands above a mechanism's table; of the others there is the figure alone."""


def show_mechanism(name: str, table: pd.DataFrame) -> None:
    """Print the table of a mechanism where it has a few rows."""
    if name not in MECHANISM_TITLES or not len(table):
        return
    rows = []
    for _, row in (table[table.lag == 1] if name == "shattering" else table).iterrows():
        intervals = {column for column in table if f"{column}_low" in table}
        numbers = [column for column in table if not str(column).endswith(("_low", "_high"))]
        ends = {n: f" [{row[f'{n}_low']:.3g}, {row[f'{n}_high']:.3g}]" for n in intervals}
        rows.append({str(n): _shown(row[n]) + ends.get(n, "") for n in numbers})
    _print_table(MECHANISM_TITLES[name], rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


def show_path_lengths(table: pd.DataFrame) -> None:
    """Print the shares of the gradient by the number of residual branches that they have passed."""
    named = table.rename(columns={"low": "share_low", "high": "share_high"})
    rows = [
        {"residual branches": f"{row['residual_branches']:.0f}", "share": _with_interval(row, "share")}
        for _, row in named.iterrows()
    ]
    _print_table("gradient at the first residual block by the branches on its way (95 % over the images)", rows)


def _with_interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} {_ends(row, name)}"


def _ends(row: pd.Series, name: str) -> str:
    return f"[{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _scores(row: dict[str, Any]) -> dict[str, str]:
    names = {"IoU": "iou", "per image": "iou_per_image", "Dice": "dice", "boundary": "boundary_iou"}
    return {title: f"{row[name]:.3f}" for title, name in names.items()}


def _print_table(title: str, rows: Sequence[dict[str, str]], spare: Sequence[str] = ()) -> None:
    """Print rows of strings under their names, within the width of the terminal.

    Args:
        title: stands above.
        rows: of the same names each; words stand left, numbers right.
        spare: names that are left out where the terminal is too narrow for all, the first ones first. A group's name
            goes on in the next line.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    names = list(rows[0])
    for least in spare:
        if (
            console.measure(_table(title, rows, names), options=console.options.update(width=1000)).maximum
            <= console.width
        ):
            break
        names.remove(least)
    console.print(_table(title, rows, names))


def _table(title: str, rows: Sequence[dict[str, str]], names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        justify: Literal["left", "right"] = "left" if name in WORDS else "right"
        table.add_column(name, justify=justify, no_wrap=name != "group", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(row[name])) for name in names))
    return table


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
