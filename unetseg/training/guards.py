"""The guard against batches that can't be trained on: they are named, counted, and left out, or end the run."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, distributed

from unetseg.data.dataset import Batch, Examples
from unetseg.errors import Halt
from unetseg.files import append_rows
from unetseg.names import cell, shown
from unetseg.training.flow_readings import FlowReadings

if TYPE_CHECKING:
    import pandas as pd

IN_A_ROW = 10
"""Batches left out one after the other that end a run, as its weights must be broken then."""
NONFINITE, UNREADABLE = "nonfinite_loss", "unreadable_image"
"""Reasons to leave a picture out, as in the options."""


class Guard(L.Callback):
    """Watches for losses that are NaN or inf, and for pictures that could not be read.

    On a GPU a loss is checked one step late, so that no step waits for the device. All losses are checked before a
    checkpoint is written, so that none holds the weights of a broken step.

    Args:
        table: left_out.csv: step, epoch, reason and name, one row for each picture that was left out.
        flow: reads the gradient flow; None where nothing does.
    """

    COLUMNS = ("step", "epoch", "reason", "name")

    def __init__(self, table: Path, flow: FlowReadings | None):
        self.table, self.flow = table, flow
        self.pending: deque[tuple[int, Tensor, Tensor]] = deque()
        self.in_a_row = 0
        self.step = 0
        self.reported: set[str] = set()
        """Names of pictures that could not be read, as in the table."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Record the pictures that the data module has left out before, except those that are in the table."""
        self.step = trainer.global_step
        if self.table.exists():
            table = self._table()
            self.reported = set(table.name[table.reason == UNREADABLE])
        left_out = trainer.datamodule.left_out  # type: ignore[attr-defined]
        new_names = [name for name in left_out if cell(name) not in self.reported]
        if new_names and trainer.is_global_zero:
            self._record(trainer, UNREADABLE, new_names)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keep the number of the step that this batch is part of."""
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Check the loss of this step, or of the one before."""
        dataset: Examples = trainer.train_dataloader.dataset  # type: ignore[union-attr]
        self._report_unreadable(trainer, dataset, batch)
        loss = (outputs or {}).get("loss")
        if loss is None:  # the module has left the batch out
            names = self._names(trainer, dataset, batch.indices)
            if trainer.is_global_zero:  # all processes leave it out
                self._leave_out(trainer, NONFINITE, names)
            self.in_a_row += 1
            if self.in_a_row == IN_A_ROW:
                raise Halt(f"{IN_A_ROW} batches in a row had a loss that is NaN or inf{self._last_reading()}")
            return
        self.in_a_row = 0
        self.pending.append((self.step, torch.isfinite(loss.detach()), batch.indices))
        self._check_losses(trainer, unchecked=0 if loss.device.type == "cpu" else 1)

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        """Name the pictures that could not be read."""
        self._report_unreadable(trainer, trainer.val_dataloaders.dataset, batch)  # type: ignore[union-attr]

    def on_test_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
        """Name the pictures that could not be read."""
        self._report_unreadable(trainer, trainer.test_dataloaders.dataset, batch)  # type: ignore[union-attr]

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check all losses so far."""
        self._check_losses(trainer, unchecked=0)

    def counts(self) -> dict[str, int]:
        """Return skipped_batches and unreadable_images of the whole run, also of its parts before it was resumed."""
        table = self._table()
        broken, unread = (table[table.reason == reason] for reason in (NONFINITE, UNREADABLE))
        return {"skipped_batches": broken.step.nunique(), "unreadable_images": unread.name.nunique()}

    def _check_losses(self, trainer: L.Trainer, unchecked: int) -> None:
        """Check the pending losses except the last `unchecked`; end the run at the first that isn't finite."""
        while len(self.pending) > unchecked:
            step, finite, indices = self.pending.popleft()
            if not finite:
                dataset: Examples = trainer.train_dataloader.dataset  # type: ignore[union-attr]
                raise Halt(
                    f"the loss of step {step} is NaN or inf\n"
                    f"  its pictures: {', '.join(self._names(trainer, dataset, indices))}{self._last_reading()}\n"
                    "  no checkpoint has this step's weights\n"
                    "  try: a smaller optimizer.lr, trainer.precision=32-true or guards.nonfinite_loss=skip"
                )

    def _table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.table) if self.table.exists() else pd.DataFrame(columns=self.COLUMNS)

    def _report_unreadable(self, trainer: L.Trainer, dataset: Examples, batch: Batch) -> None:
        """Name and record pictures of a batch that this process could not read, each once."""
        names = names_of(dataset, batch.unreadable)
        new_names = [name for name in names if cell(name) not in self.reported]
        if new_names:
            self.reported.update(map(cell, new_names))
            self._leave_out(trainer, UNREADABLE, new_names)

    def _leave_out(self, trainer: L.Trainer, reason: str, names: list[str]) -> None:
        """Print and record the names of pictures that are left out."""
        print(f"left out ({reason}), step {self.step}: {', '.join(map(shown, names))}")
        self._record(trainer, reason, names)

    def _record(self, trainer: L.Trainer, reason: str, names: list[str]) -> None:
        rows = [(self.step, trainer.current_epoch, reason, cell(name)) for name in names]
        append_rows(self.table, self.COLUMNS, rows)

    def _names(self, trainer: L.Trainer, dataset: Examples, indices: Tensor) -> list[str]:
        """Return the names of the pictures of a step, on all processes."""
        parts = [indices]
        if trainer.world_size > 1:
            parts = [indices] * trainer.world_size
            distributed.all_gather_object(parts, indices.cpu())
        return [name for part in parts for name in names_of(dataset, part)]

    def _last_reading(self) -> str:
        """Return a line with the last gradient reading that was finite throughout."""
        if self.flow is None or self.flow.last_finite is None:
            return ""
        step, rms = self.flow.last_finite
        blocks = ", ".join(f"{block} {value:.1e}" for block, value in rms.items())
        return f"\n  the last finite gradients, rms at step {step}: {blocks}"


def names_of(dataset: Examples, indices: Tensor) -> list[str]:
    """Return the names of the examples at these positions."""
    return [dataset.examples[index].name for index in indices.tolist()]
