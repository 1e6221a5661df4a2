"""Sums over processes, by which training on W processes with batches of B / W equals training on one with a batch of B.

DDP takes the mean of the processes' gradients. That is the gradient of the joined batch where every process computes
the same loss from sums over all processes, by operations that are differentiable across processes, as these are.

Legend: B images on this process (others may have another number), C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn


def is_distributed() -> bool:
    """Return whether this is one of several processes that train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_processes(part: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, which have the same shape and dtype; with one process, `part` itself.

    Each process has to call it, and to run its backward pass, equally often. The gradient with respect to `part` is the
    sum of the gradients that arrive on all processes. For a loss that all of them compute alike that is W times its
    gradient, and DDP's mean divides it by W.
    """
    return _Sum.apply(part) if is_distributed() else part


class _Sum(torch.autograd.Function):
    """torch.distributed.nn.functional.all_reduce, which torch 2.15 deprecates for a function of a private module."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015, algorithm 1) by the statistics of the batch of all processes.

    It does what torch.nn.SyncBatchNorm does, which takes no tensors on a CPU. In evaluation, with one process, and in
    its state dict it is an nn.BatchNorm2d (affine and with running statistics, as in the encoders and the decoder).

    Examples:
        >>> model = join_batch_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> type(model[1]).__name__
        'JointBatchNorm2d'
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map BxCxHxW to BxCxHxW of the same dtype and memory format; B may differ between processes.

        The variance is the mean square of the distances from the joint mean, and no difference of large numbers.
        """
        if not (self.training and is_distributed()):
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        sums = values.sum((0, 2, 3))
        entries = sums.new_tensor([values.numel() // len(sums)])
        mean, count = sum_over_processes(torch.cat([sums, entries])).split([len(sums), 1])
        mean = mean / count
        centred = values - mean.view(1, -1, 1, 1)
        variance = sum_over_processes(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(1, -1, 1, 1), centred, scale.view(1, -1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance, of shape C each."""
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def join_batch_norm(model: nn.Module) -> nn.Module:
    """Turn every nn.BatchNorm2d of a model into a JointBatchNorm2d, and return the model.

    Only the class changes: weights, statistics, keys and hooks stay the same objects.
    """
    return _change_class(model, nn.BatchNorm2d, JointBatchNorm2d)


def separate_batch_norm(model: nn.Module) -> nn.Module:
    """Undo `join_batch_norm`."""
    return _change_class(model, JointBatchNorm2d, nn.BatchNorm2d)


def _change_class(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
    return model


class JointBatchNorm(LayerSync):
    """Lightning's plugin that calls `join_batch_norm` for a training on CPUs, which torch.nn.SyncBatchNorm refuses."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with the statistics of the batch of all processes."""
        return join_batch_norm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it was."""
        return separate_batch_norm(model)
