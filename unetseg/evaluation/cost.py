"""What a model costs: parameters, operations and memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def cost(model: nn.Module, size: int, channels: int = 3) -> dict[str, int]:
    """Return what the model costs for one picture of size x size with so many channels.

    Returns:
        parameters; flops: floating-point operations of a forward pass in convolutions and matrix products, where a
        multiplication with its addition counts as two (torch.utils.flop_counter); activation_memory: bytes that a
        forward pass in float32 keeps for the backward pass, the peak of a training step besides weights and gradients.
    """
    was_training = model.training
    device = next(model.parameters()).device
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node kept would be a circle that is never freed

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    uncompiled = torch.compiler.set_stance("force_eager")  # a compiled model may keep less, and can't be counted
    with torch.enable_grad(), uncompiled, hooks, FlopCounterMode(display=False) as counter:
        # eval mode keeps the same tensors; in training mode batch normalisation needs more than one picture
        logits = model.eval()(torch.zeros(1, channels, size, size, dtype=torch.uint8, device=device))
    del logits  # kept the storages alive until here, so that no address was used twice
    model.train(was_training)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": counter.get_total_flops(),
        "activation_memory": sum(kept.values()),
    }
