"""The backward passes of a step: which of them make its gradient, and the gradients that these bring to the features.

A pass counts if it leaves gradients in weights, as `loss.backward()` does and `torch.autograd.grad` does not, and if
these are still there when the next pass begins. Gradients of several passes for one tensor are summed before squaring.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from unetseg.gradients.routes import ExitRoutes, Term, is_distributed
from unetseg.names import AUXILIARY

CHUNK = 1 << 18  # entries that are summed at once: their float64 copies stay in a processor's cache
State = list[tuple[weakref.ref[Tensor], int] | None]
"""The gradient of each weight and how often it was written to, or None where there is none."""


@dataclass(frozen=True, eq=False)
class Split:
    """How the gradient g of a tensor is split by what reads it: by parts that get views of it, and by all others."""

    sums: Tensor
    """Zeros that measure(g, g_0 ... g_k) is added to: g_i is the gradient by part i."""
    measure: Callable[..., tuple[Tensor, ...]]
    parts: int = 1
    others: bool = True
    """Whether anything else reads the tensor. If not, g is the sum over the parts."""
    exit: int | None = None
    """The position of the exit of the encoder by which part 0 leaves, if it does."""


class Feature:
    """A tensor e of one forward pass, and the gradients of the step for it and for its views: dL/de and dL/ds."""

    def __init__(self, split: Split, encoded: Tensor):
        self.split = split
        self.encoded = weakref.ref(encoded)
        self.total: Tensor | None = None
        self.parts: dict[int, Tensor] = {}
        self.hook: Callable[[], object] = lambda: None
        """A weak reference to a hook that lives as long as a backward pass can reach e."""


@dataclass(frozen=True)
class Arrival:
    """A gradient that a backward pass has brought to a tensor, to the view that a part was given, or to a head."""

    feature: Feature | None
    """None for an auxiliary head, whose gradient is part of the tensor's own and goes to the routes only."""
    gradient: Tensor
    part: int | None
    term: Term | None
    """What it brings to each weight of the encoder, where the routes are wanted and the view leaves by an exit."""


class BackwardPasses:
    """Follows the backward passes of a `with` block.

    Args:
        encoder: trainable weights of the encoder; a pass counts for the features where these get a gradient.
        others: the other trainable weights.
        sums: of all splits; zeros that are added to.
        on_first: called when the first pass begins.
        routes: where the terms of the encoder's exits are collected, if they are wanted.

    Attributes:
        counted: number of passes that have left gradients in weights so far.
        left: the gradients of all weights that the last of these has left; empty once another pass begins.
        inherited: how many entries other than zero the weights' gradients had from before the block, when the first of
            these began; a number or a tensor.
        has_ignored: whether there was a pass that does not count.
        refusal: why the features' gradients can't be read; empty where they can.
    """

    def __init__(
        self,
        encoder: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        sums: Sequence[Tensor],
        on_first: Callable[[], object],
        routes: ExitRoutes | None = None,
    ):
        self.routes, self._inside_term = routes, False
        self.encoder, self.weights, self.sums, self.on_first = encoder, [*encoder, *others], sums, on_first
        self.counted, self.refusal = 0, ""
        self.left: list[Tensor | None] = []
        self.inherited: int | Tensor = 0
        self._from_before = _gradient_state(self.weights)
        self.has_ignored = self._differentiated = False
        self._watching, self._begun = True, False
        self._features: list[Feature] = []
        self._current: dict[int, tuple[State, list[Arrival]]] = {}
        self._last_state: State = []  # the weights' gradients after the last pass that counts

    def watch(self, split: Split, encoded: Tensor, part: int = 0) -> Tensor:
        """Return a view of a tensor e for one part of those that read it.

        Its values and its gradient are those of the tensor; hooks on both wait for the gradients.
        """
        inside = torch._C._current_graph_task_id() >= 0  # the forward pass is repeated by torch.utils.checkpoint
        known = (old for old in self._features if old.split is split and old.encoded() is encoded)
        feature = next(known, None)
        is_copied_exit = inside and split.exit is not None and encoded.is_leaf
        if is_copied_exit:
            self.refusal = (
                "the decoder is recomputed from copies of its input, which part the skips from the encoder: give "
                "torch.utils.checkpoint use_reentrant=False, or the decoder's blocks instead of the decoder"
            )
        if is_copied_exit or (inside and feature):
            return encoded
        self._sum_finished()
        view = encoded.view_as(encoded)
        is_new = feature is None
        if feature is None:
            feature = Feature(split, encoded)
            self._features.append(feature)
        of_part = partial(self._on_gradient, feature, part, encoded)
        view.register_hook(of_part)
        if is_new and split.others:
            of_total = partial(self._on_gradient, feature, None, None)  # one that held e would never be freed
            encoded.register_hook(of_total)
            feature.hook = weakref.ref(of_total)
        elif is_new:
            feature.hook = weakref.ref(of_part)
        return view

    def watch_auxiliary(self, encoded: Tensor) -> Tensor:
        """Return a view of the encoder's features, BxSxHxW, for an auxiliary head on them."""
        view = encoded.view_as(encoded)
        view.register_hook(partial(self._on_gradient, None, 0, encoded))
        return view

    def on_gradient(self, gradient: Tensor) -> None:
        """Notice the current pass: a tensor hook of the logits, which every pass reaches."""
        self._current_gradients()

    def _current_gradients(self) -> list[Arrival]:
        """Return the current pass's gradients so far; a pass begins with the first call from one of its hooks."""
        if not self._watching:
            return []
        number = torch._C._current_graph_task_id()
        if number not in self._current:
            if not self._begun:
                self._begun = True
                self.on_first()
            if not self._current:
                if not self.counted:
                    self.inherited = self._count_inherited()
                self.left = []
                self._check_between_passes()
            self._sum_finished()
            self._current[number] = _gradient_state(self.weights), []
            Variable._execution_engine.queue_callback(partial(self._end, number))
        return self._current[number][1]

    def close(self) -> None:
        """Sum the remaining features at the end of the block."""
        self._watching = False
        self._sum_finished(everything=True)
        self._current.clear()
        self.left = []

    def check(self) -> None:
        """Refuse gradients that were put into the weights by hand: the passes that they come from are unknown."""
        if not self.has_ignored or is_distributed():
            return
        if any(
            w.grad is not None and (old is None or old[0]() is not w.grad)
            for w, old in zip(self.encoder, self._last_state, strict=False)
        ):
            self.refusal = (
                "gradients were put into the weights by hand after torch.autograd.grad or zero_grad(): "
                "only what loss.backward() leaves there can be read"
            )

    def _on_gradient(self, feature: Feature | None, part: int | None, encoded: Tensor | None, gradient: Tensor) -> None:
        """Take notice of what has arrived at a tensor (part None), or at the view of it that a part was given."""
        if self._inside_term:
            return
        self._differentiated |= gradient.requires_grad
        gradient, term = gradient.detach(), None
        arrivals = self._current_gradients()
        is_exit = feature is None or feature.split.exit is not None
        if self.routes is not None and encoded is not None and is_exit and self._watching:
            self._inside_term = True
            try:
                term = self.routes.term(encoded, gradient)
            finally:
                self._inside_term = False
        arrivals.append(Arrival(feature, gradient, part, term))

    def _end(self, number: int) -> None:
        """Count the pass that has ended, if it has left gradients."""
        before, gradients = self._current.pop(number, ([], []))
        if not self._watching:
            return
        changed = [not _is_unchanged(old, w) for old, w in zip(before, self.weights, strict=True)]
        if not any(changed):
            self.has_ignored = True
            return
        self.counted += 1
        self._last_state = _gradient_state(self.encoder)
        self.left = [w.grad for w in self.weights]
        if self.routes is not None:
            self.routes.keep()
        if any(changed[: len(self.encoder)]):
            for arrival in gradients:
                feature = arrival.feature
                if feature is None:
                    if self.routes is not None and arrival.term is not None:
                        self.routes.add(self.routes.exits.index(AUXILIARY), arrival.term)
                    continue
                if arrival.part is None:
                    feature.total = _add(feature.total, arrival.gradient)
                else:
                    feature.parts[arrival.part] = _add(feature.parts.get(arrival.part), arrival.gradient)
                if self.routes is not None and feature.split.exit is not None and arrival.term is not None:
                    self.routes.add(feature.split.exit, arrival.term)
            if self.routes is not None and self._differentiated:
                self.routes.refusal = "a loss made of gradients (create_graph=True) enters the encoder elsewhere"

    def _count_inherited(self) -> int | Tensor:
        """Return how many entries other than zero are left of the gradients that were there before the block."""
        pairs = zip(self._from_before, self.weights, strict=True)
        return sum(w.grad.count_nonzero() for old, w in pairs if old and w.grad is not None and old[0]() is w.grad)

    def _check_between_passes(self) -> None:
        """Check, as another pass begins, whether the gradients of the passes so far are still in the weights."""
        held = [(old, w) for old, w in zip(self._last_state, self.encoder, strict=False) if old is not None]
        changed = [w.grad for old, w in held if not _is_unchanged(old, w)]
        if not changed:
            return
        empty = [gradient is None or not gradient.any() for gradient in changed]
        if all(empty) and len(changed) == len(held):
            self.has_ignored, self.inherited = True, 0
            self._last_state = [None] * len(self.encoder)
            for sums in self.sums:
                sums.zero_()
            for feature in self._features:
                feature.total = None
                feature.parts.clear()
            if self.routes is not None:
                self.routes.clear()
        # reduction over ranks changes them as well, and so does a pass over the graph of another pass
        elif not is_distributed() and (any(empty) or not self._differentiated):
            self.refusal = (
                "the gradients of the weights were changed between two backward passes: "
                "change them after the last one, or set all of them to zero"
            )

    def _sum_finished(self, everything: bool = False) -> None:
        """Sum the features that no backward pass can reach any more, and free their gradients."""
        finished = [feature for feature in self._features if everything or feature.hook() is None]
        self._features = [feature for feature in self._features if feature not in finished]
        for feature in finished:
            split, total = feature.split, feature.total
            if not split.others:
                for gradient in feature.parts.values():
                    total = _add(total, gradient)
            if total is not None:
                nothing = torch.zeros_like(total)
                parts = [feature.parts.get(part, nothing) for part in range(split.parts)]
                add_sums(split.sums, split.measure, [total], *([part] for part in parts))


def products(total: Tensor, part: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    """Return <s, s>, <g - s, g - s>, <s, g - s> and <g, g> of vectors g (total) and s (part)."""
    rest = total - part
    return part @ part, rest @ rest, part @ rest, total @ total


def split_metrics(sums: Tensor, part: str, rest: str) -> dict[str, Tensor]:
    """Return the shares, norms and cosine of two parts by their names, N values each, from Nx4 sums of `products`."""
    first, second, product, total = sums.T
    shares = {f"{part}_share": (first + product) / total, f"{rest}_share": (second + product) / total}
    norms = {"norm": total.sqrt(), f"{part}_norm": first.sqrt(), f"{rest}_norm": second.sqrt()}
    return {**shares, **norms, "cosine": product / (first.sqrt() * second.sqrt())}


@torch.no_grad()
def add_sums(sums: Tensor, measure: Callable[..., tuple[Tensor, ...]], *columns: Iterable[Tensor]) -> None:
    """Add measure(...) of all entries to `sums`, row by row of the columns; tensors of one row have the same shape."""
    for row in zip(*columns, strict=True):
        order = sorted(range(row[0].ndim), key=row[0].stride, reverse=True)  # as in memory: flatten copies nothing
        vectors = [tensor.detach().permute(order).flatten().split(CHUNK) for tensor in row]
        for pieces in zip(*vectors, strict=True):
            sums += torch.stack(measure(*(piece.to(sums.dtype) for piece in pieces)))


def _gradient_state(weights: Iterable[nn.Parameter]) -> State:
    gradients = (weight.grad for weight in weights)
    return [None if g is None else (weakref.ref(g), g._version) for g in gradients]


def _is_unchanged(old: tuple[weakref.ref[Tensor], int] | None, weight: nn.Parameter) -> bool:
    """Return whether the weight's gradient is the one that its old state describes."""
    if old is None or weight.grad is None:
        return old is None and weight.grad is None
    return old[0]() is weight.grad and old[1] == weight.grad._version


def _add(total: Tensor | None, gradient: Tensor) -> Tensor:
    """Return the sum, in float32 at least."""
    if total is None:
        return gradient
    with torch.no_grad():
        return total.to(torch.promote_types(gradient.dtype, torch.float32)) + gradient
