"""By which exit of the encoder a weight's gradient came: by the long skip of a level, or by the bottleneck.

Every path from the loss to a weight of the encoder enters the encoder at exactly one of its features: at e_1 ... e_L,
by the long skip of that level, or at the deepest one, by the bottleneck. With c_k = dL/ds_k, the gradient that arrives
at the view s_k of e_k that the decoder was given,

    dL/dw = sum over k of (de_k/dw)^T c_k,

which is exact, and additive for every weight w. The terms of the long skips are computed by one backward pass each,
from e_k down, while the step's own backward pass waits. Heads on e_1 ... e_L (deep supervision), where GradientFlow is
told of them, get views of their own and are together one exit more, `auxiliary`. The bottleneck's term is what remains
of dL/dw; what a loss reads elsewhere (a classifier at the encoder's end, a penalty on the weights) is counted with it.

Legend: K = L + 1 exits (L + 2 with auxiliary heads), N weights of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import get_total_norm

from unetseg.names import AUXILIARY, BOTTLENECK

CHUNK = 1 << 16  # weights that are multiplied at a time: their float64 copies stay in a processor's cache
WHOLE = "encoder"
"""The name of all blocks together."""
Term = Sequence[Tensor | None]
"""One tensor for each weight; None where the weight is out of reach."""


class ExitRoutes:
    """Collects the terms of a step's gradient by exit, and compares them.

    Args:
        weights: the trainable weights of each block of the encoder, in forward order.
        levels: the levels of the long skips, finest first.
        precision: of the sums.
        auxiliary: whether there are auxiliary heads, the exit after the levels.

    Attributes:
        refusal: why the routes can't be told, if they can't.
    """

    def __init__(
        self,
        weights: Mapping[str, Sequence[nn.Parameter]],
        levels: Sequence[int],
        precision: torch.dtype,
        auxiliary: bool = False,
    ):
        self.weights = {block: list(each) for block, each in weights.items() if len(each)}
        self.exits = [*(f"level{level}" for level in levels), *([AUXILIARY] if auxiliary else []), BOTTLENECK]
        self.precision, self.refusal = precision, ""
        self._terms: dict[str, dict[int, Tensor]] = {}
        self._totals: dict[str, Tensor] = {}
        self._scale = 1.0
        self._products: dict[str, Tensor] = {}
        self._falls: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}  # of each block's gradient, as the backward passes have left it
        self._is_changed: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        """Forget the terms that have come so far, because the step's gradient was thrown away."""
        self._terms = {block: {} for block in self.weights}

    def term(self, encoded: Tensor, gradient: Tensor) -> Term:
        """Return (de_k/dw)^T c_k for every weight w, from e_k and c_k, both BxCxHxW. It runs inside a backward pass."""
        weights = [weight for each in self.weights.values() for weight in each]
        try:
            return torch.autograd.grad(encoded, weights, gradient, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            self.refusal = f"the encoder can't be passed backwards twice ({str(error).splitlines()[0]})"
            return [None] * len(weights)

    def add(self, position: int, term: Term) -> None:
        """Add what a backward pass has brought by one long skip or auxiliary head; position: that of its exit."""
        start = 0
        for block, weights in self.weights.items():
            parts = term[start : start + len(weights)]
            start += len(weights)
            if any(part is not None for part in parts):
                vector = _flat(parts, weights)
                known = self._terms[block].get(position)
                self._terms[block][position] = vector if known is None else known.add_(vector)

    def keep(self) -> None:
        """Remember the norms of the gradients that a backward pass has left."""
        if not is_distributed():  # there they may be reduced only later
            for block, weights in self.weights.items():
                self._norms[block] = get_total_norm([weight.grad for weight in weights if weight.grad is not None])

    def compare(self, gradient_of: Callable[[nn.Parameter], Tensor | None], scale: float) -> None:
        """Multiply the terms with each other, given the gradients of the weights. Every rank has to call it.

        Args:
            gradient_of: returns the gradient of a weight; None if it has none.
            scale: the factor of the loss in the terms; the weights' gradients are without it.
        """
        self._scale = scale
        self._is_changed = []
        for block, weights in self.weights.items():
            gradients = [gradient_of(weight) for weight in weights]
            self._totals[block] = _flat(gradients, weights)
            if block in self._norms:
                left = self._norms[block].to(self.precision) / scale
                now = get_total_norm([gradient for gradient in gradients if gradient is not None])
                self._is_changed.append((now - left).abs() > 1e-3 * left)
            terms = {position: _mean_over_ranks(term) for position, term in self._terms[block].items()}
            products = self._totals[block].new_zeros(len(self.exits), len(self.exits), dtype=self.precision)
            for rows in self._rows(block, terms):
                products += rows @ rows.T
            self._products[block] = products

    def take_step(self, before: Mapping[str, Sequence[Tensor]]) -> None:
        """Multiply the terms with the step that the weights have taken.

        Args:
            before: the weights of each block as they were.
        """
        for block, weights in self.weights.items():
            step = _flat([new.detach() - old for new, old in zip(weights, before[block], strict=True)], weights)
            falls = step.new_zeros(len(self.exits), dtype=self.precision)
            pieces = step.split(CHUNK)
            for rows, piece in zip(self._rows(block, self._terms[block]), pieces, strict=True):
                falls -= rows @ piece.to(self.precision)
            self._falls[block] = _mean_over_ranks(falls)

    def _rows(self, block: str, terms: Mapping[int, Tensor]) -> Iterator[Tensor]:
        """Yield the terms of a block, K x CHUNK at a time; the last row is the bottleneck's."""
        for start in range(0, len(self._totals[block]), CHUNK):
            piece = slice(start, start + CHUNK)
            total = self._totals[block][piece].to(self.precision)
            rows = total.new_zeros(len(self.exits), len(total))
            for position, term in terms.items():
                rows[position] = term[piece]
            rows /= self._scale
            rows[-1] = total - rows.sum(0)
            yield rows

    def why_not(self) -> str:
        """Return why the routes can't be told; empty where they can."""
        if not self.refusal and any(bool(changed) for changed in self._is_changed):
            return (
                "the gradients of the weights are not those that the backward passes have left: call flow.gradients() "
                "after unscaling and before clipping, and hand a GradScaler's get_scale in as `scale`"
            )
        return self.refusal

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each block, and of all together; see `Record`."""
        products, falls = dict(self._products), dict(self._falls)
        if len(products) > 1:
            products[WHOLE] = torch.stack([*products.values()]).sum(0)
            if falls:
                falls[WHOLE] = torch.stack([*falls.values()]).sum(0)
        reached = {block: {*positions, len(self.exits) - 1} for block, positions in self._terms.items()}
        reached[WHOLE] = reached.get(WHOLE, set()).union(*reached.values())
        return {
            block: self._of(matrix.cpu().double(), falls.get(block), sorted(reached[block]))
            for block, matrix in products.items()
        }

    def _of(self, products: Tensor, falls: Tensor | None, reached: Sequence[int]) -> dict[str, float]:
        shares = products.sum(1) / products.sum()
        norms = products.diagonal().sqrt()
        numbers = {}
        for position in reached:
            name = self.exits[position]
            numbers[f"share_{name}"] = float(shares[position])
            numbers[f"norm_{name}"] = float(norms[position])
            numbers[f"fall_{name}"] = math.nan if falls is None else float(falls[position])
        for first in reached:
            for second in (position for position in reached if position > first):
                cosine = products[first, second] / (norms[first] * norms[second])
                numbers[f"cosine_{self.exits[first]}_{self.exits[second]}"] = float(cosine)
        return numbers


def _flat(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Return the parts as one vector, in float32 at least; zeros where there is none."""
    vectors = [torch.zeros_like(weight) if part is None else part for part, weight in zip(parts, like, strict=True)]
    flat = torch.cat([vector.detach().reshape(-1) for vector in vectors])
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _mean_over_ranks(values: Tensor) -> Tensor:
    if not is_distributed():
        return values
    mean = values / distributed.get_world_size()  # the joint loss is the mean of the ranks' losses
    distributed.all_reduce(mean)
    return mean
