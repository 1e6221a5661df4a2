"""Checkpoints: when and how they are written, and their content beyond Lightning's, so that a run resumes undisturbed.

last.ckpt is written after each epoch, with a validation or without, every few minutes or steps, and when the run is
asked to stop. In the middle of an epoch it is written between two steps: the tables then have the rows of the first
step, and none of the second.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from unetseg import classes, launch
from unetseg.errors import INTERRUPTED, REQUEUE, Halt, UserError, first_line
from unetseg.files import drafted
from unetseg.model import archive
from unetseg.options import plain_yaml
from unetseg.options.schema import Checkpoint
from unetseg.options.settings import own_classes
from unetseg.runs.folder import RunFolder
from unetseg.training import restored
from unetseg.training.steering import averaged


class AtomicIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, which stays whole until the new one is whole.

    Lightning's own writes to the folder for temporary files, which may lie on another file system. A file can't be
    moved from there in one step.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: it holds what couldn't be read again, such as the state of a callback of the user's own.
            OSError: there is no room for it.
        """
        restored.check_plain(checkpoint, "checkpoint")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with drafted(path) as draft, draft.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            # torch's own error doesn't have the reason
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint as data onto the CPU and compare its checksums, whatever Lightning's arguments are.

        Raises:
            UserError: it is damaged, or holds more than tensors and plain values.
        """
        try:
            return archive.load(Path(path))
        except Exception as error:  # damaged bytes make the unpickler fail in many ways
            raise damaged_checkpoint(path, error) from None

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, which is a file; Lightning's own would also remove a folder and its content."""
        Path(path).unlink(missing_ok=True)


class Checkpointing(ModelCheckpoint):
    """Finds its file in its own folder, and ignores paths in a checkpoint: the folder was moved, or is a stranger's.

    An epoch without a validation writes the last checkpoint, too. A best checkpoint that is gone doesn't count.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score where its file is there."""
        path = Path(str(self.dirpath), f"{self.filename}.ckpt")
        if not path.is_file():
            return
        self.best_model_path = str(path)
        best = restored.finite_score(state_dict.get("best_model_score")) if self.monitor else None
        if best is not None:
            self.best_model_score = self.kth_value = best
            self.best_k_models, self.kth_best_model_path = {str(path): best}, str(path)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget a best checkpoint that is gone or damaged, once the state of the run has been restored."""
        if self.monitor and self.best_model_path and not is_whole(Path(self.best_model_path)):
            if launch.is_first():
                print(f"{self.best_model_path} is gone or damaged: the best from here on will be kept")
            self.best_k_models, self.kth_best_model_path = {}, ""
            self.kth_value = None  # type: ignore[assignment]  # Lightning's own first value
            self.best_model_path, self.best_model_score, self.current_score = "", None, None

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        with averaged(trainer) if self.save_weights_only else nullcontext():
            super()._save_checkpoint(trainer, filepath)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the last checkpoint, unless the validation after this step has written it."""
        super().on_train_epoch_end(trainer, module)
        if self.monitor is None and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class Continuation(L.Callback):
    """Writes last.ckpt in the middle of epochs, and ends the run when it is asked to stop.

    SIGTERM, SLURM's SIGUSR1, SIGHUP (a lost ssh) and Ctrl-C are requests to stop: the run finishes the step, writes the
    checkpoint, and ends with a status for it. All processes of the run stop after the same step, whichever of them got
    the request. A validation is finished first. A second Ctrl-C ends the run at once.

    Args:
        run: the run's folder.
        every: minutes and steps between two writes.
        at_once: ends the run at a second Ctrl-C.
    """

    def __init__(self, run: RunFolder, every: Checkpoint, at_once: Callable[[], None] = launch.die_of_ctrl_c):
        self.run, self.every, self.at_once = run, every, at_once
        self.stop_signal: signal.Signals | None = None
        self.last_write = time.monotonic()
        self.restored_random_state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the length of each table in bytes, and the random numbers' state on the first process."""
        present = [path for path in self.run.tables if path.exists()]
        for path in present:  # after a power cut they must not be shorter than in the checkpoint
            with path.open("rb") as table:
                os.fsync(table.fileno())
        return {"tables": {path.name: path.stat().st_size for path in present}, "random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the random numbers until the next batch begins."""
        self.restored_random_state = state_dict["random"]

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back the count of the next batch, which Lightning has fetched and counts as begun."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            if counts["ready"] > counts["processed"]:
                counts["ready"] = counts["processed"]
                progress["is_last_batch"] = False

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Receive requests to stop during the block; raise a Halt at its end after one that stopped no step."""
        handlers_before = {number: signal.getsignal(number) for number in launch.STOPS}
        self._set_handlers()
        try:
            yield
        finally:
            for number, handler in handlers_before.items():
                signal.signal(number, handler)
        if self.stop_signal:
            raise Halt("stopped; this run is finished", self._status())

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Replace Lightning's signal handlers, which broadcast from wherever they interrupt."""
        self._set_handlers()
        if trainer.global_step:
            count_batches_anew(trainer)
        self.run.record_changes()

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Replace Lightning's signal handlers in the test, too."""
        self._set_handlers()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Write last.ckpt if it is time, and stop if there was a request; both between two steps."""
        if self.restored_random_state:
            restore_random_state(self.restored_random_state)
            self.restored_random_state = {}
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step  # the loggers' step, which is wrong after some restarts
        done = loop.batch_progress.current.completed
        if done % trainer.accumulate_grad_batches:
            return
        due, stop = self._write_and_stop(trainer)
        if (due or stop) and done > 0:  # otherwise last.ckpt is that of the end of the epoch before
            trainer.save_checkpoint(self.run.last)
            self.last_write = time.monotonic()
        if stop:
            self._stop(f"after step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Count the minutes from here, as last.ckpt is written now as well."""
        self.last_write = time.monotonic()

    def on_test_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop if there was a request: the training is over, and last.ckpt has its end.

        The processes exchange their requests only at the batches that all of them have; some may have one more.
        """
        loader: Any = trainer.test_dataloaders
        shared_batches = -(-(len(loader.dataset) // trainer.world_size) // loader.batch_size)
        if batch_idx < shared_batches and self._write_and_stop(trainer)[1]:
            self._stop("in the test")

    def _write_and_stop(self, trainer: L.Trainer) -> tuple[bool, bool]:
        """Return whether to write last.ckpt and whether to stop, the same on all processes."""
        minutes, steps = self.every.every_n_minutes, self.every.every_n_steps
        minutes_over = minutes is not None and time.monotonic() - self.last_write > 60 * minutes
        steps_over = steps is not None and trainer.global_step % steps == 0
        due, stop = minutes_over or steps_over, self.stop_signal is not None
        if trainer.world_size == 1:
            return due, stop
        flags = torch.tensor([due, stop], dtype=torch.int32, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        due, stop = flags.tolist()
        return bool(due), bool(stop)

    def _set_handlers(self) -> None:
        for number in launch.STOPS:
            if not launch.is_ignored(number):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.stop_signal == signal.SIGINT:
            self.at_once()
        self.stop_signal = signal.Signals(number)
        if launch.is_first():
            again = ", Ctrl-C again: at once" if number == signal.SIGINT else ""
            print(f"{self.stop_signal.name}: stopping at the next step{again}", flush=True)

    def _stop(self, when: str) -> None:
        raise Halt(f"stopped {when}\n  try: {command_to_resume(self.run)}", self._status())

    def _status(self) -> int:
        return INTERRUPTED if self.stop_signal == signal.SIGINT else REQUEUE


def count_batches_anew(trainer: L.Trainer) -> None:
    """Set the number of batches that the epoch of a resumed run has had, by the size that its batches have now.

    Raises:
        UserError: the pictures that the epoch has had are no whole number of such batches.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    counts: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    examples = data.done[1]
    step = data.batch_size * trainer.world_size
    if examples % step:
        raise UserError(
            f"the run was stopped in an epoch, after {examples} pictures; the next of it can't be taken {step} at once",
            accepted=f"a batch size, over all devices, that divides {examples}",
            advice="go on without the change until the epoch ends",
        )
    epoch_over = not examples and counts.completed
    batches = int(trainer.num_training_batches) if epoch_over else examples // step
    counts.ready = counts.started = counts.processed = counts.completed = batches


def command_to_resume(run: RunFolder) -> str:
    """Return the command that resumes a run, with trust where it has classes of the user's own."""
    named = own_classes(plain_yaml.read(run.config)) if run.config.exists() else {}
    return f"python -m unetseg.train resume={shlex.quote(str(run.path))}{' trust=true' if named else ''}"


def rewind(run: RunFolder, named: Iterable[str] = ()) -> Path | None:
    """Return the checkpoint from which a run is resumed, None to start anew; cut the tables back to it.

    It is said which of the user's own classes, `named`, have changed since.

    Raises:
        UserError: the checkpoint is not what training writes, or it is gone and a new one would overwrite best.ckpt.
    """
    file = run.last
    lengths: dict[str, int] = {}
    if file.exists():
        try:
            content = archive.load(file)
            restored.check(content)
            state = content["callbacks"].get(Continuation.__qualname__)
            lengths = restored.table_lengths(state)
            check_random_state(state.get("random"))
        except Exception as error:  # damaged bytes make the unpickler fail in many ways
            raise damaged_checkpoint(file, error, _ways_on(run)) from None
        classes.say_changed(restored.code(content), named if launch.is_first() else (), file)
    elif run.best.exists() and _last_epoch(run):
        raise UserError(
            f"{file} is not there; best.ckpt has the weights alone, without the optimizer's state",
            accepted="a run folder with its checkpoints/last.ckpt",
            advice=_ways_on(run),
        )
    if launch.is_first():
        for draft in run.checkpoints.glob("*.tmp"):
            if not draft.is_dir():
                draft.unlink()
        for table in run.tables:
            cut_back(table, lengths.get(table.name, 0))
    return file if file.exists() else None


def _ways_on(run: RunFolder) -> list[str]:
    """Return what can be done without last.ckpt; a best.ckpt that can be read is never given up."""
    copy = "the file from a copy"
    if is_whole(run.best):
        best = shlex.quote(str(run.best))
        begin = f"python -m unetseg.train ... model.weights={best} name=NEW, which begins with its weights"
        return [copy, begin, f"python -m unetseg.evaluate checkpoint={best}, which scores it"]
    present = shlex.join(str(path) for path in (run.last, run.best) if path.exists())
    return [copy, f"rm {present}, and the same command begins anew"]


def _last_epoch(run: RunFolder) -> int:
    """Return the epoch of the last row of metrics.csv, from 0; 0 where there is none.

    A run that was killed in its first epoch, between the two writes, has a best.ckpt alone: there it begins anew.
    """
    rows = run.metrics.read_text().splitlines() if run.metrics.is_file() else []
    epoch = rows[-1].split(",")[1] if rows else ""
    return int(epoch) if epoch.isdecimal() else 0


def is_whole(file: Path) -> bool:
    """Return whether a checkpoint is there and undamaged."""
    try:
        archive.load(file)
    except Exception:  # damaged bytes make the unpickler fail in many ways
        return False
    return True


def cut_back(table: Path, length: int) -> None:
    """Cut a table to its length at the checkpoint; where it is shorter, print that and end it with a whole row."""
    size = table.stat().st_size if table.exists() else 0
    if size < length:
        print(f"{table} is {length - size} bytes shorter than last.ckpt says: rows of it are lost", file=sys.stderr)
        content = table.read_bytes() if size else b""
        length = content.rfind(b"\n") + 1
    if size and not length:
        table.unlink()
    elif size > length:
        os.truncate(table, length)


def damaged_checkpoint(
    path: Path | str, error: Exception, ways: Sequence[str] = ("a copy of it, or a new run",)
) -> UserError:
    """Return the error for a checkpoint from which a run can't be resumed."""
    return UserError(
        f"{path} can't be read: {first_line(error)}",
        accepted="a checkpoint as unetseg.train has written it",
        advice=ways,
    )


def make_checkpointing(run: RunFolder) -> tuple[Checkpointing, Checkpointing]:
    """Return the callbacks that write the best checkpoint by val/iou, weights and options alone, and the last one.

    They are two, because ModelCheckpoint(save_last=True) writes the last one only when it is the best so far.
    """
    names: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
    best: dict[str, Any] = {"filename": "best", "monitor": "val/iou", "mode": "max", "save_weights_only": True}
    return Checkpointing(run.checkpoints, **best, **names), Checkpointing(run.checkpoints, filename="last", **names)


def random_state() -> dict[str, Any]:
    """Return the state of all random generators of this process, in values that weights_only=True loads."""
    kind, keys, *position = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all random generators of this process to a state of `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def check_random_state(state: Any) -> None:
    """Raise an error where `restore_random_state` would; the generators' state stays as it is."""
    before = random_state()
    try:
        restore_random_state(state)
    finally:
        restore_random_state(before)
