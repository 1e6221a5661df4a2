"""The callback that reads the gradient flow during training, and writes the readings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from unetseg.data.dataset import Batch
from unetseg.evaluation import plots
from unetseg.files import append_rows
from unetseg.gradients import GradientFlow
from unetseg.runs.folder import GRADIENT_FLOW_COLUMNS


class FlowReadings(L.Callback):
    """Reads the gradient flow every n-th step into gradient_flow.csv, the loggers and a figure.

    On the other steps there is no hook and no cost.

    Args:
        every_n_steps: n.
        table: path of gradient_flow.csv.
        figure: path of the figure, drawn after each validation that follows a reading.
    """

    LOGGED = {
        *("skip_share", "cosine", "norm", "rms", "update_ratio", "stalled"),
        *("vanishing_slope", "centre_dip", "nan", "inf"),
    }
    """Metrics that go to the loggers; the table has all."""

    def __init__(self, every_n_steps: int, table: Path, figure: Path):
        self.every_n_steps, self.table, self.figure = every_n_steps, table, figure
        self.flow: GradientFlow | None = None
        self.last_finite: tuple[int, dict[str, float]] | None = None
        """The last step whose gradients were finite throughout, and each block's rms."""
        self.step = 0
        self.undrawn = False

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        """Set the hooks before the first micro-batch of a step that will be read."""
        if self.flow is None and trainer.global_step % self.every_n_steps == 0:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.step = trainer.global_step
            self.flow = GradientFlow(module.get_submodule("model"), scaler.get_scale if scaler else None).__enter__()

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        """Read the gradients of the weights, which are unscaled and reduced over ranks, but not clipped yet."""
        if self.flow is None:
            return
        if all(weight.grad is None for weight in module.parameters()):  # a guard has left the batch out
            self.flow.__exit__(None, None, None)
            self.flow = None
        else:
            self.flow.gradients()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Write the reading once the step has been taken."""
        if self.flow is None or trainer.global_step == self.step:
            return
        self.flow.__exit__(None, None, None)
        records = self.flow.read()  # on every rank: it sums over them
        self.flow, self.undrawn = None, True
        if not any(r.value for r in records if r.metric in ("nan", "inf")):
            self.last_finite = self.step, {r.block: r.value for r in records if r.metric == "rms"}
        if not trainer.is_global_zero:
            return
        rows = [(self.step, trainer.current_epoch, r.kind, r.block, r.metric, r.value) for r in records]
        append_rows(self.table, GRADIENT_FLOW_COLUMNS, rows)
        scalars = {
            f"gradient/{r.metric}" if r.kind == "net" else f"gradient/{r.metric}/{r.block}": r.value
            for r in records
            if r.metric in self.LOGGED
        }
        for logger in trainer.loggers:
            logger.log_metrics({**scalars, "epoch": trainer.current_epoch}, step=self.step)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Remove the hooks of a step that has failed."""
        if self.flow is not None:
            self.flow.__exit__(type(exception), exception, None)
            self.flow = None

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the readings since the last validation."""
        self.on_validation_end(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the readings so far and send the figure to W&B."""
        if not (self.undrawn and trainer.is_global_zero):
            return
        self.undrawn = False
        plots.gradient_flow(self.table, self.figure)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("gradient/flow", [str(self.figure)], step=trainer.global_step)
