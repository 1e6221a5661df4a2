"""The backward passes of a step: which of them its gradient is made of, and what those brought to the features.

A pass counts if it leaves gradients in weights, as `loss.backward()` does and `torch.autograd.grad` does not, and if
these are still there when the next pass begins. What several passes bring to one tensor is summed before it is squared.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable

from unetseg.gradients.routes import ExitRoutes, Term

CHUNK = 1 << 18  # entries that are summed at a time: their float64 copies stay in a processor's cache
State = list[tuple[weakref.ref[Tensor], int] | None]
"""The gradient of each weight and how often it was written to, or None where there is none."""


class Feature:
    """What has arrived at one feature tensor e of the encoder and at its long skip: dL/de and dL/ds of the step."""

    def __init__(self, level: int, encoded: Tensor):
        self.level, self.encoded = level, weakref.ref(encoded)
        self.total: Tensor | None = None
        self.skip: Tensor | None = None
        self.hook: Callable[[], object] = lambda: None
        """A weak reference to the hook of e, which lives as long as a backward pass can reach e."""


@dataclass(frozen=True)
class Arrival:
    """A gradient that a backward pass has brought to a feature, or to its long skip."""

    feature: Feature
    gradient: Tensor
    of_skip: bool
    term: Term | None
    """What it brings to each weight of the encoder, where the routes are wanted."""


class BackwardPasses:
    """Follows the backward passes of a `with` block.

    Args:
        encoder: trainable weights of the encoder: features count where these get a gradient.
        others: the other trainable weights.
        sums: Lx4 zeros, one row a level: <s, s>, <g - s, g - s>, <s, g - s> and <g, g> of g = dL/de and s = dL/ds are
            added.
        on_first: called when the first pass begins.
        routes: where the terms of the encoder's exits are collected, if they are wanted.

    Attributes:
        counted: how many passes have left gradients in weights so far.
        apart: whether there was a pass that does not count.
        refusal: why the features' gradients can't be told, if they can't.
    """

    def __init__(
        self,
        encoder: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        sums: Tensor,
        on_first: Callable[[], object],
        routes: ExitRoutes | None = None,
    ):
        self.routes, self._inside_term = routes, False
        self.encoder, self.weights, self.sums, self.on_first = encoder, [*encoder, *others], sums, on_first
        self.counted, self.refusal = 0, ""
        self.apart = self._differentiated = False
        self._watching, self._begun = True, False
        self._features: list[Feature] = []
        self._under_way: dict[int, tuple[State, list[Arrival]]] = {}
        self._left: State = []  # what the last pass that counts has left in the weights

    def watch(self, level: int, encoded: Tensor) -> Tensor:
        """Return a view of the encoder's features, BxSxHxW, as their long skip, where it is wanted in a backward pass.

        Its values and its gradient are those of the features; hooks on both wait for the gradients.
        """
        inside = torch._C._current_graph_task_id() >= 0  # the forward pass is repeated by torch.utils.checkpoint
        feature = next((known for known in self._features if known.encoded() is encoded), None)
        if inside and encoded.is_leaf:
            self.refusal = (
                "the decoder is recomputed from copies of its input, which part the skips from the encoder: give "
                "torch.utils.checkpoint use_reentrant=False, or the decoder's blocks instead of the decoder"
            )
        if inside and (feature or encoded.is_leaf):
            return encoded
        self._settle()
        if feature is None:
            feature = Feature(level, encoded)
            hook = partial(self._on_gradient, feature, None)
            encoded.register_hook(hook)
            feature.hook = weakref.ref(hook)
            self._features.append(feature)
        skip = encoded.view_as(encoded)
        skip.register_hook(partial(self._on_gradient, feature, encoded))
        return skip

    def on_gradient(self, gradient: Tensor) -> None:
        """Take notice of the pass under way: a tensor hook for what every pass reaches, the logits."""
        self._brought()

    def _brought(self) -> list[Arrival]:
        """Return what the pass under way has brought so far; it begins with the first call from one of its hooks."""
        if not self._watching:
            return []
        number = torch._C._current_graph_task_id()
        if number not in self._under_way:
            if not self._begun:
                self._begun = True
                self.on_first()
            if not self._under_way:
                self._compare()
            self._settle()
            self._under_way[number] = _state(self.weights), []
            Variable._execution_engine.queue_callback(partial(self._end, number))
        return self._under_way[number][1]

    def close(self) -> None:
        """Sum what is left at the end of the block."""
        self._watching = False
        self._settle(everything=True)
        self._under_way.clear()

    def check(self) -> None:
        """Refuse gradients that were put into the weights by hand: of what passes they are made is unknown."""
        if (
            self.apart
            and not _is_distributed()
            and any(
                w.grad is not None and (old is None or old[0]() is not w.grad)
                for w, old in zip(self.encoder, self._left, strict=False)
            )
        ):
            self.refusal = (
                "gradients were put into the weights by hand after torch.autograd.grad or zero_grad(): "
                "only what loss.backward() leaves there can be read"
            )

    def _on_gradient(self, feature: Feature, encoded: Tensor | None, gradient: Tensor) -> None:
        """Take notice of what has arrived at a feature, or at its long skip, where `encoded` is the feature itself."""
        if self._inside_term:
            return
        self._differentiated |= gradient.requires_grad
        gradient, term = gradient.detach(), None
        arrivals = self._brought()
        if self.routes is not None and encoded is not None and self._watching:
            self._inside_term = True
            try:
                term = self.routes.term(encoded, gradient)
            finally:
                self._inside_term = False
        arrivals.append(Arrival(feature, gradient, encoded is not None, term))

    def _end(self, number: int) -> None:
        """Count the pass that has ended, if it has left gradients."""
        before, brought = self._under_way.pop(number, ([], []))
        if not self._watching:
            return
        changed = [not _same(old, w) for old, w in zip(before, self.weights, strict=True)]
        if not any(changed):
            self.apart = True
            return
        self.counted += 1
        self._left = _state(self.encoder)
        if any(changed[: len(self.encoder)]):
            for arrival in brought:
                feature = arrival.feature
                if arrival.of_skip:
                    feature.skip = _plus(feature.skip, arrival.gradient)
                else:
                    feature.total = _plus(feature.total, arrival.gradient)
                if self.routes is not None and arrival.term is not None:
                    self.routes.add(feature.level, arrival.term)
            if self.routes is not None and self._differentiated:
                self.routes.refusal = "a loss made of gradients (create_graph=True) enters the encoder elsewhere"

    def _compare(self) -> None:
        """See whether the gradients of the passes so far are still in the weights when another pass begins."""
        held = [(old, w) for old, w in zip(self._left, self.encoder, strict=False) if old is not None]
        changed = [w.grad for old, w in held if not _same(old, w)]
        if not changed:
            return
        empty = [gradient is None or not gradient.any() for gradient in changed]
        if all(empty) and len(changed) == len(held):
            self.apart, self._left = True, [None] * len(self.encoder)
            self.sums.zero_()
            for feature in self._features:
                feature.total = feature.skip = None
            if self.routes is not None:
                self.routes.clear()
        # Reduction over ranks changes them as well, and so does a pass over the graph of another pass
        elif not _is_distributed() and (any(empty) or not self._differentiated):
            self.refusal = (
                "the gradients of the weights were changed between two backward passes: "
                "change them after the last one, or set all of them to zero"
            )

    def _settle(self, everything: bool = False) -> None:
        """Sum the features that no backward pass can reach any more, and let their gradients go."""
        done = [feature for feature in self._features if everything or feature.hook() is None]
        self._features = [feature for feature in self._features if feature not in done]
        for feature in done:
            if feature.total is not None:
                skip = torch.zeros_like(feature.total) if feature.skip is None else feature.skip
                add_sums(
                    self.sums[feature.level],
                    lambda g, s: (s @ s, (d := g - s) @ d, s @ d, g @ g),
                    [feature.total],
                    [skip],
                )


@torch.no_grad()
def add_sums(sums: Tensor, measure: Callable[..., tuple[Tensor, ...]], *columns: Iterable[Tensor]) -> None:
    """Add to `sums` what `measure` makes of all entries of the columns; the tensors of a row have the same shape."""
    for row in zip(*columns, strict=True):
        order = sorted(range(row[0].ndim), key=row[0].stride, reverse=True)  # as in memory: flatten copies nothing
        vectors = [tensor.detach().permute(order).flatten().split(CHUNK) for tensor in row]
        for pieces in zip(*vectors, strict=True):
            sums += torch.stack(measure(*(piece.to(sums.dtype) for piece in pieces)))


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _state(weights: Iterable[nn.Parameter]) -> State:
    gradients = (weight.grad for weight in weights)
    return [None if g is None else (weakref.ref(g), g._version) for g in gradients]


def _same(old: tuple[weakref.ref[Tensor], int] | None, weight: nn.Parameter) -> bool:
    """Return whether the weight's gradient is what it was."""
    if old is None or weight.grad is None:
        return old is None and weight.grad is None
    return old[0]() is weight.grad and old[1] == weight.grad._version


def _plus(so_far: Tensor | None, gradient: Tensor) -> Tensor:
    """Return the sum, in float32 at least."""
    if so_far is None:
        return gradient
    with torch.no_grad():
        return so_far.to(torch.promote_types(gradient.dtype, torch.float32)) + gradient
