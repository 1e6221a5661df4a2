"""A part of the user's own is built a second time and called before a training depends on it.

What is tried is thrown away: no call changes the part that is trained, nor the random numbers that are drawn later.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unetseg import classes
from unetseg.classes import described
from unetseg.errors import UserError, first_line

OTHERS = 6
"""Objects that are tried, one by its rules and the others among each other: a few random signs may agree by chance."""
CALLS = 3
"""Calls in training mode before an object's state is saved."""
_OF_MODULES = {*vars(nn.Module())}
"""The attributes by which torch registers parameters, buffers, modules and hooks."""


def build_tried(
    text: str,
    option: str,
    base: type,
    places: Mapping[str, Any],
    keywords: Mapping[str, Any],
    attempt: Callable[[Any], object],
    inputs: Callable[[], Sequence[Any]],
) -> Any:
    """Return an object of the user's own class; others, of other random numbers, go through an attempt.

    On the device "meta", where there are no numbers, nothing is tried.

    Args:
        text: the class's name and own arguments.
        option: that it is the value of.
        base: what it must be a subclass of.
        places: what it is given in order.
        keywords: what it is given by name.
        attempt: calls another one, and raises a UserError where something is wrong with it.
        inputs: returns what an object can be called with.

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
    setting = f"{option}={text}"
    _check_weights(built, setting)
    if not on_meta:
        with _generators_kept(), torch.inference_mode(False):
            others = [classes.build(text, option, base, places, keywords) for _ in range(OTHERS)]
            for other in others:
                _fill_zeros(other)
            _check_copied(others[0], setting)
            attempt(others.pop())
            _check_reloaded(others, setting, inputs)
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
    except (Exception, SystemExit) as error:  # whatever the user's code raises
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
    try:
        gradients = torch.autograd.grad(
            (result * torch.rand_like(result)).sum(), [*wanted, *weights.values()], allow_unused=True
        )
    except (Exception, SystemExit) as error:  # such as of an operation in place on what another one needs
        raise UserError(
            f"{setting} fails in the backward pass: {described(error)}", accepted="a result with gradients"
        ) from error
    unused = [name for name, own in zip(weights, gradients[len(wanted) :], strict=True) if own is None]
    if unused and part.training:
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


def _check_weights(built: nn.Module, setting: str) -> None:
    """Raise a UserError where weights are not made yet, or are where no optimizer and no checkpoint finds them."""
    odd = [name for name, own in built.state_dict().items() if not isinstance(own, Tensor)]
    if odd:
        raise UserError(
            f"{setting}: {odd[0]} is no tensor, and a checkpoint of unetseg holds tensors alone",
            accepted="parameters and buffers, and no get_extra_state",
        )
    late = [name for name, own in [*built.named_parameters(), *built.named_buffers()] if is_lazy(own)]
    if late:
        raise UserError(
            f"{setting}: its {late[0]} has no shape before a first call",
            accepted="layers whose widths the constructor states, as nn.Conv2d and not nn.LazyConv2d",
        )
    hidden = [name for name, own in _unsaved(built) if own.requires_grad and own.is_leaf]
    if hidden:
        raise UserError(
            f"{setting}: its {hidden[0]} would be neither trained nor kept in a checkpoint",
            accepted="nn.Parameter and modules that are attributes themselves, not in a list or another object",
            advice="nn.ModuleList([...]), nn.ModuleDict({...}) or nn.ParameterList([...])",
        )


def _check_copied(part: nn.Module, setting: str) -> None:
    """Raise a UserError where an object can't be copied, as exports and landscapes do."""
    try:
        copy.deepcopy(part)
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{setting} can't be copied: {described(error)}",
            accepted="what copy.deepcopy takes: no results of operations with gradients as attributes",
            advice="torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm",
        ) from error


def _check_reloaded(parts: Sequence[nn.Module], setting: str, inputs: Callable[[], Sequence[Any]]) -> None:
    """Raise a UserError where an object that was trained with differs from others that are loaded with its state."""
    first, *others = parts
    names = {*first.state_dict()}
    first.train()
    for seed in range(CALLS):
        _call(first, inputs(), seed)
    if late := {*first.state_dict()} - names:
        raise UserError(
            f"{setting} makes its {min(late)} when it is called, so that no checkpoint could be loaded",
            accepted="parameters and buffers that the constructor makes",
        )
    try:
        for other in others:
            other.load_state_dict(first.state_dict())
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{setting} can't load its own state dict: {described(error)}",
            accepted="parameters and buffers that the constructor makes, of the same names and shapes each time",
        ) from error
    given = inputs()
    for is_training in (False, True):
        expected = _call(first.train(is_training), given, 0)
        if is_training and not _equal(expected, _call(first, given, 0)):
            break  # random numbers of its own, or counts: what is tested is the same without training
        for other in others:
            if not _equal(expected, _call(other.train(is_training), given, 0)):
                raise _lost(first, other, setting)


def _call(part: nn.Module, inputs: Sequence[Any], seed: int) -> Tensor:
    """Call a part with random numbers by a seed; those of a GPU, which a training goes on with, stay as they are."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the user's code may draw from it
    with torch.no_grad():
        return part(*inputs)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave Python's, NumPy's and, on the CPU, torch's random numbers as they would be without the block."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  as above
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  as above


def _fill_zeros(part: nn.Module) -> None:
    """Give weights that are zeros other values: they may hide a part of the object until it is trained."""
    with torch.no_grad():
        for weight in part.parameters():
            if not weight.any():
                weight.normal_(std=0.1)


def _lost(one: nn.Module, other: nn.Module, setting: str) -> UserError:
    """Return the error for two objects that differ though they have one state dict."""
    theirs = dict(_unsaved(other))
    drawn = [name for name, own in _unsaved(one) if name in theirs and not _equal(own, theirs[name])]
    if drawn:
        return UserError(
            f"{setting}: its tensor {drawn[0]} is drawn at random, or changes, and no checkpoint would hold it",
            accepted="state that is a parameter, or a buffer with persistent=True",
            advice="self.register_buffer(NAME, ...)",
        )
    return UserError(
        f"{setting}: two objects with the same parameters and buffers give different results, so that a checkpoint "
        "would not be what was trained",
        accepted="state that is a parameter or a buffer with persistent=True; no random numbers or counts elsewhere, "
        "such as in an array of NumPy or a number of Python",
        advice="self.register_buffer(NAME, ...)",
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    one, other = (each.to_dense() if each.layout != torch.strided else each for each in (one, other))
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def _unsaved(part: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors of a part that are not in its state dict, each with its name."""
    saved = part.state_dict()
    tensors = [(name, own) for name, own in part.named_buffers() if name not in saved]
    known = {*map(id, part.modules()), *map(id, part.parameters()), *map(id, part.buffers())}
    for place, module in part.named_modules():
        for name, own in vars(module).items():
            if name not in _OF_MODULES:
                tensors += _inside(own, f"{place}.{name}".lstrip("."), known)
    return tensors


def _inside(value: Any, name: str, known: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors in an attribute, also those in lists, tables and modules; `known` are passed over, each once."""
    if id(value) in known:
        return
    known.add(id(value))
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, own in [*value.named_parameters(), *value.named_buffers()]:
            yield f"{name}.{inner}", own
    elif isinstance(value, list | tuple | dict):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _inside(own, f"{name}[{key!r}]", known)


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"
