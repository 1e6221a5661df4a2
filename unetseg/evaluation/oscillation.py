"""How much the norms of the features oscillate while a network trains (ScaleLong, Huang et al. 2023).

At every reading of the gradient flow the training also notes the root mean square of what meets at each level's fusion,
the deep features and the long skip's. What follows from these numbers is arithmetic on gradient_flow.csv.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pandas as pd
from torch import Tensor, nn

from unetseg.evaluation.mechanisms import refusal
from unetseg.model.segmenter import Segmenter

KIND = "features"
"""The kind of these rows in gradient_flow.csv; their block is level1 ..., their metric deep_rms or skip_rms."""


class FeatureNorms:
    """Adds up the squares of the features that meet at each fusion in the forward passes inside its block.

    Of several processes it sees its own pictures. Where no deep features meet their own level's skip, as in U-Net++,
    there is nothing to add up.

    Args:
        model: a Segmenter.

    Examples:
        >>> import torch
        >>> model = Segmenter(classes=2, encoder="resnet18", weights=None)
        >>> with FeatureNorms(model) as norms:
        ...     _ = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        >>> sorted(norms.rms())[:2]
        [('level1', 'deep_rms'), ('level1', 'skip_rms')]
    """

    def __init__(self, model: Segmenter):
        self.model, self.hooks = model, ExitStack()
        self.squares: dict[tuple[str, str], Tensor] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def __enter__(self) -> FeatureNorms:
        if not refusal(self.model):
            for level, fusion in self.model.net.fusion_of.items():
                self.hooks.enter_context(fusion.register_forward_pre_hook(partial(self._add, f"level{level}")))
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def rms(self) -> dict[tuple[str, str], float]:
        """Return the root mean square over all entries, by level and deep_rms or skip_rms."""
        return {key: float(square / self.counts[key]) ** 0.5 for key, square in self.squares.items()}

    def _add(self, level: str, _: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        for name, features in zip(("deep_rms", "skip_rms"), inputs, strict=True):
            if features.numel():  # a transformer has none of stride 2
                key = level, name
                self.squares[key] = features.detach().float().square().sum() + self.squares.get(key, 0)
                self.counts[key] = features.numel() + self.counts.get(key, 0)


def norms(readings: pd.DataFrame) -> pd.DataFrame:
    """Return the norms at each reading of a gradient_flow.csv: step, level, features (deep or skip) and rms."""
    rows = readings[readings.kind == KIND]
    return pd.DataFrame(
        {
            "step": rows.step,
            "level": rows.block.str.removeprefix("level").astype(int),
            "features": rows.metric.str.removesuffix("_rms"),
            "rms": rows.value,
        }
    ).reset_index(drop=True)


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """Return how much each norm changes from one reading to the next.

    Args:
        table: of `norms`.

    Returns:
        level, features, readings, the least, the mean and the greatest rms, and `change`, the mean of
        |n_(t+1) - n_t| / ((n_(t+1) + n_t) / 2) over successive readings t; nan where there is one.
    """
    rows = []
    for (level, features), own in table.groupby(["level", "features"]):
        rms = own.sort_values("step").rms
        change = (rms.diff().abs() / rms.rolling(2).mean()).mean()
        spread = {"least": rms.min(), "mean": rms.mean(), "greatest": rms.max()}
        rows.append({"level": level, "features": features, "readings": len(rms), **spread, "change": change})
    return pd.DataFrame(rows)
