"""Trains what the claims need, measures it, and keeps the numbers: a line of JSON for each training.

A cell is a setting on a bench with a seed. Its run folder lies below WORK and is needed until its numbers are kept. The
numbers lie in the repository: pages can be written and further seeds added on any machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book import literature, readings
from book.literature import BY_UNIT, SCORES, SETTINGS, Claim
from unetseg.ablate import show
from unetseg.evaluation.statistics import group_means
from unetseg.options.compose import compose
from unetseg.options.schema import Ablate
from unetseg.options.settings import override
from unetseg.reporting import results
from unetseg.reporting.comparisons import groups_of
from unetseg.runs.folder import RunFolder
from unetseg.runs.sweep import SweepRun, run_all

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs/claims/cells.jsonl"
COMMON = [
    *("experiment=skip_ablation", "logger=csv", "gradients.every_n_steps=20", "gradients.routes_every_n_steps=20"),
    *("trainer.precision=32-true", "data.workers=0", "optimizer.encoder_lr_factor=1.0"),
]
Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A set of pictures, and how networks are trained on it: 220 steps of 16 pictures or crops."""

    title: str
    options: Callable[[dict[str, Path]], list[str]]
    """Of the given paths: pets, sets, weights."""
    needs: tuple[str, ...]
    """The paths that must be given."""
    unit: str
    """What the scores of the test set are told by, singular."""
    pictures: str
    """How many there are of the samples at hand."""
    side: str = "data.size"
    """The option that a cell's size is for."""


def _pets(paths: dict[str, Path]) -> list[str]:
    return [override("data.root", str(paths["pets"])), "trainer.max_epochs=10", "trainer.check_val_every_n_epoch=2"]


def _nuclei(paths: dict[str, Path]) -> list[str]:
    return [
        *("data=folder", override("data.root", str(paths["sets"] / "nuclei"))),
        override("data.images", "stage1_{split}/{name}/images/*.png"),
        override("data.masks", "stage1_{split}/{name}/masks/*.png"),
        *("data.instances=true", "data.ratios=[0.5,0.15,0.35]"),
        *("trainer.max_epochs=110", "trainer.check_val_every_n_epoch=22"),
    ]


def _em(paths: dict[str, Path]) -> list[str]:
    return [
        *("data=folder", override("data.root", str(paths["sets"] / "em")), "data.classes=[membrane,cell]"),
        *(override("data.images", "image/{name}.png"), override("data.masks", "label/{name}.png")),
        *("data.ratios=[0.5,0.1,0.4]", "data.crops=23"),
        *("trainer.max_epochs=10", "trainer.check_val_every_n_epoch=2"),
    ]


def _pretrained(bench: Callable[[dict[str, Path]], list[str]]) -> Callable[[dict[str, Path]], list[str]]:
    """Return the options of a bench whose encoder is ResNet-50 with ImageNet's weights."""

    def options(paths: dict[str, Path]) -> list[str]:
        weights = override("model.weights", str(paths["weights"]))
        of_before = ("optimizer.lr=2e-4", "checkpoint.choose=best")
        return [*bench(paths), "model.encoder=resnet50", weights, *of_before]

    return options


PETS = "347 pictures to train on, 39 to validate, 174 of 24 breeds to test"
NUCLEI = "30 pictures to train on, 9 to validate, 21 to test"
EM = "15 slices to train on, 3 to validate, 12 to test, of one volume: the intervals are for its other slices"
WEIGHTS = "ResNet-50 with ImageNet's weights"
BENCHES = {
    "pets": Bench("Pets", _pets, ("pets",), "breed", PETS),
    "nuclei": Bench("nuclei", _nuclei, ("sets",), "picture", NUCLEI),
    "em": Bench("EM", _em, ("sets",), "picture", EM, "data.crop"),
    "pretrained": Bench(f"Pets, {WEIGHTS}", _pretrained(_pets), ("pets", "weights"), "breed", PETS),
    "pretrained_nuclei": Bench(f"nuclei, {WEIGHTS}", _pretrained(_nuclei), ("sets", "weights"), "picture", NUCLEI),
}


@dataclass(frozen=True)
class Cell:
    """One training.

    Examples:
        >>> Cell("pets", "none matched", 0, 64).name
        'pets_none-matched_64px_seed0'
    """

    bench: str
    setting: str
    seed: int
    size: int

    @property
    def name(self) -> str:
        """Return the name of its run folder."""
        return f"{self.bench}_{self.setting.replace(' ', '-')}_{self.size}px_seed{self.seed}"

    def overrides(self, paths: dict[str, Path]) -> list[str]:
        """Return its options."""
        bench = BENCHES[self.bench]
        own = [f"{bench.side}={self.size}", *SETTINGS[self.setting], f"seed={self.seed}"]
        return [*COMMON, *bench.options(paths), *own]


def kept(path: Path = KEPT) -> dict[Cell, Record]:
    """Return the numbers that are kept; of two lines for a cell the later one.

    Where both are of the same training, by its scores, the later one has the earlier one's other readings, too.

    Raises:
        ValueError: a line is none of these; the text says which.
    """
    found: dict[Cell, Record] = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            record = json.loads(line)
            cell = Cell(*(record[key] for key in ("bench", "setting", "seed", "size")))
            before = found.get(cell, {"readings": {}})
            same = all(before.get(name) == record[name] for name in SCORES)
            found[cell] = record | {"readings": (before["readings"] if same else {}) | record["readings"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}") from None
    return found


def missing(claim: Claim, cells: Iterable[Cell], known: dict[Cell, Record]) -> list[Cell]:
    """Return the cells that a claim still needs: those that aren't kept, or lack a reading that it wants."""
    wanted: dict[str | float, set[str]] = {}
    for contrast in claim.contrasts:
        for setting in (contrast.more, contrast.less):
            wanted.setdefault(setting, set()).add(contrast.reading)
    return [
        cell
        for cell in cells
        if cell.setting in wanted
        and (cell not in known or wanted[cell.setting] - {*BY_UNIT} - known[cell]["readings"].keys())
    ]


def train(cells: Sequence[Cell], paths: dict[str, Path], work: Path, jobs: int) -> list[Cell]:
    """Train what isn't trained yet, `jobs` at once; return the cells whose run is finished."""
    (work / "logs").mkdir(parents=True, exist_ok=True)
    runs = []
    for cell in cells:
        own = cell.overrides(paths)
        options = compose("ablate", Ablate, own)
        runs.append(SweepRun(cell.name, own, options, RunFolder(work / cell.name), work / f"logs/{cell.name}.log"))
        runs[-1].check_folder()
    show(runs, run_all(runs, jobs), len(runs))
    for run in runs:
        if run.state != "done":
            print(f"{run.name} failed:\n{run.tail()}", file=sys.stderr)
    return [cell for cell, run in zip(cells, runs, strict=True) if run.state == "done"]


def measure(cell: Cell, work: Path, claims: Sequence[Claim]) -> Record:
    """Return the numbers of a finished run: its scores by unit, and the readings that some claim wants of it.

    Those that need no evaluation are read for all claims. A reading that is no number is null. An evaluation that was
    stopped is made anew.
    """
    folder, asked = work / cell.name, literature.wanted(cell.setting, claims)
    wanted = asked | {name for name in literature.wanted(cell.setting) if not readings.evaluate_options([name])}
    options = readings.evaluate_options(wanted)
    evaluation = folder / "evaluation" / hashlib.sha256(" ".join(options).encode()).hexdigest()[:8]
    whole, seconds = evaluation / "whole", 0.0
    if options and not whole.exists():
        shutil.rmtree(evaluation, ignore_errors=True)
        before = time.monotonic()
        _python("unetseg.evaluate", override("checkpoint", str(folder)), override("output", str(evaluation)), *options)
        whole.touch()
        seconds = time.monotonic() - before
    run = results.read(folder).runs[0]
    groups = groups_of(run)
    units = groups if len({*groups}) > 1 else [*run.per_image.index]
    scores = {name: _rounded(group_means(run.per_image[name].to_numpy(float)[None], units)[0]) for name in SCORES}
    names = "\n".join(sorted({*units}))
    values = {name: readings.READINGS[name].read(run, evaluation) for name in sorted(wanted)}
    return {
        **{"bench": cell.bench, "setting": cell.setting, "seed": cell.seed, "size": cell.size},
        "units": f"{len({*units})} {'groups' if units is groups else 'images'} {_digest(names)}",
        **scores,
        "readings": {name: value if math.isfinite(value) else None for name, value in values.items()},
        "iou_of_the_set": round(run.summary["test/iou"], 5),
        "foreground": round(float(run.per_class.pixels.iloc[-1] / run.per_class.pixels.sum()), 5),
        "minutes": round((run.summary["seconds"] + seconds) / 60, 2),
        **{name: run.summary[name] for name in ("parameters", "machine", "git_commit")},
    }


def run(
    claim: Claim, cells: Sequence[Cell], paths: dict[str, Path], work: Path, jobs: int, claims: Sequence[Claim]
) -> int:
    """Train, measure for some claims, and keep what one of them still needs; return how many cells are new."""
    lacking = missing(claim, cells, kept())
    done = train(lacking, paths, work, jobs) if lacking else []
    KEPT.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool, ExitStack() as stack:
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # Ctrl-C waits for those under way alone
        for cell, future in [(cell, pool.submit(measure, cell, work, claims)) for cell in done]:
            try:
                record = future.result()
            except (RuntimeError, OSError) as error:
                print(f"{cell.name} can't be measured: {error}", file=sys.stderr)
                continue
            with KEPT.open("a") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
    return len(done)


def _python(module: str, *words: str) -> None:
    """Run a module of ours; raise a RuntimeError with the end of its output where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]
