"""A part of the user's own is built a second time and called before a training depends on it.

What is tried is thrown away: no call changes the part that is trained, nor the random numbers that are drawn later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unetseg import classes
from unetseg.classes import described
from unetseg.errors import UserError, first_line

OTHERS = 4
"""Objects that one is compared with: a few random signs may be the same by chance."""


def build_tried(
    text: str,
    option: str,
    base: type,
    places: Mapping[str, Any],
    keywords: Mapping[str, Any],
    attempt: Callable[[Any], object],
) -> Any:
    """Return an object of the user's own class; another one, of other random numbers, goes through an attempt.

    On the device "meta", where there are no numbers, nothing is tried.

    Args:
        text: the class's name and own arguments.
        option: that it is the value of.
        base: what it must be a subclass of.
        places: what it is given in order.
        keywords: what it is given by name.
        attempt: calls the other one, and raises a UserError where something is wrong with it.

    Raises:
        UserError: it can't be built, its state would be lost, or the attempt raises one.
    """
    on_meta = torch.empty(()).is_meta
    try:
        built = classes.build(text, option, base, places, keywords)
    except UserError as error:
        if not on_meta:
            raise
        raise UserError(
            f"{first_line(error)}; for match_parameters=true it is built on the device meta, where tensors hold no "
            "numbers",
            accepted="a class whose __init__ reads no tensor's numbers",
            advice="model.match_parameters=false",
        ) from error
    if not on_meta:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            for _ in range(OTHERS):
                other = classes.build(text, option, base, places, keywords)
                _check_state(built, other, f"{option}={text}")
            attempt(other)
    return built


def try_out(part: nn.Module, setting: str, inputs: Sequence[Any], shape: Sequence[int]) -> list[Tensor | None]:
    """Call a part with gradients and return the gradient of each input tensor; None where there is none.

    Args:
        part: of the user's own, in the mode in which it is to be called.
        setting: the option that names it, for messages.
        inputs: tensors, or lists of them.
        shape: that the result must have.

    Raises:
        UserError: it fails, writes into its inputs, or gives another shape; its result or a gradient is not finite, or
            one of its parameters has no gradient.

    Examples:
        >>> [gradient] = try_out(nn.Identity(), "model.skip=a:B", [torch.zeros(1, 2)], (1, 2))
        >>> gradient.shape
        torch.Size([1, 2])
    """
    tensors = [one for given in inputs for one in (given if isinstance(given, list) else [given])]
    leaves = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in tensors]
    passed = [leaf.clone() for leaf in leaves]  # no leaves, into which autograd lets nobody write
    copies = iter(passed)
    arguments = [[next(copies) for _ in given] if isinstance(given, list) else next(copies) for given in inputs]
    on = f"tensors of {' and '.join(_text(one.shape) for one in tensors)}"
    try:
        result = part(*arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{setting} fails on {on}: {described(error)}", accepted=f"a result of {_text(shape)}"
        ) from error
    if not isinstance(result, Tensor) or tuple(result.shape) != tuple(shape):
        given = _text(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise UserError(f"{setting} gives {given} for {on}", accepted=f"a tensor of {_text(shape)}")
    if any(one._version for one in passed):
        raise UserError(
            f"{setting} writes into the tensors that it is given, which others read as well",
            accepted="operations that return a new tensor: x * y and x.clone(), not x *= y, x.mul_(y) or x[mask] = y",
        )
    if not result.requires_grad:
        raise UserError(f"{setting} has no gradient", accepted="a result that depends on the tensors that it is given")
    weights = {name: weight for name, weight in part.named_parameters() if weight.requires_grad}
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(
        (result * torch.rand_like(result)).sum(), [*wanted, *weights.values()], allow_unused=True
    )
    unused = [name for name, own in zip(weights, gradients[len(wanted) :], strict=True) if own is None]
    if unused:
        raise UserError(
            f"{setting}: its parameter {unused[0]} has no gradient, for which distributed training would wait",
            accepted="parameters that the result depends on",
            advice="remove it, or register it as a buffer",
        )
    if not all(bool(own.isfinite().all()) for own in (result, *gradients) if own is not None):
        raise UserError(
            f"{setting} gives NaN or infinite numbers, or gradients, for {on}"
            f"{'' if all(map(torch.any, tensors)) else ', of zeros'}",
            accepted="finite ones, also for zeros, as ReLU gives them",
            advice="a small number added before a division, a logarithm or a root",
        )
    found = iter(gradients)
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _check_state(built: nn.Module, other: nn.Module, setting: str) -> None:
    """Raise a UserError where tensors that no checkpoint holds differ between two objects of a class."""
    theirs = dict(_unsaved(other))
    for name, own in _unsaved(built):
        if name in theirs and not torch.equal(own, theirs[name]):
            raise UserError(
                f"{setting}: its tensor {name} is drawn at random, and no checkpoint would hold it",
                accepted="state that is a parameter, or a buffer with persistent=True",
                advice=f'self.register_buffer("{name.rpartition(".")[2]}", ...)',
            )


def _unsaved(part: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors of a part that are not in its state dict, each with its name."""
    saved = part.state_dict()
    tensors = [(name, own) for name, own in part.named_buffers() if name not in saved]
    for place, module in part.named_modules():
        attributes = [(name, own) for name, own in vars(module).items() if isinstance(own, Tensor)]
        tensors += [(f"{place}.{name}".lstrip("."), own) for name, own in attributes]
    return tensors


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
