"""The callback that reads the gradient flow during training, and writes the readings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L

from unetseg.data.dataset import Batch
from unetseg.evaluation import gradient_plots
from unetseg.evaluation.oscillation import KIND, FeatureNorms
from unetseg.files import append_rows
from unetseg.gradients import GradientFlow
from unetseg.names import AUXILIARY, EXITS
from unetseg.runs import pictures
from unetseg.runs.folder import GRADIENT_FLOW_COLUMNS

if TYPE_CHECKING:
    from unetseg.model.segmenter import Segmenter


class FlowReadings(L.Callback):
    """Reads the gradient flow every n-th step into gradient_flow.csv, the loggers and a figure.

    With it goes the root mean square of the features that meet at each fusion. On the other steps there is no hook and
    no cost. Where an encoder has no skip shares, as its features are copies, it
    says so once.

    Args:
        every_n_steps: n.
        table: path of gradient_flow.csv.
        figures: folder of the figures, drawn after a validation that follows a reading.
        routes_every_n_steps: steps between two readings that tell the routes as well: the exits of the encoder, and its
            short and dense skips; None: never.
    """

    LOGGED = {
        *("skip_share", "cosine", "norm", "rms", "update_ratio", "stalled", "zero"),
        *("vanishing_slope", "centre_dip", "nan", "inf", "identity_share"),
        *(f"share_{exit_}" for exit_ in (*EXITS, AUXILIARY)),
        *(f"fall_{exit_}" for exit_ in (*EXITS, AUXILIARY)),
    }
    """Metrics that go to the loggers; the table has all, of which the hundreds of a dense block are for a figure."""
    DRAWN = {"net": "gradient_flow", "exit": "gradient_routes", "short": "gradient_short", "dense": "gradient_dense"}
    """The figure that a reading with this kind of records is drawn in; a function of gradient_plots has its name."""

    def __init__(self, every_n_steps: int, table: Path, figures: Path, routes_every_n_steps: int | None = None):
        self.every_n_steps, self.routes_every_n_steps = every_n_steps, routes_every_n_steps
        self.table, self.figures = table, figures
        self.flow: GradientFlow | None = None
        self.norms: FeatureNorms | None = None
        self.last_finite: tuple[int, dict[str, float]] | None = None
        """The last step whose gradients were finite throughout, and each block's rms."""
        self.step = 0
        self.has_said_why = False
        self.undrawn: set[str] = set()
        """The names of the figures that lack readings."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        """Set the hooks before the first micro-batch of a step that will be read."""
        if self.flow is not None:
            return
        step, every = trainer.global_step, self.routes_every_n_steps
        routes = every is not None and step % every == 0
        if routes or step % self.every_n_steps == 0:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = scaler.get_scale if scaler else None
            self.step = step
            heads = module.get_submodule("auxiliary") if "auxiliary" in dict(module.named_children()) else None
            self.flow = GradientFlow(module.get_submodule("model"), scale, routes, heads).__enter__()
            self.norms = FeatureNorms(cast("Segmenter", module.get_submodule("model"))).__enter__()

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        """Read the gradients of the weights, which are unscaled and reduced over ranks, but not clipped yet."""
        if self.flow is None:
            return
        if all(weight.grad is None for weight in module.parameters()):  # a guard has left the batch out
            self._leave()
            self.flow = None
        else:
            self.flow.gradients()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Write the reading once the step has been taken."""
        if self.flow is None or trainer.global_step == self.step:
            return
        self._leave()
        records = self.flow.read()  # on every rank: it sums over them
        why, self.flow = self.flow.no_shares, None
        self.undrawn |= {self.DRAWN[record.kind] for record in records if record.kind in self.DRAWN}
        if not any(r.value for r in records if r.metric in ("nan", "inf")):
            self.last_finite = self.step, {r.block: r.value for r in records if r.metric == "rms"}
        if not trainer.is_global_zero:
            return
        if why and not self.has_said_why:
            self.has_said_why = True
            print(f"no skip shares are read: {why}", flush=True)
        rows = [(self.step, trainer.current_epoch, r.kind, r.block, r.metric, r.value) for r in records]
        of_features = {} if self.norms is None else self.norms.rms()
        rows += [(self.step, trainer.current_epoch, KIND, *key, value) for key, value in of_features.items()]
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
            self._leave(exception)
            self.flow = None

    def _leave(self, exception: BaseException | None = None) -> None:
        """Remove the hooks."""
        for hooks in (self.flow, self.norms):
            if hooks is not None:
                hooks.__exit__(type(exception) if exception else None, exception, None)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the readings since the last validation."""
        self.on_validation_end(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw the readings so far and send the figure to the loggers."""
        if not trainer.is_global_zero:
            return
        for name in sorted(self.undrawn):
            figure = self.figures / f"{name}.png"
            getattr(gradient_plots, name)(self.table, figure)
            pictures.log_figure(trainer.loggers, name.replace("_", "/"), figure, trainer.global_step)
        self.undrawn.clear()
