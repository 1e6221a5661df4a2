"""A run folder: its files, its name, and that nothing in it is overwritten."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml

from unetseg import launch
from unetseg.errors import UserError
from unetseg.files import no_link, read_json, refuse_links, write_text
from unetseg.options import recorded
from unetseg.options.compose import values_of
from unetseg.options.schema import Train
from unetseg.options.settings import differences, timed_name
from unetseg.options.trainer import LENGTHS

METRICS_COLUMNS = ("step", "epoch", "name", "value")
GRADIENT_FLOW_COLUMNS = ("step", "epoch", "kind", "block", "metric", "value")
STARTS = ("model.weights", "model.strict_weights", "model.initialisation")
"""Options that make a run's first weights, and mean nothing later."""
OF_THE_OPTIMIZER = ("optimizer.name", "optimizer.arguments")
"""Options of an optimizer whose state a run that goes on takes from its checkpoint."""
FOLDER_FOR_RANKS = "UNETSEG_RUN_FOLDER"
"""Environment variable that hands the folder to the processes that Lightning launches for further devices."""


class RunFolder:
    """Paths of one run.

    Examples:
        >>> RunFolder("runs/a").best.as_posix()
        'runs/a/checkpoints/best.ckpt'
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lock: IO[str] | None = None
        self.new_options: Train | None = None
        """Those of a resumed run, until `record_changes`; the run's first process has them."""
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.per_image = self.path / "per_image.csv"
        self.per_class = self.path / "per_class.csv"
        self.confusion = self.path / "confusion.csv"
        self.calibration = self.path / "calibration.csv"
        self.edge_distance = self.path / "edge_distance.csv"
        self.edge_distance_per_image = self.path / "edge_distance_per_image.csv"
        self.gradient_flow = self.path / "gradient_flow.csv"
        self.left_out = self.path / "left_out.csv"
        self.figures = self.path / "figures"

    @property
    def tables(self) -> tuple[Path, ...]:
        """The tables that grow while a run trains; when it is resumed, they are cut back to its last checkpoint."""
        return self.metrics, self.gradient_flow, self.left_out

    @property
    def results(self) -> tuple[Path, ...]:
        """The files that the test at the end of a run writes; the summary, which marks a finished run, comes first."""
        of_classes = self.per_class, self.confusion, self.calibration
        return self.summary, self.per_image, *of_classes, self.edge_distance, self.edge_distance_per_image

    @classmethod
    def create(cls, options: Train, check: Callable[[], object] = lambda: None) -> RunFolder:
        """Make the folder output/name and write config.yaml into it; refuse a name that is taken.

        The other processes of the run get the folder of the first one.

        Args:
            options: of the run.
            check: called on the first process before the folder is made; it may raise a UserError.
        """

        def make() -> RunFolder:
            check()
            output = Path(options.output)
            run = cls._make_named(output / options.name) if options.name else cls._make_timed(output, options)
            try:
                run.figures.mkdir(exist_ok=True)
                write_text(run.config, yaml.safe_dump(options.model_dump(), sort_keys=False))
            except OSError:
                if run.is_incomplete:
                    shutil.rmtree(run.path)
                raise
            return run

        return _on_first_process(make, options)

    @classmethod
    def planned(cls, options: Train) -> Path:
        """Return where a run of these options would write to, and make nothing; refuse a name that is taken."""
        if options.resume:
            return Path(options.resume)
        path = Path(options.output) / (options.name or timed_name(options.model_dump()))
        if options.name and path.exists() and not cls(path).is_incomplete:
            raise _taken(path)
        return path

    @classmethod
    def _make_named(cls, path: Path) -> RunFolder:
        """Return the new folder at a path that the user chose, or an incomplete one that is there."""
        run = cls(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not run.is_incomplete or not run.claim().is_incomplete:  # it might have been completed just now
                raise _taken(path) from None
            return run
        return run.claim()

    @classmethod
    def _make_timed(cls, output: Path, options: Train) -> RunFolder:
        """Return a new folder NAME, NAME_2, NAME_3, ...: jobs of a cluster begin in the same second."""
        name = timed_name(options.model_dump())
        for number in itertools.count(1):
            run = cls(output / (name if number == 1 else f"{name}_{number}"))
            with suppress(FileExistsError):
                run.path.mkdir(parents=True)
                return run.claim()
        raise AssertionError("unreachable")

    @property
    def begun(self) -> bool:
        """Whether a training has begun here, which records its options."""
        return self.config.exists() and self.config.stat().st_size > 0

    @property
    def is_incomplete(self) -> bool:
        """Whether a kill or a full disk ended the making of this folder, before a training has begun in it."""
        if not self.path.is_dir() or self.begun:
            return False
        parts = {self.figures, self.config, self.path / ".lock", self.path / f".{self.config.name}.tmp"}
        return set(self.path.rglob("*")) <= parts

    @classmethod
    def resume(cls, options: Train, check: Callable[[], object] = lambda: None) -> RunFolder:
        """Return the folder of a run that is resumed, see `check_resume`; `record_changes` comes later.

        Args:
            options: of the run.
            check: called on the first process before anything is written; it may raise a UserError.
        """

        def claim() -> RunFolder:
            check()
            run = cls(str(options.resume))
            refuse_links(run.path, but_for=("wandb",))  # W&B's own links lead to its logs
            run.claim()
            run.figures.mkdir(exist_ok=True)  # an empty folder may get lost where a run is copied
            run.new_options = options
            return run

        return _on_first_process(claim, options)

    def record_changes(self) -> None:
        """Write the options of a resumed run, once; keep the earlier ones and the results of a finished run beside.

        It is called when the checkpoint has been taken up: a run that is refused stays as it was.
        """
        if self.new_options is None:
            return
        options, self.new_options = self.new_options.model_dump(), None
        before = recorded.read_training(self.config)
        if differences(before, options):
            number = next(n for n in itertools.count(1) if not (self.path / f"config_{n}.yaml").exists())
            write_text(self.path / f"config_{number}.yaml", self.config.read_text(encoding="utf-8"))
            for result in filter(Path.exists, self.results):  # of a finished run that is extended
                result.rename(result.with_stem(f"{result.stem}_{number}"))
            kept = {key: before[key] for key in ("name", "output", "resume", "trust", "allow_changes")}
            write_text(self.config, yaml.safe_dump(options | kept, sort_keys=False))

    def claim(self) -> RunFolder:
        """Keep other processes from training in this folder, until it is released or this process ends."""
        self.lock = open(self.path / ".lock", "a", opener=no_link)  # noqa: SIM115
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, loader processes don't inherit it
        except OSError:
            raise UserError(
                f"{self.path} is being trained by another process", advice="wait for it, or end it"
            ) from None
        return self

    def release(self) -> None:
        """Let other processes train in this folder."""
        if self.lock is not None:
            self.lock.close()


def _taken(path: Path) -> UserError:
    """Return the error for a run folder that is there."""
    return UserError(
        f"the run folder {path} exists",
        accepted="a new folder; nothing is overwritten",
        advice="another name=... or output=...",
    )


def _on_first_process(prepare: Callable[[], RunFolder], options: Train) -> RunFolder:
    """Call `prepare` on a run's first process, and return its folder on all."""
    if "LOCAL_RANK" in os.environ and FOLDER_FOR_RANKS in os.environ:  # Lightning started this process
        return RunFolder(os.environ[FOLDER_FOR_RANKS])
    prepared = []

    def path() -> str:
        prepared.append(prepare())
        return str(prepared[0].path)

    shared_path = launch.decide_on_first(path, int(options.trainer.get("num_nodes") or 1))
    os.environ[FOLDER_FOR_RANKS] = str(Path(shared_path).resolve())
    return prepared[0] if prepared else RunFolder(shared_path)


def check_resume(options: Train) -> None:
    """Raise a UserError unless the run `options.resume` can be resumed with these options.

    Options in `allow_changes` may differ, and so may options that don't change a run's results. A finished run can only
    be extended, by more epochs or steps than it had.
    """
    run = RunFolder(str(options.resume))
    before = recorded.read_training(run.config)
    changed = differences(before, options.model_dump())
    finished = run.summary.exists()
    stopped = finished and before["early_stopping"] is not None and _ended_early(run, before)
    longer = [key for key in LENGTHS if _is_longer(before["trainer"].get(key), options.trainer.get(key))]
    may_differ = [*options.allow_changes, *(f"trainer.{key}" for key in longer if finished)]
    refused = [change for change in changed if change.partition(":")[0] not in may_differ]
    if refused:
        names = ",".join(change.partition(":")[0] for change in changed)
        raise UserError(
            f"resume={options.resume}: the run has other options: {'; '.join(refused)}",
            accepted="the options that it began with",
            advice=f"resume=... alone, or allow_changes=[{names}]",
        )
    keys = [change.partition(":")[0] for change in changed]
    earlier = options.optimizer.model_copy(update={"encoder_lr_factor": before["optimizer"]["encoder_lr_factor"]})
    grouped = {own.encoder_lr_factor == 1 for own in (options, options.model_copy(update={"optimizer": earlier}))}
    kept = [*STARTS, *OF_THE_OPTIMIZER, *(["optimizer.encoder_lr_factor"] if len(grouped) > 1 else [])]
    if fixed := [key for key in kept if key in keys]:
        raise UserError(
            f"resume={options.resume}: {', '.join(fixed)} can't differ, a run that goes on has its weights and its "
            "optimizer's state already",
            accepted="the options that it began with",
            advice=f"a new run, or one that starts from its weights: model.weights={options.resume}",
        )
    if stopped and "early_stopping" not in keys:
        raise UserError(
            f"resume={options.resume}: early_stopping={before['early_stopping']} has ended this run, and would at once",
            accepted="early_stopping=null, or a larger number than it had",
            advice=f"resume={options.resume} early_stopping=null allow_changes=[early_stopping]",
        )
    if finished and not longer and not stopped:
        epochs = before["trainer"].get("max_epochs") or 1
        raise UserError(
            f"resume={options.resume}: this run is finished",
            accepted="a run without a summary.json, or more epochs than it had",
            advice=f"resume={options.resume} trainer.max_epochs={2 * epochs}, which extends it",
        )


def _ended_early(run: RunFolder, options: dict[str, Any]) -> bool:
    """Return whether a finished run had fewer epochs than its options state."""
    with suppress(ValueError):
        epochs = read_json(run.summary).get("epochs")
        return isinstance(epochs, int) and epochs < (options["trainer"].get("max_epochs") or 0)
    return False


def _is_longer(before: Any, now: Any) -> bool:
    """Return whether this argument of the Trainer makes the run longer."""
    numbers = isinstance(before, int) and isinstance(now, int)
    return numbers and before != -1 and (now > before or now == -1)  # -1: without end


def options_of(run: RunFolder, overrides: list[str]) -> Train:
    """Return the options of a run that is resumed: those of its config.yaml, changed by the overrides.

    A run that has a checkpoint doesn't need what its first weights came from, which may be gone.

    Raises:
        UserError: see `unetseg.options.recorded`.
    """
    before = recorded.read_training(run.config)
    start = before["model"].get("weights")
    if not isinstance(start, str) or not run.last.exists() or "model.weights" in values_of(overrides):
        return recorded.apply_overrides("train", Train, before, overrides)
    before["model"] = {**before["model"], "weights": None}
    options = recorded.apply_overrides("train", Train, before, overrides)
    return options.model_copy(update={"model": options.model.model_copy(update={"weights": start})})


def has_weights(options: Train) -> bool:
    """Return whether a run is resumed from a checkpoint, which has all its weights."""
    return options.resume is not None and RunFolder(options.resume).last.exists()


def run_folder_of(checkpoint: str | Path) -> RunFolder | None:
    """Return the run folder of a checkpoint: the path itself, or the folder whose checkpoints/ holds the file.

    It is None where that folder has no config.yaml of a training.
    """
    path = Path(checkpoint)
    candidate = RunFolder(path if path.is_dir() else path.absolute().parent.parent)
    if not path.is_dir() and path.absolute().parent != candidate.checkpoints:
        return None
    try:
        recorded.read_training(candidate.config)
    except UserError:
        return None
    return candidate
