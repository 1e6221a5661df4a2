"""An ONNX file whose convolutions calculate in 8-bit integers, by onnxruntime's quantizer.

Weights have a scale for each output channel, activations one for each tensor: the range that they have on given
pictures. The file says so by operators of ONNX itself (QuantizeLinear, DequantizeLinear), which runtimes replace by
integer arithmetic where they have it.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from unetseg.data.view import View
from unetseg.data.volumes import Volume
from unetseg.errors import UserError
from unetseg.inference.engines import Engine, import_extra, quiet
from unetseg.inference.predictor import Predictor
from unetseg.inference.selection import Selection
from unetseg.names import counted

MOST = 100
"""Pictures, and inputs of the model, that set the ranges."""
LEAST = 10
"""Pictures without which the ranges are those of a few alone."""
HELD = 5
"""Of as many pictures one is kept for the comparison with float32."""
CHANGED = 0.05
"""The share of pixels of another class above which a file is of no use."""
AGREED = 0.8
"""The IoU of int8's pixels of a class with float32's below which a file is of no use: small classes may be lost."""
RARE = 1e-4
"""The share of all pixels in float32 below which a class is too rare to tell."""
FLAT = 0.9
"""The share of numbers with one of four values above which pictures are like masks."""


class Recorder:
    """An engine that keeps some of what it is given, drawn at random from all, and gives even probabilities.

    Examples:
        >>> recorder = Recorder(("background", "pet"), View(64))
        >>> mask = Predictor(recorder)(np.zeros((48, 100, 3), np.uint8))
        >>> [images.shape for images in recorder.kept]
        [(1, 64, 64, 3)]
    """

    def __init__(self, classes: tuple[str, ...], view: View):
        self.classes, self.view = classes, view
        self.kept: list[np.ndarray] = []
        self.seen = 0
        self.generator = np.random.default_rng(0)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Map BxHxWxD to BxCxHxW, the same for each class."""
        for image in images:
            self.seen += 1
            if len(self.kept) < MOST:
                self.kept.append(image[None].copy())
            elif (place := self.generator.integers(self.seen)) < MOST:  # each input is kept with the same probability
                self.kept[place] = image[None].copy()
        shape = (len(images), len(self.classes), *images.shape[1:3])
        return np.full(shape, 1 / len(self.classes), np.float32)


def inputs_of(
    selection: Selection, classes: tuple[str, ...], view: View, track: Callable[[Sequence[Path]], Iterable[Path]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what a model gets of pictures in prediction: for the ranges, and of every HELD-th picture for the check.

    They are of MOST pictures evenly spaced, at most MOST each, 1xHxWxD.

    Args:
        selection: the pictures.
        classes: of the model.
        view: of the model.
        track: shows the progress.

    Raises:
        UserError: there are fewer than LEAST pictures.
    """
    if len(selection.files) < LEAST:
        raise UserError(
            f"int8: {counted(len(selection.files), 'picture')}; by so few the ranges of the activations aren't known",
            accepted=f"{LEAST} pictures or more",
            advice="some of the training pictures",
        )
    recorders = Recorder(classes, view), Recorder(classes, view)
    predictors = [Predictor(recorder) for recorder in recorders]
    for number, path in enumerate(track(selection.files[:: math.ceil(len(selection.files) / MOST)])):
        predictor = predictors[number % HELD == HELD - 1]
        with selection.open(path, view) as opened:
            for picture in opened if isinstance(opened, Volume) else [opened]:
                for _ in next(predictor.bands([picture])):
                    pass
    return recorders[0].kept, recorders[1].kept


def flatness(inputs: Sequence[np.ndarray]) -> float:
    """Return the share of numbers that have one of an input's four most frequent values: the mean over the inputs.

    Examples:
        >>> flatness([np.zeros((1, 2, 2, 3)), np.arange(12).reshape(1, 2, 2, 3)])
        0.6666666666666666
    """
    counts = [np.unique(images, return_counts=True)[1] for images in inputs]
    return float(np.mean([np.sort(own)[-4:].sum() / own.sum() for own in counts]))


def quantize(content: bytes, inputs: Sequence[np.ndarray]) -> bytes:
    """Return an ONNX file in int8, without its metadata.

    Args:
        content: the file in float32.
        inputs: 1xHxWxD each, on which the ranges of the activations are measured.
    """
    tool = import_extra("onnxruntime.quantization")
    rest = iter(inputs)
    reader = SimpleNamespace(get_next=lambda: next(({"images": images} for images in rest), None))
    with tempfile.TemporaryDirectory() as folder, quiet(logging.WARNING):  # it advises what these files don't need
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(content)
        tool.quantize_static(
            source,
            target,
            reader,
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,  # what CPUs multiply with int8 weights
            weight_type=tool.QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: with 8, CPUs without VNNI cut sums off at 16 bits, without a word
        )
        return target.read_bytes()


@dataclass(frozen=True)
class Changes:
    """How far an engine's classes are from another's."""

    share: float
    """Of the pixels, those of another class."""
    agreement: dict[str, float]
    """By class: the IoU of its pixels by the one with those by the other; without classes that are too rare to tell."""


def changed(before: Engine, after: Engine, inputs: Sequence[np.ndarray]) -> Changes:
    """Return how the classes of two engines differ; raise a UserError where it is too much.

    Args:
        before: in float32.
        after: in int8.
        inputs: 1xHxWxD each, others than those that have set the ranges; one or more.
    """
    if not inputs:
        raise ValueError("no inputs on which int8 is compared with float32")
    advice = ("more pictures, like those of training", "int8=null")
    classes = len(before.classes)
    shares, table = [], np.zeros((classes, classes), np.int64)
    for images in inputs:
        found, other = (engine.probabilities(images) for engine in (before, after))
        if not np.isfinite(other.sum()):
            raise UserError("in int8 the probabilities are not numbers: not written", advice=advice)
        maps = found.argmax(1), other.argmax(1)
        shares.append(np.mean(maps[0] != maps[1]))
        table += np.bincount((classes * maps[0] + maps[1]).ravel(), minlength=classes**2).reshape(classes, classes)
    of_either = table.sum(0) + table.sum(1) - table.diagonal()
    agreement = {
        name: float(table[label, label] / of_either[label])
        for label, name in enumerate(before.classes)
        if table[label].sum() >= max(1, RARE * table.sum())
    }
    share = float(np.mean(shares))
    name = min(agreement, key=agreement.__getitem__)
    if share > CHANGED:
        reason = f"{share:.1%} of the pixels get another class, more than {CHANGED:.0%}"
    else:
        reason = f"the pixels of {name} have an IoU of {agreement[name]:.2f} with float32's, below {AGREED}"
    if share > CHANGED or agreement[name] < AGREED:
        raise UserError(f"in int8 {reason}: not written", advice=advice)
    return Changes(share, agreement)
