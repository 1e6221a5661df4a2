"""From a checkpoint, or a folder of save_pretrained, to its model."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unetseg import classes
from unetseg.errors import UserError, first_line
from unetseg.files import read_json
from unetseg.model import archive, arguments, hub
from unetseg.model.segmenter import Segmenter
from unetseg.model.unet import SkipUnet
from unetseg.names import shown

PREFIX = "model."
"""Prefix of the Segmenter's names in the state dict: it is the attribute `model` of the LightningModule."""
LOSS = "loss."
"""Prefix of its loss's, likewise."""


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of random weights, which takes as long as reading them: a checkpoint replaces them all.

    A tensor that would have been drawn gets the distribution's mean or lower end, as `torch.nn.init.trunc_normal_`
    draws again until every value lies within its bounds, and what lies in new memory may never do so.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor that would have been drawn; call any other function."""
        named = kwargs or {}
        if func is Tensor.normal_:
            return args[0].fill_(named.get("mean", args[1] if len(args) > 1 else 0.0))
        if func is Tensor.uniform_:
            return args[0].fill_(named.get("from", args[1] if len(args) > 1 else 0.0))
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _build(given: dict[str, Any]) -> Segmenter:
    """Return the Segmenter whose weights are then replaced; a class of somebody's own may keep what it has drawn."""
    with nullcontext() if arguments.own_classes(given) else _Undrawn():
        return Segmenter(**given)


def load(path: str | Path, *, trust: bool = False, as_trained: bool = False) -> tuple[Segmenter, dict[str, Any]]:
    """Load a checkpoint of unetseg.train, or the tested one of a run folder.

    Args:
        path: of the file or the folder.
        trust: import the classes of the user's own that it names, see `unetseg.classes`.
        as_trained: keep the weights of a training in float64 as they are; otherwise they become float32.

    Returns:
        The model, in eval mode on the CPU, and the checkpoint's hyper-parameters; with them the `precision` of its
        training, None where it isn't known.

    Raises:
        UserError: the file can't be read safely, is damaged, holds NaN, or is no checkpoint of unetseg; or it names a
            class that isn't trusted or can't be imported.
    """
    file = checkpoint_file(path)
    try:
        content = archive.load(file)
        known = hyper_parameters(content) | {"precision": content.get("precision")}
        arguments.check_value("precision", known["precision"], arguments.PRECISION)
    except Exception as error:  # damaged bytes make the unpickler fail in many ways
        raise _load_error(file, error) from None
    classes.admit(own := arguments.own_classes(known["model"]), file, trust)
    classes.say_changed(known.get("code"), own, file)
    try:
        model = _build({**known["model"], "weights": None})
        if as_trained and known["precision"] == "64-true":
            model.double()
        weights = {name.removeprefix(PREFIX): w for name, w in content["state_dict"].items() if name.startswith(PREFIX)}
        if not all(isinstance(weight, Tensor) for weight in weights.values()):
            raise ValueError("its weights are no tensors")
        model.load_state_dict(weights)
        archive.check_finite(model.state_dict())
    except Exception as error:
        raise _load_error(file, error) from None
    return model.eval(), known


def load_loss(path: str | Path, loss: nn.Module) -> None:
    """Give a loss the parameters and buffers that it had in the training of a checkpoint.

    Raises:
        UserError: the file can't be read safely, is damaged, or holds those of another loss.
    """
    file = checkpoint_file(path)
    try:
        state = archive.load(file)["state_dict"]
        loss.load_state_dict({name.removeprefix(LOSS): own for name, own in state.items() if name.startswith(LOSS)})
    except Exception as error:
        raise _load_error(file, error) from None


def load_pretrained(folder: Path, *, trust: bool = False) -> tuple[Segmenter, dict[str, Any]]:
    """Return the model of a folder that `unetseg.save_pretrained` wrote, in eval mode, with its `classes` and `data`.

    `trust` is that of `load`.

    Raises:
        UserError: it can't be read safely, or doesn't state its classes.
    """
    net = SkipUnet.from_pretrained(folder, trust=trust)
    known = hub.recorded_data(folder)
    if known is None:
        raise UserError(
            f"{folder} doesn't say what its classes are and how pictures are seen",
            accepted="a folder that unetseg.save_pretrained wrote",
            advice="unetseg.model.SkipUnet.from_pretrained, which gives the network alone",
        )
    data, classes = known["data"], len(known["classes"])
    normalisation = {"mean": data.get("mean"), "std": data.get("std")}
    model = _build({**net.config, **normalisation, "classes": classes, "weights": None})
    model.net.load_state_dict(net.state_dict())
    return model.eval(), known


def read_hyper_parameters(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's hyper-parameters alone; as `load` otherwise."""
    file = checkpoint_file(path)
    try:
        return hyper_parameters(archive.load(file))
    except Exception as error:
        raise _load_error(file, error) from None


def checkpoint_file(path: str | Path) -> Path:
    """Return the file itself, or the checkpoint of a run folder that was tested; print it where another is taken.

    Raises:
        UserError: there is none, or the folder's summary.json can't be read.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file():
        return path
    chosen = tested(path)
    for file in (chosen, path / "checkpoints" / "last.ckpt", path / "checkpoints" / "best.ckpt"):
        if file.is_file():
            if file != chosen:
                print(f"{path} holds no {chosen.name}; its {file.name} is taken", file=sys.stderr)
            elif (path / "config.yaml").exists() and not (path / "summary.json").exists():
                print(f"{path} is not finished; its {file.name} is taken", file=sys.stderr)
            return file
    raise UserError(f"checkpoint={path} holds no checkpoints/{chosen.name}", accepted="a run folder or a .ckpt file")


def tested(folder: Path) -> Path:
    """Return the checkpoint that the scores of a run folder are of, which may be gone; best.ckpt while it trains.

    Raises:
        UserError: the folder's summary.json can't be read.
    """
    summary, name = folder / "summary.json", "best.ckpt"
    try:
        name = (read_json(summary).get("checkpoint") or name) if os.path.lexists(summary) else name
        if name not in ("best.ckpt", "last.ckpt"):
            raise ValueError("names no checkpoint of a run")
    except ValueError as error:
        raise UserError(
            f"{summary} {shown(str(error))}",
            accepted="the summary of a run, which says which checkpoint was tested",
            advice=f"the file itself: {folder / 'checkpoints/best.ckpt'}, or last.ckpt",
        ) from None
    return folder / "checkpoints" / name


def hyper_parameters(content: Any) -> dict[str, Any]:
    """Return the hyper-parameters among a checkpoint's content.

    Raises:
        ValueError: they are not as training writes them.
    """
    known = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(known, dict):
        raise ValueError("it holds no hyper-parameters of unetseg")
    arguments.check(known.get("model"), arguments.SEGMENTER)
    names, data, count = known.get("classes"), known.get("data"), known["model"]["classes"]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its classes are not {count} names")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError("it doesn't say what data it was trained on")
    arguments.check_view(data)
    if known["model"].get("in_channels", 3) != (data.get("channels") or 3):
        raise ValueError("its model and its data have different numbers of channels")
    arguments.check_value("loss", known.get("loss"), arguments.LOSS)
    arguments.check_value("class_weights", known.get("class_weights"), arguments.class_weights_rule(count))
    arguments.check_value("boundary_weight", known.get("boundary_weight"), arguments.BOUNDARY_WEIGHT)
    arguments.check_value("seed", known.get("seed"), arguments.whole_number_rule(0, 2**63))
    return known


def _load_error(file: Path, error: Exception) -> UserError:
    other = file.with_name("best.ckpt" if file.name == "last.ckpt" else "last.ckpt")
    return UserError(
        f"{file} can't be loaded: {first_line(error)}",
        accepted="a checkpoint that unetseg.train has written",
        advice=str(other) if other.is_file() and file.name in ("best.ckpt", "last.ckpt") else (),
    )
