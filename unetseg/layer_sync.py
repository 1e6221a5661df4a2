"""trainer.sync_batchnorm on CPUs; on GPUs it is torch.nn.SyncBatchNorm, by Lightning."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from unetseg.distributed import join_batch_norm, separate_batch_norm


class JointBatchNorm(LayerSync):
    """Lightning's way to `join_batch_norm`: the model has it while it is trained."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with the statistics of all processes."""
        return join_batch_norm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it was."""
        return separate_batch_norm(model)
