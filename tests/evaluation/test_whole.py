"""A model's answers in an evaluation: those that are no numbers get no class, and so no score."""

import math

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import TINY
from torch import nn

import unetseg
from unetseg.data.view import View
from unetseg.errors import Halt
from unetseg.evaluation.whole import answer


class Broken(nn.Module):
    """Gives logits, BxKxHxW, that are 0 but for one."""

    def __init__(self, channels, value):
        super().__init__()
        self.channels, self.value = channels, value

    def forward(self, images):
        logits = torch.zeros(len(images), self.channels, *images.shape[-2:])
        logits[0, -1, 3, 5] = self.value
        return logits


@pytest.mark.quick
@pytest.mark.parametrize("view", [View(64), View(64, crop=64)], ids=["squares", "tiles"])
@pytest.mark.parametrize("channels", [1, 3])
def test_outputs_that_are_no_numbers_get_no_class(view, channels):
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    _, classes = answer(Broken(channels, 1.0), images, view, (64, 64), batch_size=4)
    assert classes.nonzero().tolist() == [[0, 3, 5]]
    with pytest.raises(Halt, match="NaN or inf: no score is counted"):
        answer(Broken(channels, math.nan), images, view, (64, 64), batch_size=4)


def test_a_validation_whose_outputs_are_no_numbers_ends_the_run_without_a_score(tmp_path):
    class Overflow(L.Callback):
        def on_validation_start(self, trainer, module):
            if not trainer.sanity_checking:
                module.model.register_forward_hook(lambda *given: given[-1] * math.inf)

    with pytest.raises(Halt, match="NaN or inf"):
        unetseg.train(*TINY, f"output={tmp_path}", "name=run", "trainer.max_epochs=1", callbacks=[Overflow()])
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    assert "train/loss" in set(metrics.name)
    assert "val/iou" not in set(metrics.name)
