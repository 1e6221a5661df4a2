"""A run folder: what lies where, how it is named, and that nothing in it is overwritten."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import yaml

from unetseg import launch
from unetseg.errors import UserError
from unetseg.files import no_link, refuse_links, write_text
from unetseg.options import recorded
from unetseg.options.schema import Train
from unetseg.options.settings import differences, timed_name

METRICS_COLUMNS = ("step", "epoch", "name", "value")
GRADIENT_FLOW_COLUMNS = ("step", "epoch", "kind", "block", "metric", "value")
FOLDER_FOR_RANKS = "UNETSEG_RUN_FOLDER"
"""Environment variable that hands the folder to the processes that Lightning launches for further devices."""


class RunFolder:
    """Paths of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock: IO[str] | None = None
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.per_image = self.path / "per_image.csv"
        self.edge_distance = self.path / "edge_distance.csv"
        self.gradient_flow = self.path / "gradient_flow.csv"
        self.left_out = self.path / "left_out.csv"
        self.figures = self.path / "figures"

    @property
    def tables(self) -> tuple[Path, ...]:
        """What grows while a run trains, and is cut back to its last checkpoint when it is resumed."""
        return self.metrics, self.gradient_flow, self.left_out

    @classmethod
    def create(cls, options: Train, check: Callable[[], object] = lambda: None) -> RunFolder:
        """Make the folder output/name and write config.yaml into it; refuse a name that is taken.

        Further processes of the run get the first one's folder.

        Args:
            options: of the run.
            check: called before, on the first process; where it raises a UserError there is no folder.
        """

        def make() -> RunFolder:
            check()
            run = cls(Path(options.output) / (options.name or timed_name(options.model_dump())))
            try:
                run.path.mkdir(parents=True)
            except FileExistsError:
                raise UserError(
                    f"the run folder {run.path} exists",
                    accepted="a new folder; nothing is overwritten",
                    advice="another name=... or output=...",
                ) from None
            run.figures.mkdir()
            run.config.write_text(yaml.safe_dump(options.model_dump(), sort_keys=False))
            return run.claimed()

        return _of_the_first(make, options)

    @classmethod
    def resumed(cls, options: Train, check: Callable[[], object] = lambda: None) -> RunFolder:
        """Return the folder of a run that is resumed, see `check_resume`; keep a record of options that it changes.

        Args:
            options: of the run.
            check: called before, on the first process.
        """

        def claim() -> RunFolder:
            check()
            run = cls(str(options.resume))
            refuse_links(run.path, but_for=("wandb",))  # W&B's own links lead to its logs
            run.claimed()
            before = recorded.of_training(run.config)
            if differences(before, options.model_dump()):
                number = next(n for n in itertools.count(1) if not (run.path / f"config_{n}.yaml").exists())
                write_text(run.path / f"config_{number}.yaml", run.config.read_text(encoding="utf-8"))
                kept = {key: before[key] for key in ("name", "output", "resume", "allow_changes")}
                write_text(run.config, yaml.safe_dump(options.model_dump() | kept, sort_keys=False))
            return run

        return _of_the_first(claim, options)

    def claimed(self) -> RunFolder:
        """Keep other processes from training in this folder, until it is released or this process ends, however."""
        self.lock = open(self.path / ".lock", "a", opener=no_link)  # noqa: SIM115
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, loader processes don't inherit it
        except OSError:
            raise UserError(
                f"{self.path} is being trained by another process", advice="wait for it, or end it"
            ) from None
        return self

    def release(self) -> None:
        """Let other processes train here."""
        if self.lock is not None:
            self.lock.close()


def _of_the_first(prepare: Callable[[], RunFolder], options: Train) -> RunFolder:
    """Return the folder that `prepare` returns, called on a run's first process only."""
    if "LOCAL_RANK" in os.environ and FOLDER_FOR_RANKS in os.environ:  # Lightning started this process
        return RunFolder(os.environ[FOLDER_FOR_RANKS])
    prepared = []

    def path() -> str:
        prepared.append(prepare())
        return str(prepared[0].path)

    shared = launch.agreed(path, int(options.trainer.get("num_nodes") or 1))
    os.environ[FOLDER_FOR_RANKS] = str(Path(shared).resolve())
    return prepared[0] if prepared else RunFolder(shared)


def check_resume(options: Train) -> None:
    """Raise a UserError unless the run `options.resume` is unfinished and began with these options.

    Those in `allow_changes` may differ, and so may what doesn't change a run's results.
    """
    run = RunFolder(str(options.resume))
    changed = differences(recorded.of_training(run.config), options.model_dump())
    refused = [change for change in changed if change.partition(":")[0] not in options.allow_changes]
    if refused:
        names = ",".join(change.partition(":")[0] for change in changed)
        raise UserError(
            f"resume={options.resume}: the run has other options: {'; '.join(refused)}",
            accepted="the options that it began with",
            advice=f"resume=... alone, or allow_changes=[{names}]",
        )
    if run.summary.exists():
        raise UserError(f"resume={options.resume}: this run is finished", accepted="a run without a summary.json")


def options_of(run: RunFolder, overrides: list[str]) -> Train:
    """Return the options of a run that is resumed: those of its config.yaml, changed by the command line's.

    Raises:
        UserError: see `unetseg.options.recorded`.
    """
    return recorded.with_overrides("train", Train, recorded.of_training(run.config), overrides)


def run_folder_of(checkpoint: str | Path) -> RunFolder | None:
    """Return the run folder that is meant: the path itself, or the folder whose checkpoints/ holds the file.

    A folder whose config.yaml is not that of a training is none.
    """
    path = Path(checkpoint)
    candidate = RunFolder(path if path.is_dir() else path.absolute().parent.parent)
    if not path.is_dir() and path.absolute().parent != candidate.checkpoints:
        return None
    try:
        recorded.of_training(candidate.config)
    except UserError:
        return None
    return candidate
