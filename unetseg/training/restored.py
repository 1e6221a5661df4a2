"""The checks of last.ckpt, which may be a stranger's, or damaged; Lightning itself checks nothing of it.

And those of what is about to be written into it, which must be readable again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from unetseg.errors import UserError
from unetseg.model import archive

PLAIN = (type(None), bool, int, float, str, Tensor, nn.Parameter, torch.dtype)
"""What dicts, lists and tuples of a checkpoint may hold; a number of NumPy is none of these."""

MEANS = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq_r", "exp_avg_sq_c")
"""Moments of timm's Adafactors that are means over an axis of the weight."""

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "model.mean", "model.std")
"""Endings of the names in a state dict that are no parameters."""


def check(content: Any) -> None:
    """Raise a ValueError that names a part which is not of the kind or shape that training writes.

    Paths in it aren't checked, as only those of the run folder are used.
    """
    parts: dict[str, Callable[[Any], bool]] = {
        "epoch": _is_count,
        "global_step": _is_count,
        "pytorch-lightning_version": lambda value: isinstance(value, str) and value.startswith("2."),
        "state_dict": lambda value: isinstance(value, dict),
        "optimizer_states": lambda value: isinstance(value, list) and all(map(_is_optimizer, value)),
        "lr_schedulers": lambda value: isinstance(value, list) and all(map(_is_settings, value)),
        "loops": _are_counts,
        "callbacks": lambda value: isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()),
        "SegmentationData": _are_counts,
    }
    if not isinstance(content, dict):
        raise ValueError("it is no checkpoint")
    for name, fits in parts.items():
        if name not in content or not fits(content[name]):
            raise ValueError(f"its {name} is not what training writes")
    for name in ("state_dict", "current_model_state", "averaging_state"):  # the last two with an average of the weights
        archive.check_dense(content.get(name, {}))
    shapes = [value.shape for name, value in content["state_dict"].items() if not name.endswith(BUFFERS)]
    for optimizer in content["optimizer_states"]:
        fused = any(group.get("fused") for group in optimizer["param_groups"])
        for number, entry in optimizer["state"].items():
            tensors = {name: value for name, value in entry.items() if isinstance(value, Tensor)}
            if number >= len(shapes) or not all(_is_of(shapes[number], *t, fused=fused) for t in tensors.items()):
                raise ValueError("its optimizer's state is of other weights")


def code(content: dict[str, Any]) -> Any:
    """Return what a checkpoint says of the source of the user's own classes."""
    known = content.get("hyper_parameters")
    return known.get("code") if isinstance(known, dict) else None


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check the callbacks of the user's own before a run begins.

    Raises:
        UserError: the state of one isn't plain, or two keep theirs under one name.
    """
    stateful = [callback for callback in callbacks if is_overridden("state_dict", callback, Callback)]
    keys = [callback.state_key for callback in stateful]
    for callback, key in zip(stateful, keys, strict=True):
        if keys.count(key) > 1:
            raise UserError(
                f"callbacks: {keys.count(key)} of {key} have a state, of which a checkpoint can hold one",
                accepted="one of a class, or a property `state_key` that is another text for each",
            )
        try:
            state = callback.state_dict()
        except Exception:  # it may need the trainer; then it is checked when it is saved
            continue
        place = f"callbacks: {type(callback).__name__}.state_dict()"
        if not isinstance(state, dict):
            raise UserError(f"{place} is {type(state).__name__}", accepted="a dict")
        check_plain(state, place)


def check_plain(value: Any, place: str) -> None:
    """Raise a UserError that names the part of a state which isn't plain: no run could be resumed with it."""
    kind = type(value)
    if kind in (dict, OrderedDict, list, tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(key, f"the key {key!r} of {place}")
            check_plain(part, f"{place}[{key!r}]")
    elif kind not in PLAIN:
        raise UserError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}: no run could be resumed with it",
            accepted="tensors, numbers of Python, texts, and dicts, lists and tuples of them",
            advice="float(...), int(...), str(...), or torch.as_tensor(...) of it in state_dict",
        )


def table_lengths(state: Any) -> dict[str, int]:
    """Return the lengths of the tables in Continuation's state, in bytes; raise a ValueError where they are absent."""
    lengths = state.get("tables") if isinstance(state, dict) else None
    if not isinstance(lengths, dict) or not _are_counts(lengths):
        raise ValueError("it doesn't say how long the tables were")
    return lengths


def finite_score(value: Any) -> Tensor | None:
    """Return a score as a tensor of one finite number, or None where it is something else."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not torch.isfinite(value).all():
        return None
    return value.detach().clone().reshape(())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _are_counts(value: Any) -> bool:
    """Return whether this is a count or truth value, or a dict of them at any depth."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_are_counts, value.values()))
    return isinstance(value, bool) or _is_count(value)


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, bool | int | float | str)


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and _is_setting(v) for k, v in value.items())


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    if not isinstance(groups, list) or not groups or not all(map(_is_group, groups)):
        return False
    return all(_is_count(number) and _is_moments(entry) for number, entry in value["state"].items())


def _is_group(value: Any) -> bool:
    """Return whether these are the settings of an optimizer's group of weights; some count steps in a tensor."""
    if not isinstance(value, dict):
        return False
    numbers = [own for own in value.values() if isinstance(own, Tensor)]
    others = {name: own for name, own in value.items() if not isinstance(own, Tensor | torch.dtype)}
    return _is_settings(others) and all(number.numel() == 1 for number in numbers)


def _is_moments(value: Any) -> bool:
    """Return whether this is the state that an optimizer keeps of one weight."""
    return isinstance(value, dict) and all(isinstance(v, Tensor) or _is_setting(v) for v in value.values())


def _is_of(weight: torch.Size, name: str, moment: Tensor, *, fused: bool) -> bool:
    """Return whether a moment may be of a weight of this shape; torch's fused step would write beyond a smaller one."""
    if name in MEANS:
        return moment.numel() <= weight.numel() and {*moment.shape} <= {1, *weight}
    return moment.shape == weight or (moment.numel() == 1 and (name == "step" or not fused))
