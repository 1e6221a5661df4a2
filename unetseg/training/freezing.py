"""An encoder that stays as it starts: for a whole training, or until it is let go."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from unetseg.training.optimization import ENCODER


def hold(encoder: nn.Module) -> None:
    """Freeze an encoder: its weights get no gradient, and so no decay either, and its statistics stay.

    Lightning keeps the eval mode of a part of a model while the rest trains.
    """
    encoder.requires_grad_(False).eval()


class Thaw(L.Callback):
    """Holds the encoder for the first epochs of a training, and lets it train from then on.

    DDP reduces the gradients of the weights that need one when it wraps the model. So the encoder is held only after
    that, and DDP is told to look which weights a step has used.

    Args:
        epochs: in which the encoder is held.

    Examples:
        >>> Thaw(epochs=2).epochs
        2
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Prepare DDP, which wraps the model after this."""
        if stage == "fit" and isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
            self._encoder(module).requires_grad_(True)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Hold the encoder or let it train, as the epoch asks in which a run is resumed."""
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Hold the encoder, or let it train."""
        if trainer.current_epoch < self.epochs:
            hold(self._encoder(module))
        else:
            self._encoder(module).requires_grad_(True).train()

    def _encoder(self, module: L.LightningModule) -> Any:
        return module.get_submodule(ENCODER.rstrip("."))
