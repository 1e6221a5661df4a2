"""A search: Optuna chooses the options of trials, each of which is a run of train, by their validation IoU.

The study lives in Optuna's own SQLite storage in the folder of the search. What is killed loses nothing: a trial that
was running is the same trial when it is taken up again, with its options and its run folder.
"""

from __future__ import annotations

import csv
import io
import math
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, Trial, TrialState

from unetseg.errors import UserError
from unetseg.files import read_json, write_text
from unetseg.runs.folder import RunFolder
from unetseg.runs.sweep import SweepRun, run_all
from unetseg.runs.tables import TRIALS_COLUMNS

STUDY = "study.db"
TRIALS = "trials.csv"
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""What Optuna's states are called in trials.csv."""
ENOUGH = 10
"""Finished trials from which on the options' importance is estimated."""


class Search:
    """The study in a folder, and its trials.

    Args:
        folder: that of the search, which one process works in at a time.
        space: the options that are searched.
        trials: the number of trials, finished or pruned, that the study is to have.
        seed: of Optuna's sampler.
        make: returns the run of a trial by its number and its values, failed where these don't go together.

    Raises:
        UserError: another process works in the folder, or its study has trials of another space.
    """

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        trials: int,
        seed: int,
        make: Callable[[int, dict[str, Any]], SweepRun],
    ):
        self.folder, self.space, self.trials, self.seed, self.make = folder, dict(space), trials, seed, make
        self.lock = _claim(folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=f"sqlite:///file:{quote(str((folder / STUDY).absolute()))}?uri=true",
            study_name="search",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(),  # whose steps are validations; `_is_bad` counts epochs
            load_if_exists=True,
        )
        self.runs: list[SweepRun] = []
        """Of all trials that didn't fail before, by their numbers; further ones follow while the search goes on."""
        self._open: list[tuple[Trial, SweepRun]] = []
        self._reported: dict[int, int] = {}
        self._to_prune: set[int] = set()
        self._take_up()
        self._left = trials - len(self.runs)

    @property
    def finished(self) -> int:
        """Return the number of trials that are finished or pruned."""
        return sum(run.state in ("done", "pruned") for run in self.runs)

    def run(self, jobs: int) -> Generator[None]:
        """Run the trials that are left, `jobs` at once; yield twice a second. A trial that fails isn't replaced."""
        try:
            self._ask(jobs)
            with closing(run_all(self.runs, jobs)) as ticks:
                for _ in ticks:
                    for trial, run in [*self._open]:
                        self._follow(trial, run)
                    self._ask(jobs)
                    yield
        finally:
            self.lock.release()

    def ranked(self) -> list[tuple[SweepRun, float, dict[str, Any]]]:
        """Return the finished trials, the best first: the run, its val/iou, and the values of its options.

        It is that of the last validation where last.ckpt is the run's model, and of the best where best.ckpt is.
        """
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        runs = {run.name: run for run in self.runs}
        trials = [(runs[trial_name(trial.number)], trial.value or 0.0, trial.params) for trial in finished]
        return sorted(trials, key=lambda entry: -entry[1])

    def importance(self) -> dict[str, float]:
        """Return the share of each option in what sets the best trials apart; empty with fewer than ENOUGH finished.

        It is PED-ANOVA's (Watanabe, Bansal and Hutter 2023), of the best tenth of the finished trials among all.
        """
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(finished) < ENOUGH or len(self.space) < 2:
            return {}
        shares = get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
        return {key: float(share) for key, share in shares.items() if math.isfinite(share)}

    def _take_up(self) -> None:
        """List the runs of earlier trials; those that were running go on, or end where they had been pruned."""
        for earlier in self.study.get_trials(deepcopy=False):
            if any(self.space.get(name) != values for name, values in earlier.distributions.items()):
                self.lock.release()
                raise UserError(
                    f"{self.folder / STUDY} was altered: trial {earlier.number} has values of another space",
                    accepted="the study as the search wrote it",
                    advice="another name=...",
                )
            if earlier.state == TrialState.RUNNING and earlier.params.keys() != self.space.keys():
                self.study.tell(earlier.number, state=TrialState.FAIL)  # killed while its values were drawn
            elif earlier.state != TrialState.FAIL:
                run = self.make(earlier.number, earlier.params)
                self.runs.append(run)
                if earlier.state == TrialState.RUNNING:
                    if run.state != "failed":
                        run.check_folder()
                    self._begin(Trial(self.study, earlier._trial_id), run, len(earlier.intermediate_values))
                else:
                    run.state = "done" if earlier.state == TrialState.COMPLETE else "pruned"

    def _begin(self, trial: Trial, run: SweepRun, reported: int) -> None:
        self._open.append((trial, run))
        self._reported[trial.number] = reported
        if run.state in ("done", "failed"):  # it ended while nobody watched, or can't begin
            self._follow(trial, run)
        elif reported and _is_bad(trial, run):
            self._to_prune.add(trial.number)
            self._close(trial, run)

    def _ask(self, jobs: int) -> None:
        """Draw further trials until as many as `jobs` wait or run, or none is left."""
        while self._left > 0 and len(self._open) < jobs:
            self._left -= 1
            number = len(self.study.get_trials(deepcopy=False))
            # a sampler for each trial: a search that was stopped draws what it would have drawn, and nothing twice
            seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = self.study.ask(self.space)
            run = self.make(trial.number, trial.params)
            self.runs.append(run)
            self._begin(trial, run, 0)
            self._write_trials()

    def _follow(self, trial: Trial, run: SweepRun) -> None:
        """Report what is new of a trial; end its process where the pruner says so, and the trial with its process."""
        values = run.validations()
        news = range(self._reported[trial.number], len(values))
        for step in news:
            trial.report(values[step], step)
        self._reported[trial.number] = max(self._reported[trial.number], len(values))
        if run.state == "running" and news and trial.number not in self._to_prune and _is_bad(trial, run):
            self._to_prune.add(trial.number)
            run.stop(signal.SIGTERM)  # it finishes its step and writes last.ckpt
        if run.state in ("done", "failed"):
            self._close(trial, run)

    def _close(self, trial: Trial, run: SweepRun) -> None:
        scores = [value for value in run.validations() if math.isfinite(value)]
        if run.state == "done" and scores:
            self.study.tell(trial, scores[-1] if _tested(run) == "last.ckpt" else max(scores))
        elif trial.number in self._to_prune:
            run.state = "pruned"
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            run.state = "failed"
            self.study.tell(trial, state=TrialState.FAIL)
        self._open = [(own, of_run) for own, of_run in self._open if own.number != trial.number]
        self._write_trials()

    def _write_trials(self) -> None:
        """Write trials.csv: a row for each trial, with its state, its val/iou as in `ranked`, and its options.

        Of a trial that isn't finished val/iou is the best so far.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow([*TRIALS_COLUMNS, *self.space])
        for trial in self.study.get_trials(deepcopy=False):
            options = [trial.params.get(key, "") for key in self.space]
            reached = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
            score = repr(max(reached) if trial.value is None else trial.value) if reached else ""
            place = trial_name(trial.number)
            writer.writerow([trial.number, _state(trial), score, len(trial.intermediate_values), place, *options])
        write_text(self.folder / TRIALS, table.getvalue())


def _tested(run: SweepRun) -> Any:
    """Return the name of the checkpoint that a finished run has tested; None where it is unknown."""
    with suppress(ValueError):
        return read_json(run.folder.summary).get("checkpoint")
    return None


def _is_bad(trial: Trial, run: SweepRun) -> bool:
    """Return whether the pruner would end a trial; in the first quarter of its epochs none is ended."""
    epochs = run.options.trainer.get("max_epochs") or 0
    return run.progress()[0] > max(epochs, 0) // 4 and trial.should_prune()


def trial_name(number: int) -> str:
    """Return the name of a trial's run folder: trial_007."""
    return f"trial_{number:03d}"


def _state(trial: FrozenTrial) -> str:
    return STATES.get(trial.state.name, "running")


def _claim(folder: Path) -> RunFolder:
    """Keep other searches out of a folder, as SQLite's locks don't hold over every network's disks."""
    try:
        return RunFolder(folder).claim()
    except UserError:
        raise UserError(
            f"{folder} is being searched by another process",
            accepted="one process a search; jobs=N trains N trials at once",
            advice="wait for it, end it, or another name=...",
        ) from None
