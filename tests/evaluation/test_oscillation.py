"""Feature norms over the steps: what the training notes, and how much they change."""

import numpy as np
import pandas as pd
import pytest
import torch

from unetseg.evaluation.oscillation import FeatureNorms, changes, norms
from unetseg.model import Segmenter

SMALL = {"classes": 2, "encoder": "tu-test_resnet", "weights": None, "decoder_channels": (16, 16, 8, 8, 8)}


def readings(values):
    """Return a gradient_flow.csv with these rms of level 2's skip, every fifth step."""
    rows = [(5 * place, 0, "features", "level2", "skip_rms", value) for place, value in enumerate(values)]
    rows.append((0, 0, "block", "stem", "rms", 1.0))
    return pd.DataFrame(rows, columns=["step", "epoch", "kind", "block", "metric", "value"])


def test_the_change_is_the_mean_relative_one_between_readings():
    table = norms(readings([1.0, 3.0, 3.0, 1.0]))
    assert table.columns.tolist() == ["step", "level", "features", "rms"]
    assert table.step.tolist() == [0, 5, 10, 15]
    (row,) = changes(table.sample(frac=1, random_state=0)).itertuples()
    assert (row.level, row.features, row.readings) == (2, "skip", 4)
    assert (row.least, row.mean, row.greatest) == (1, 2, 3)
    assert row.change == pytest.approx((1 + 0 + 1) / 3)


def test_a_steady_norm_does_not_oscillate_and_one_reading_says_nothing():
    assert changes(norms(readings([2.0] * 9))).change.tolist() == [0]
    assert np.isnan(changes(norms(readings([2.0]))).change[0])


@torch.no_grad()
def test_the_norms_are_those_of_all_pictures_that_passed():
    torch.manual_seed(0)
    model = Segmenter(**SMALL).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with FeatureNorms(model) as found:
        for part in images.split(2):
            model(part)
    model(images)
    features = model.net.encoder(model.normalise(images))
    assert len(found.rms()) == 8
    for level in (1, 4):
        wanted = features[level].square().mean().sqrt()
        assert found.rms()[f"level{level}", "skip_rms"] == pytest.approx(float(wanted), rel=1e-4)


@torch.no_grad()
def test_where_nothing_meets_nothing_is_noted():
    model = Segmenter(**SMALL | {"skip": "nested"}).eval()
    with FeatureNorms(model) as found:
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert found.rms() == {}
