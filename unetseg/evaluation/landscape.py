"""The loss around a trained model's weights, in filter-normalised random directions (Li et al. 2018) and the sharpest.

The loss is the run's own: the mean over a few pictures of each one's, without weight decay. Batch normalisation has its
stored statistics, as in the authors' own figures.

Legend: N pictures, P trained weights, all in one vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unetseg.data.dataset import Batch
from unetseg.evaluation.statistics import rates_with_interval
from unetseg.model.skips import Fusion

PICTURES = 16
"""Pictures of the split, drawn by a seed, whose loss is looked at."""
SIDE = 21
"""Points along each side of the plane, from -1 to 1."""
POINTS = 51
"""Points of each line, from -1 to 1."""
RISE_AT = 0.5
"""The place a along a random direction, and -a against it, at which the rise of the loss is taken."""
MOST_PRODUCTS = 60
"""Products with the Hessian after which its top eigenvector is taken as it is."""
RESIDUAL = 0.01
"""|Hv - lambda v| / |lambda| at which it is found."""
AT_ONCE = 8
"""Pictures in a forward pass."""

Direction = list[Tensor]
"""A tensor for each of a model's parameters, of its shape."""
Track = Callable[..., Iterable[Any]]


def measure(
    model: nn.Module,
    batch: Batch,
    criterion: nn.Module,
    groups: Sequence[str],
    *,
    track: Track = lambda sequence, description: sequence,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the loss on a plane and three lines through the weights, and the sharpness along the lines.

    Args:
        model: in eval mode; its weights are what they were afterwards, to the last bit, also where this fails.
        batch: N pictures, on the model's device.
        criterion: the loss, in eval mode: maps logits 1xKxHxW and classes 1xHxW to a scalar.
        groups: of the N pictures.
        track: wraps a sequence, with a description, to show a progress bar.

    Returns:
        The landscape: direction (plane, first, second, top), a, b (the plane's second coordinate, else nan), loss. And
        the sharpness of each line: `length` of the step a = 1, `curvature` d'Hd / d'd with the ends of its 95 %
        interval over the pictures, which is the largest eigenvalue for top, and there also the `residual`; for the
        random ones the `rise` of the loss, likewise: the mean of those at RISE_AT and -RISE_AT.
    """
    weights = list(model.parameters())
    first, second = (random_direction(weights, seed) for seed in (0, 1))
    products = HessianProducts(model, batch, criterion)
    eigenvalue, vector, residual = top_eigenpair(
        lambda own: products(own)[0],
        torch.randn(products.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        track(range(MOST_PRODUCTS), "sharpest direction"),
    )
    length = abs(eigenvalue) ** -0.5 if eigenvalue else 1.0
    top = products.as_direction(length * vector, weights)
    lines = {"first": first, "second": second, "top": top}
    sharpness = [
        _curvature(name, direction, products, groups)
        | ({"residual": residual} if name == "top" else _rise(model, batch, criterion, direction, groups))
        for name, direction in track([*lines.items()], "sharpness along each direction")
    ]
    return _landscape(model, batch, criterion, lines, track), pd.DataFrame(sharpness)


def random_sharpness(
    model: nn.Module,
    batch: Batch,
    criterion: nn.Module,
    groups: Sequence[str],
    *,
    track: Track = lambda sequence, description: sequence,
) -> pd.DataFrame:
    """Return the rows `first` and `second` of `measure`'s sharpness alone, which take a tenth of the time."""
    weights = list(model.parameters())
    products = HessianProducts(model, batch, criterion)
    rows = []
    for seed, name in enumerate(track(("first", "second"), "sharpness along random directions")):
        direction = random_direction(weights, seed)
        rows.append(_curvature(name, direction, products, groups) | _rise(model, batch, criterion, direction, groups))
    return pd.DataFrame(rows)


def _landscape(
    model: nn.Module, batch: Batch, criterion: nn.Module, lines: dict[str, Direction], track: Track
) -> pd.DataFrame:
    """Return the loss on the plane of the first two directions, and along each; the weights come back afterwards."""
    weights = list(model.parameters())
    lines = {name: [torch.empty_like(w).copy_(x) for w, x in zip(weights, d, strict=True)] for name, d in lines.items()}
    first, second, *_ = lines.values()
    grid, line = np.linspace(-1, 1, SIDE).tolist(), np.linspace(-1, 1, POINTS).tolist()
    places = [("plane", a, b) for a in grid for b in grid] + [(name, a, float("nan")) for name in lines for a in line]
    rows = []
    with restored(weights) as own:
        column = [torch.empty_like(start) for start in own]
        at = None
        for name, a, b in track(places, "loss landscape"):
            if name != "plane":
                _move(weights, own, lines[name], a)
            else:
                if a != at:
                    _move(column, own, first, a)
                    at = a
                _move(weights, column, second, b)
            rows.append({"direction": name, "a": a, "b": b, "loss": mean_loss(model, batch, criterion)})
    return pd.DataFrame(rows)


def random_direction(weights: Sequence[Tensor], seed: int) -> Direction:
    """Return a random direction, every filter of it as long as the weights' own (Li et al. 2018, section 4).

    A filter is what belongs to one output, weight[i]. Parameters of one dimension (biases, normalisations) have zeros.
    """
    generator, direction = torch.Generator().manual_seed(seed), []
    for weight in weights:
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        if weight.dim() < 2:
            direction.append(torch.zeros_like(drawn))
            continue
        own, wanted = (
            torch.linalg.vector_norm(part, dim=tuple(range(1, part.dim())), keepdim=True)
            for part in (drawn, weight.detach())
        )
        direction.append(drawn * (wanted / own))
    return direction


@contextmanager
def restored(weights: Sequence[Tensor]) -> Iterator[Direction]:
    """Yield a copy of the weights, and put it back when the block is left, however it is left."""
    own = [weight.detach().clone() for weight in weights]
    try:
        yield own
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, own, strict=True):
                weight.copy_(value)


def mean_loss(model: nn.Module, batch: Batch, criterion: nn.Module) -> float:
    """Return the mean over the pictures of each one's loss."""
    return float(losses(model, batch, criterion).mean())


@torch.no_grad()
def losses(model: nn.Module, batch: Batch, criterion: nn.Module) -> np.ndarray:
    """Return the loss of each of the N pictures, float64."""
    found = []
    for images, masks in zip(batch.images.split(AT_ONCE), batch.masks.split(AT_ONCE), strict=True):
        pairs = zip(model(images).split(1), masks.split(1), strict=True)
        found += [criterion(logits, mask) for logits, mask in pairs]
    return torch.stack(found).cpu().double().numpy()


class HessianProducts:
    """Products of vectors with the Hessian of `mean_loss` by the trained weights.

    Where a long skip lets the features through and no gradient, or the other way round, the Hessian is that of the loss
    as a function of the weights, whatever the training's gradient was. The precision is the model's, sums over batches
    are double (single on Apple's GPUs, which have no double).

    Args:
        model: in eval mode; it is copied.
        batch: N pictures.
        criterion: the loss.
    """

    def __init__(self, model: nn.Module, batch: Batch, criterion: nn.Module):
        self.model, self.batch, self.criterion = copy.deepcopy(model), batch, criterion
        for module in self.model.modules():
            if isinstance(module, Fusion):
                module.gradient = 0.0 if module.flow == "backward" else 1.0
                module.flow = "both" if module.flow == "forward" else module.flow
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.device = self.weights[0].device
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.size = sum(weight.numel() for weight in self.weights)
        """P."""

    def __call__(self, vector: Tensor, at_once: int = AT_ONCE // 2) -> tuple[Tensor, np.ndarray]:
        """Return H v, a vector of P, and the sums of v'H_i v over each `at_once` pictures i."""
        vector = vector.to(self.device, self.dtype)
        parts = [part.to(w) for part, w in zip(self._unflattened(vector), self.weights, strict=True)]
        total, along = torch.zeros_like(vector), []
        own = torch.empty_like(vector)
        slots = self._unflattened(own)
        for images, masks in zip(self.batch.images.split(at_once), self.batch.masks.split(at_once), strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                pairs = zip(self.model(images).split(1), masks.split(1), strict=True)
                loss = torch.stack([self.criterion(logits, mask) for logits, mask in pairs]).sum()
                gradient = torch.autograd.grad(loss, self.weights, create_graph=True, materialize_grads=True)
                slope = torch.stack([(g * v).sum() for g, v in zip(gradient, parts, strict=True)]).sum()
                if not slope.requires_grad:  # of a linear loss
                    along.append(0.0)
                    continue
                product = torch.autograd.grad(slope, self.weights, materialize_grads=True)
            for slot, part in zip(slots, product, strict=True):
                slot.copy_(part)
            total += own
            along.append(float(own @ vector))
        return total / len(self.batch.images), np.array(along)

    def as_direction(self, vector: Tensor, weights: Sequence[nn.Parameter]) -> Direction:
        """Return a vector of P as a direction of a model's parameters; 0 where they aren't trained."""
        parts = iter(self._unflattened(vector.to(self.device, self.dtype)))
        return [(next(parts) if w.requires_grad else torch.zeros_like(w)).to(w) for w in weights]

    def as_vector(self, direction: Direction, weights: Sequence[nn.Parameter]) -> Tensor:
        """Return a direction of a model's parameters as a vector of P."""
        parts = [part.flatten() for part, w in zip(direction, weights, strict=True) if w.requires_grad]
        return torch.cat([part.to(self.dtype) for part in parts])

    def _unflattened(self, vector: Tensor) -> list[Tensor]:
        sizes = [weight.numel() for weight in self.weights]
        return [part.view_as(w) for part, w in zip(vector.split(sizes), self.weights, strict=True)]


def top_eigenpair(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: Iterable[Any]
) -> tuple[float, Tensor, float]:
    """Return the largest eigenvalue of a symmetric matrix, its unit eigenvector and |Hv - lambda v| / |lambda|.

    Locally optimal conjugate gradients (Knyazev 2001): each step takes the best vector in the span of the last one, its
    residual and the last step. The error of the eigenvalue is at most the residual times its size, and mostly about
    that squared. A vector may be as long as 10^8 numbers, so all is computed in place: new memory costs as much again.

    Args:
        product: of the matrix with a vector: a new tensor.
        start: a vector, other than an eigenvector of another value.
        steps: it ends with these, or when the residual is below RESIDUAL.
    """
    vector = start / start.norm()
    image = product(vector)
    vector = vector.to(image)
    move, moved = None, None
    scratch = torch.empty_like(image)
    for _ in steps:
        value = vector @ image
        rest = torch.sub(image, torch.mul(vector, value, out=scratch))
        size = rest.norm()
        if size <= RESIDUAL * value.abs():
            break
        basis, images = [vector], [image]
        for other, own in ((rest, None), (move, moved)):
            if other is None:
                continue
            for _ in range(2):  # Gram and Schmidt, twice for the digits
                for known, known_image in zip(basis, images, strict=True):
                    part = known @ other
                    other.sub_(torch.mul(known, part, out=scratch))
                    if own is not None:
                        own.sub_(torch.mul(known_image, part, out=scratch))
            length = other.norm()
            if length > 1e-12 * size:
                basis.append(other.div_(length))
                images.append(product(other) if own is None else own.div_(length))
        if len(basis) == 1:
            break
        small = torch.stack([torch.stack([a @ b for b in images]) for a in basis])
        best = torch.linalg.eigh((small + small.T).cpu() / 2).eigenvectors[:, -1].to(vector)
        move, moved = (_combined(best[1:], own[1:]) for own in (basis, images))
        vector.mul_(best[0]).add_(move)
        image.mul_(best[0]).add_(moved)
        length = vector.norm()
        vector.div_(length)
        image.div_(length)
    value = float(vector @ image)
    residual = float((image - value * vector).norm())
    return value, vector, residual / abs(value) if value else 0.0


def _combined(factors: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Return the sum of vectors, each times its factor, in the place of the first; the others are changed as well."""
    first, *others = (vector.mul_(factor) for factor, vector in zip(factors, vectors, strict=True))
    for other in others:
        first.add_(other)
    return first


def _curvature(name: str, direction: Direction, products: HessianProducts, groups: Sequence[str]) -> dict[str, Any]:
    """Return the length of a direction and the curvature along it, with its interval over the pictures."""
    vector = products.as_vector(direction, list(products.model.parameters()))
    length = float(vector.norm())
    _, along = products(vector / length, at_once=1)
    return {"direction": name, "length": length, **_with_interval("curvature", along, groups)}


def _rise(
    model: nn.Module, batch: Batch, criterion: nn.Module, direction: Direction, groups: Sequence[str]
) -> dict[str, float]:
    """Return the mean rise of the loss at RISE_AT along a direction and against it, with its interval."""
    weights, found = list(model.parameters()), []
    with restored(weights) as own:
        for share in (0.0, RISE_AT, -RISE_AT):
            _move(weights, own, direction, share)
            found.append(losses(model, batch, criterion))
    here, *there = found
    return _with_interval("rise", np.mean(there, 0) - here, groups)


def _with_interval(name: str, values: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Return the mean over the pictures and the ends of its 95 % interval, by their columns' names."""
    ends = rates_with_interval(np.stack([np.ones_like(values), values], -1)[:, None], groups)
    return {name + end: float(value[0]) for end, value in zip(("", "_low", "_high"), ends, strict=True)}


@torch.no_grad()
def _move(weights: Sequence[Tensor], own: Direction, way: Direction, share: float) -> None:
    """Set weights to a share of a way from their own values: in place, as copies of all would take half of the time."""
    for weight, start, step in zip(weights, own, way, strict=True):
        torch.mul(step, share, out=weight).add_(start)
