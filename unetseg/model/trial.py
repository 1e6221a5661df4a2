"""A part of the user's own is called once before a training depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unetseg.classes import described
from unetseg.errors import UserError


def try_out(part: nn.Module, setting: str, inputs: Sequence[Any], shape: Sequence[int]) -> Tensor | None:
    """Call a part in eval mode and return its result; None on the device "meta", where there are no numbers.

    The random numbers that are drawn later are the same as without the call.

    Args:
        part: of the user's own.
        setting: the option that names it, for messages.
        inputs: tensors, or lists of them.
        shape: that the result must have.

    Raises:
        UserError: it fails, or gives another shape.

    Examples:
        >>> try_out(nn.Identity(), "model.skip=a:B", [torch.zeros(1, 2)], (1, 2))
        tensor([[0., 0.]])
    """
    tensors = [one for given in inputs for one in (given if isinstance(given, list) else [given])]
    if any(one.is_meta for one in (*tensors, *part.parameters())):
        return None
    modes = {module: module.training for module in part.modules()}
    given = " and ".join("x".join(map(str, one.shape)) for one in tensors)
    try:
        with torch.random.fork_rng(devices=[]):
            result = part.eval()(*inputs)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{setting} fails on tensors of {given}: {described(error)}", accepted=f"a result of {_text(shape)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(result, Tensor) or tuple(result.shape) != tuple(shape):
        is_text = _text(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise UserError(f"{setting} gives {is_text} for tensors of {given}", accepted=f"a tensor of {_text(shape)}")
    return result


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
