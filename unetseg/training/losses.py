"""Losses over logits; pixels of the class IGNORE take no part.

Each is a ratio of sums over a batch. While training, the sums run over the batches of all processes, so that the loss
and, with DDP, its gradient are those of one process with the joined batch. In evaluation, where one process may have a
batch more than another, the sums are those of this process, and no process waits.

Legend: B images, K logits of a pixel (one for two classes, otherwise one a class), C classes, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetseg import classes as own_classes
from unetseg.names import IGNORE, is_own
from unetseg.training.boundary import boundary_map
from unetseg.training.distributed import sum_over_processes
from unetseg.training.own_loss import OPTION, own_loss


class Loss(nn.Module):
    """A loss from sums over the batch: of all processes in train mode, of this process in eval mode."""

    def sum_over_batch(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Return this process's sums, of one shape and dtype, or those of all processes."""
        return sum_over_processes(torch.stack(sums)).unbind() if self.training else sums


# --- losses that are a mean of the pixels' costs


class PixelWeights(nn.Module):
    """The weight of each pixel by its class, and by how near it lies to two objects (Ronneberger et al. 2015, U-Net).

    w(x) = w_c + w_0 exp(-(d_1 + d_2)^2 / (2 sigma^2)), with the distances d_1 and d_2 to the nearest and the second
    nearest object and sigma = 5 pixels, see `boundary_map`.

    Args:
        by_class: w_c of each class; None: 1.
        boundary: w_0.

    Examples:
        >>> PixelWeights([0.5, 2.0])(torch.tensor([[[0, 1], [1, 255]]])).tolist()
        [[[0.5, 2.0], [2.0, 0.0]]]
    """

    by_class: Tensor

    def __init__(self, by_class: Sequence[float] | None = None, boundary: float = 0.0):
        super().__init__()
        weights = torch.ones(IGNORE + 1)
        if by_class is not None:
            weights[: len(by_class)] = torch.tensor(by_class, dtype=torch.float32)
        weights[IGNORE] = 0
        self.register_buffer("by_class", weights, persistent=False)
        self.boundary = boundary

    def forward(self, target: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Map classes BxHxW to weights BxHxW >= 0 of that dtype, 0 where IGNORE."""
        weights = self.by_class.to(dtype)[target.long()]
        if not self.boundary:
            return weights
        maps = [torch.from_numpy(boundary_map(mask)) for mask in target.cpu().numpy()]
        return weights + self.boundary * torch.stack(maps).to(weights) * (target != IGNORE)


class PixelLoss(Loss, ABC):
    """The mean of a cost over the pixels that count, or their weighted mean sum(w cost) / sum(w), as torch's `weight=`.

    Args:
        weights: of the pixels; None: all that count are alike.
    """

    def __init__(self, weights: PixelWeights | None = None):
        super().__init__()
        self.weights = weights

    @abstractmethod
    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW to the cost of each pixel, BxHxW >= 0."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW (0 ... C-1 or IGNORE) to a scalar >= 0."""
        counts = (target != IGNORE).to(logits.dtype)
        weights = counts if self.weights is None else self.weights(target, logits.dtype)
        total, weight = self.sum_over_batch((self.cost(logits, target) * weights).sum(), weights.sum())
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log p of each pixel's class, BxHxW; where IGNORE it is a number without a meaning."""
    if logits.shape[1] == 1:
        truth = (target == 1).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
    return F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="none")


class CrossEntropy(PixelLoss):
    """Cross-entropy, of two classes the binary one.

    Examples:
        >>> CrossEntropy()(torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 1], [1, 255]]])).item()  # log 2
        0.6931471824645996
        >>> CrossEntropy()(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [3, 255]]])).item()  # log 4
        1.3862943649291992
    """

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cost of each pixel."""
        return cross_entropy(logits, target)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits and classes to a scalar; without weights torch adds up the pixels of several classes itself."""
        if logits.shape[1] == 1 or self.weights is not None:
            return super().forward(logits, target)
        loss = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="sum")
        total, pixels = self.sum_over_batch(loss, (target != IGNORE).sum().to(loss.dtype))
        return total / pixels.clamp(min=1)


class Focal(PixelLoss):
    """Cross-entropy in which easy pixels count less: (1 - p)^gamma (-log p), p of the pixel's class (Lin et al. 2017).

    Of several classes p is the softmax's, as in smp's softmax_focal_loss_with_logits.

    Args:
        gamma: 0 is the cross-entropy itself.
        weights: of the pixels; alpha of the paper is the class weights 1 - alpha and alpha, up to a factor.

    Examples:
        >>> Focal(gamma=1.0)(torch.zeros(1, 1, 1, 2), torch.tensor([[[0, 1]]])).item()  # log 2 / 2
        0.3465735912322998
    """

    def __init__(self, gamma: float = 2.0, weights: PixelWeights | None = None):
        super().__init__(weights)
        self.gamma = gamma

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cost of each pixel."""
        cost = cross_entropy(logits, target)
        wrong = -torch.expm1(-cost)  # 1 - p
        # a power below 1 has no finite derivative at 0
        return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** self.gamma * cost


class SoftCrossEntropy(PixelLoss):
    """Cross-entropy with smoothed labels: 1 - smoothing, and smoothing / C more for each class (Szegedy et al. 2016).

    It is smp's SoftCrossEntropyLoss. The logits of two classes are taken as 0 and the one that there is.

    Examples:
        >>> sure = torch.tensor([50.0]).view(1, 1, 1, 1)
        >>> SoftCrossEntropy(smoothing=0.1)(sure, torch.tensor([[[1]]])).item()  # 0.05 * 50
        2.5
    """

    def __init__(self, smoothing: float = 0.1, weights: PixelWeights | None = None):
        super().__init__(weights)
        self.smoothing = smoothing

    def cost(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cost of each pixel."""
        logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
        return F.cross_entropy(
            logits, target.long(), ignore_index=IGNORE, reduction="none", label_smoothing=self.smoothing
        )


# --- losses that are a ratio of sums over each class


class ClassLoss(Loss):
    """A mean over classes; two classes have the second one alone.

    Args:
        class_weights: of C > 2 classes: the mean is the weighted one, sum(w loss) / sum(w).
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None):
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @staticmethod
    def by_class(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities BxKxN (0 where IGNORE), the truth BxKxN, 0 or 1, and which of Bx1xN pixels count."""
        target = target.unsqueeze(1)
        if logits.shape[1] == 1:
            probability, truth = F.logsigmoid(logits).exp(), target == 1
        else:
            labels = torch.arange(logits.shape[1], device=target.device).view(1, -1, 1, 1)
            probability, truth = logits.log_softmax(1).exp(), target == labels
        counts = target != IGNORE
        return (probability * counts).flatten(2), truth.to(logits.dtype).flatten(2), counts.flatten(2)


class Tversky(ClassLoss):
    """One minus the soft Tversky index TP / (TP + alpha FP + beta FN) of the batch (Salehi et al. 2017).

    TP, FP and FN are sums of probabilities over the class's pixels and the others. The mean over C > 2 classes; a class
    that the batch does not show counts as 0. The operations are those of smp's TverskyLoss, and so are the values to
    the last bit.

    Args:
        alpha: the weight of what is wrong. alpha = beta = 0.5 is the Dice coefficient (Milletari et al. 2016, V-Net),
            alpha = beta = 1 the Jaccard index.
        beta: the weight of what is missed.
        class_weights: of C > 2 classes.

    Examples:
        >>> target = torch.tensor([[[0, 1], [1, 1]]])
        >>> Tversky(0.5, 0.5)(torch.where(target == 1, 50.0, -50.0)[:, None], target).item()  # a perfect prediction
        0.0
    """

    EPS = 1e-7

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, class_weights: Sequence[float] | None = None):
        super().__init__(class_weights)
        self.alpha, self.beta = alpha, beta

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW (IGNORE included) to a scalar in 0..1."""
        p, t, _ = self.by_class(logits, target)
        sums = p.sum((0, 2)), t.sum((0, 2)), torch.linalg.vector_norm(p - t, ord=1, dim=(0, 2))
        predicted, true, apart = self.sum_over_batch(*sums)
        overlap = (predicted + true - apart) / 2  # sum(p t), as t is 0 or 1
        wrong, missed = predicted - overlap, true - overlap
        index = overlap / (overlap + self.alpha * wrong + self.beta * missed).clamp_min(self.EPS)
        losses = (1 - index) * (true > 0)
        if self.class_weights is None:
            return losses.mean()
        return (losses * self.class_weights).sum() / self.class_weights.sum()


class Mcc(ClassLoss):
    """One minus Matthews' correlation coefficient of probabilities and truth (Abhishek and Hamarneh 2021).

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)) with sums of probabilities over the batch, and EPS
    added to each, as in smp's MCCLoss. Of C > 2 classes, where smp has none, it is the mean over those that the batch
    shows, each against the rest.

    Examples:
        >>> target = torch.tensor([[[0, 1], [1, 1]]])
        >>> round(Mcc()(torch.where(target == 1, 50.0, -50.0)[:, None], target).item(), 4)
        0.0
    """

    EPS = 1e-5

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW (IGNORE included) to a scalar in 0..2."""
        p, t, counts = self.by_class(logits, target)
        not_p, not_t = counts.to(p.dtype) - p, counts.to(p.dtype) - t
        sums = [(a * b).sum((0, 2)) for a, b in ((p, t), (not_p, not_t), (p, not_t), (not_p, t))]
        shown, *sums = self.sum_over_batch(t.sum((0, 2)), *sums)
        tp, tn, fp, fn = (value + self.EPS for value in sums)
        losses = 1 - (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
        if len(losses) == 1:
            return losses.mean()
        weights = (shown > 0) * (torch.ones_like(losses) if self.class_weights is None else self.class_weights)
        return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)


class Lovasz(Loss):
    """The convex extension of the Jaccard loss to errors of pixels (Berman et al. 2018), the mean over pictures.

    Of two classes the Lovász hinge of the logits, of several Lovász-Softmax, the mean over the classes that a picture
    shows: smp's LovaszLoss with per_image=True. It is of each picture, because that of a batch is no ratio of sums:
    several processes would need all pixels in one order. A picture without a pixel that counts takes no part.

    Examples:
        >>> target = torch.tensor([[[0, 1], [1, 255]]])
        >>> Lovasz()(torch.where(target == 1, 2.0, -2.0)[:, None], target).item()  # beyond the margin of 1
        0.0
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW (IGNORE included) to a scalar >= 0."""
        target = target.flatten(1)
        counts = target != IGNORE
        if logits.shape[1] == 1:
            truth = target == 1
            errors = 1 - logits.flatten(1) * (2 * truth.to(logits.dtype) - 1)
            losses, shown = self._extension(errors, truth, counts), counts.any(1)
        else:
            by_class, shown_classes = [], []
            for label, probability in enumerate(logits.softmax(1).flatten(2).unbind(1)):
                truth = target == label
                by_class.append(self._extension((truth.to(logits.dtype) - probability).abs(), truth, counts))
                shown_classes.append(truth.any(1))
            present = torch.stack(shown_classes)
            losses = (torch.stack(by_class) * present).sum(0) / present.sum(0).clamp(min=1)
            shown = present.any(0)
        total, pictures = self.sum_over_batch((losses * shown).sum(), shown.sum().to(losses.dtype))
        return total / pictures.clamp(min=1)

    @staticmethod
    def _extension(errors: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
        """Return the Lovász extension of each picture's Jaccard loss at its errors, B (algorithm 1 of the paper).

        Args:
            errors: BxN; negative ones count as 0.
            truth: BxN bool, the class's pixels.
            counts: BxN bool, the pixels that are not ignored.
        """
        errors, order = errors.masked_fill(~counts, -1.0).sort(1, descending=True)
        truth = truth.gather(1, order)
        total = truth.sum(1, keepdim=True)
        # in whole numbers, of which CUDA's sums have one order
        intersection, union = total - truth.cumsum(1), total + (~truth).cumsum(1)
        jaccard = 1 - intersection.to(errors.dtype) / union.to(errors.dtype)
        steps = jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))
        return (errors.relu() * steps).sum(1)


class Sum(nn.Module):
    """The weighted sum of losses.

    Args:
        terms: losses.
        weights: of the terms; None: 1.

    Examples:
        >>> loss = Sum([CrossEntropy(), Mcc()], [1.0, 0.5])
        >>> logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 1], [1, 1]]])
        >>> bool(loss(logits, target) == CrossEntropy()(logits, target) + 0.5 * Mcc()(logits, target))
        True
    """

    def __init__(self, terms: Sequence[nn.Module], weights: Sequence[float] | None = None):
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.weights = [1.0] * len(terms) if weights is None else [*weights]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Map logits BxKxHxW and classes BxHxW to the sum of the terms."""
        terms = zip(self.terms, self.weights, strict=True)
        return sum((weight * term(logits, target) for term, weight in terms), start=logits.new_zeros(()))


def make_loss(
    loss: str | Mapping[str, Any],
    classes: int,
    *,
    class_weights: Sequence[float] | None = None,
    boundary_weight: float | None = None,
    trust: bool = False,
) -> nn.Module:
    """Return a loss by its name, or the sum that a table of names describes, or one of the user's own class.

    Args:
        loss: a name of `names.LOSSES`; or weights by name, where a weight may also be a table of `weight` (1 where it
            is not said) and the loss's parameters.
        classes: their number. Two classes have one logit; their cross-entropy is the binary one.
        class_weights: of the classes: in the losses of pixels, and of three classes and more in those of classes.
        boundary_weight: of pixels between two objects, in the losses of pixels, see `PixelWeights`.
        trust: import a class of the user's own.

    Raises:
        UserError: such a class isn't trusted, or is not what `own_loss` asks for.

    Examples:
        >>> make_loss({"dice": 1.0, "focal": {"weight": 0.5, "gamma": 1.0}}, classes=2).weights
        [1.0, 0.5]
    """
    if isinstance(loss, str) and is_own(loss):
        own_classes.admit({loss: OPTION}, f"{OPTION}={loss}", trust)
        return own_loss(loss, classes)
    of_classes = class_weights if classes > 2 else None

    def term(name: str, parameters: Mapping[str, float]) -> nn.Module:
        of_pixels = None
        if class_weights is not None or boundary_weight:
            of_pixels = PixelWeights(class_weights, boundary_weight or 0.0)
        match name:
            case "dice":
                return Tversky(0.5, 0.5, of_classes)
            case "jaccard":
                return Tversky(1.0, 1.0, of_classes)
            case "tversky":
                return Tversky(**parameters, class_weights=of_classes)
            case "mcc":
                return Mcc(of_classes)
            case "lovasz":
                return Lovasz()
            case "focal":
                return Focal(**parameters, weights=of_pixels)
            case "soft_cross_entropy":
                return SoftCrossEntropy(**parameters, weights=of_pixels)
            case "bce_dice":
                return Sum([CrossEntropy(of_pixels), Tversky(0.5, 0.5, of_classes)])
            case _:
                return CrossEntropy(of_pixels)

    if isinstance(loss, str):
        return term(loss, {})
    entries = {name: dict(entry) if isinstance(entry, Mapping) else {"weight": entry} for name, entry in loss.items()}
    weights = [entry.pop("weight", 1.0) for entry in entries.values()]
    return Sum([term(name, parameters) for name, parameters in entries.items()], weights)


def balanced_weights(pixels: Sequence[int]) -> list[float]:
    """Return a weight for each class by its pixels, n / (C n_c), as scikit-learn's "balanced"; over all pixels it is 1.

    A class without pixels has the weight 0 and is not among the C classes.

    Examples:
        >>> balanced_weights([75, 25, 0])
        [0.6666666666666666, 2.0, 0.0]
    """
    shown = sum(count > 0 for count in pixels)
    return [sum(pixels) / (shown * count) if count else 0.0 for count in pixels]
