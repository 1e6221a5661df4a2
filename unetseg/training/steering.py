"""Callbacks that change a training: the moving average of the weights, and the early end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unetseg import launch
from unetseg.names import counted


class AverageWeights(WeightAveraging):
    """Lightning's moving average of the weights and buffers, which is what is validated, tested and saved.

    After each step average = decay * average + (1 - decay) * weights, begun with the weights after the first step. It
    is computed as average + (1 - decay) * (weights - average), so that the average of weights that are frozen is these
    weights to the last bit; EMAWeightAveraging's isn't.

    Args:
        decay: in 0..1.
    """

    def __init__(self, decay: float):
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average and the weights of a resumed run; the test takes the average, as it is in the file."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, module, checkpoint)

    @contextmanager
    def in_place(self, module: L.LightningModule) -> Iterator[None]:
        """Give a module the average of its weights during the block."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


@contextmanager
def averaged(trainer: L.Trainer) -> Iterator[None]:
    """Give the module the average of its weights during the block, where a training keeps one.

    Lightning's callback is not asked where weights are saved alone, and the file would have those of the last step.
    """
    average = next((c for c in trainer.callbacks if isinstance(c, AverageWeights)), None)  # type: ignore[attr-defined]
    if average is None:
        yield
    else:
        with average.in_place(trainer.lightning_module):
            yield


class EarlyStop(EarlyStopping):
    """Ends a training after a number of validations without a better val/iou.

    Args:
        patience: the number of validations.

    Examples:
        >>> EarlyStop(5).patience
        5
    """

    def __init__(self, patience: int):
        super().__init__("val/iou", mode="max", patience=patience, check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what has been counted; how long it waits is what it is asked for now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """End a run at once that is resumed after its end."""
        trainer.should_stop = self.wait_count >= self.patience

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Say why the training has ended."""
        if self.wait_count >= self.patience and launch.is_first():
            waited = counted(self.wait_count, "validation")
            print(f"early_stopping: {waited} without a val/iou above {self.best_score.item():.4f}", flush=True)
