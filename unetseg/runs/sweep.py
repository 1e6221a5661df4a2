"""The runs of a sweep, each a process of its own: started, watched, and stopped together.

Each is a fresh process of `python -m unetseg.train`, so that any number of devices and any strategy works (within one
process, Lightning's further ranks would run the whole sweep again).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetseg import launch
from unetseg.errors import INTERRUPTED, REQUEUE, Halt, UserError
from unetseg.files import no_link
from unetseg.options import recorded
from unetseg.options.schema import Train
from unetseg.options.settings import differences, override, own_classes
from unetseg.runs.folder import RunFolder

TRAIN = (sys.executable, "-m", "unetseg.train")
PATIENCE = 60.0
"""Seconds that a run has to end by itself when the sweep is stopped; it finishes a validation first."""


@dataclass
class SweepRun:
    """One run of a sweep."""

    name: str
    overrides: list[str]
    options: Train
    folder: RunFolder
    log: Path
    state: str = "waiting"
    """waiting, running, done or failed; of a search also pruned."""
    text: str = ""
    """What is shown beside its name: a trial's options."""
    started: float = 0.0
    epochs_before: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def check_folder(self) -> None:
        """Learn whether an earlier command finished the run; refuse a folder whose run has other options."""
        if self.folder.begun:
            changed = differences(recorded.read_training(self.folder.config), self.options.model_dump())
            if changed:
                raise UserError(
                    f"{self.folder.path} holds a run with other options: {'; '.join(changed)}",
                    accepted="a sweep of the same options, which goes on",
                    advice="another name=... or output=...",
                )
        self.state = "done" if self.folder.summary.exists() else "waiting"

    def start(self, gpus: Sequence[str], threads: int | None) -> None:
        """Start or continue the run in a process with these GPUs and this many threads."""
        if self.folder.begun:
            overrides = [override("resume", str(self.folder.path))]
            if own_classes(self.options.model_dump()):  # typed: `check_folder` has compared them with the file's
                overrides.append("trust=true")
        else:
            place = [override("name", self.name), override("output", str(self.folder.path.parent))]
            overrides = [*self.overrides, *place, "++trainer.enable_progress_bar=false"]
        environment = {**os.environ, launch.CELL: "1"}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if threads:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        self.started = time.monotonic()
        self.epochs_before = self.progress()[0]
        self.state = "running"
        with open(self.log, "ab", opener=no_link) as log:
            self.process = subprocess.Popen(
                [*TRAIN, *overrides],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True, preexec_fn=launch.die_with_the_parent,
            )  # fmt: skip

    def poll(self) -> None:
        """Update the state where the process has ended."""
        if self.process is not None and self.process.poll() is not None:
            self.state = "done" if self.process.returncode == 0 and self.folder.summary.exists() else "failed"
            self.process = None

    def stop(self, sign: signal.Signals) -> None:
        """Send a signal to the process and to the processes that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, sign)

    def validations(self) -> list[float]:
        """Return val/iou of each validation so far."""
        return [iou for _, iou in self._validations()]

    def progress(self) -> tuple[int, float | None]:
        """Return the number of epochs to the last validation, its own included, and its val/iou."""
        validations = self._validations()
        return (validations[-1][0] + 1, validations[-1][1]) if validations else (0, None)

    def _validations(self) -> list[tuple[int, float]]:
        """Return the epoch, from 0, and val/iou of each validation so far; not every epoch needs to end with one."""
        found: list[tuple[int, float]] = []
        if self.folder.metrics.is_file():
            rows = (line.split(",") for line in self.folder.metrics.read_text("utf-8", "replace").splitlines())
            for row in rows:
                with suppress(ValueError):  # damaged, or not written to its end yet
                    found += [(int(row[1]), float(row[3]))] if len(row) == 4 and row[2] == "val/iou" else []
        return found

    def seconds_left(self) -> float | None:
        """Return the time that the training still needs at the pace of this process; None where it is unknown."""
        done = self.progress()[0]
        epochs = self.options.trainer.get("max_epochs")
        if self.state != "running" or not epochs or done <= self.epochs_before:
            return None
        return (time.monotonic() - self.started) / (done - self.epochs_before) * (epochs - done)

    def tail(self, lines: int = 15) -> str:
        """Return the end of the log."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])


def run_all(runs: Sequence[SweepRun], jobs: int) -> Generator[None]:
    """Run those that wait, `jobs` at once; yield twice a second, so that the caller can show their progress.

    The caller may append further runs in between.
    """
    gpus = visible_gpus()
    # two processes that both use every core slow each other down tenfold
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if jobs > 1 and hasattr(os, "sched_getaffinity") else None
    slots: list[SweepRun | None] = [None] * jobs
    with _stop_at_end(runs):
        while True:
            for slot, run in enumerate(slots):
                if run is not None:
                    run.poll()
                if run is None or run.state != "running":
                    next_run = next((r for r in runs if r.state == "waiting"), None)
                    slots[slot] = next_run
                    if next_run is not None:
                        next_run.start(share(gpus, jobs, slot), threads)
            yield
            if not any(slots) and all(run.state != "waiting" for run in runs):
                return
            time.sleep(0.5)


def share(gpus: Sequence[str], jobs: int, slot: int) -> list[str]:
    """Return the GPUs of one of `jobs` slots: each its own where there are enough, otherwise some share one."""
    if not gpus:
        return []
    return list(gpus[slot::jobs]) or [gpus[slot % len(gpus)]]


def visible_gpus() -> list[str]:
    """Return the names under which CUDA shows its devices to this process."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    lines = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
    return [str(number) for number in range(sum(line.startswith("GPU") for line in lines))]


@contextmanager
def _stop_at_end(runs: Sequence[SweepRun]) -> Iterator[None]:
    """End all processes when the block is left early, by Ctrl-C, another request to stop, or an error.

    Each run finishes its step and writes its checkpoint; a second Ctrl-C ends them at once.
    """

    def stop(number: int, frame: Any) -> None:
        raise Halt("stopped; the same command goes on", INTERRUPTED if number == signal.SIGINT else REQUEUE)

    def kill(number: int, frame: Any) -> None:
        _send(runs, signal.SIGKILL)

    before = {number: signal.signal(number, stop) for number in launch.STOPS if not launch.is_ignored(number)}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, kill if number == signal.SIGINT else signal.SIG_IGN)
        if any(run.process is not None for run in runs):
            print("stopping each run after its step; Ctrl-C: at once", file=sys.stderr, flush=True)
        _send(runs, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for run in runs:
            if run.process is not None:
                try:
                    run.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    run.stop(signal.SIGKILL)
                    run.process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(runs: Sequence[SweepRun], sign: signal.Signals) -> None:
    for run in runs:
        run.stop(sign)
