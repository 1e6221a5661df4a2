"""Calibration: counted by hand, compared with a float64 loop and with torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from unetseg.evaluation.calibration import BINS, calibration_error, calibration_table, confidence_counts
from unetseg.model.segmenter import probabilities
from unetseg.names import IGNORE


def a_batch(channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, 4xKx12x20, and targets, of which one in ten is ignored."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(max(2, channels), (4, 12, 20), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.1] = IGNORE
    return 2 * torch.randn(4, channels, 12, 20, generator=generator), target


def error_of(*batches: tuple[torch.Tensor, torch.Tensor]) -> float:
    return calibration_error(calibration_table(sum(confidence_counts(*batch) for batch in batches).numpy()))


def test_calibration_by_hand():
    """Of four pixels that are said to be right with 0.75, two are: 0.25 too much. One is ignored."""
    logits = torch.full((1, 1, 1, 5), np.log(3))
    target = torch.tensor([[[1, 1, 0, 0, IGNORE]]])
    table = calibration_table(confidence_counts(logits, target).numpy())
    row = table.iloc[11]  # from 11/15 to 12/15
    assert (row["from"], row.to, row.pixels) == (pytest.approx(11 / 15), pytest.approx(0.8), 4)
    assert (row.confidence, row.accuracy) == (pytest.approx(0.75), 0.5)
    assert table.pixels.sum() == 4
    assert table.drop(index=11).accuracy.isna().all()
    assert calibration_error(table) == pytest.approx(0.25)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_bins_are_those_of_a_slow_float64_loop(channels):
    logits, target = a_batch(channels)
    expected = np.zeros((BINS, 3))
    every = probabilities(logits.double()).numpy()
    for image, row, column in np.ndindex(*target.shape):
        if target[image, row, column] != IGNORE:
            of_pixel = every[image, :, row, column]
            number = int(np.searchsorted(np.linspace(0, 1, BINS + 1), of_pixel.max())) - 1
            expected[number] += 1, of_pixel.max(), of_pixel.argmax() == target[image, row, column]
    np.testing.assert_allclose(confidence_counts(logits, target).numpy(), expected, rtol=1e-6)


def test_the_error_of_several_classes_is_torchmetrics():
    batches = [a_batch(5, seed) for seed in (0, 1)]
    reference = MulticlassCalibrationError(5, n_bins=BINS, ignore_index=IGNORE)
    for logits, target in batches:
        reference.update(logits, target)
    assert error_of(*batches) == pytest.approx(reference.compute().item(), abs=1e-6)


def test_the_error_of_one_logit_is_that_of_two_classes():
    """The binary error of torchmetrics is another one, of the probability of class 1 and not of the class predicted."""
    logits, target = a_batch(1)
    reference = MulticlassCalibrationError(2, n_bins=BINS, ignore_index=IGNORE)(probabilities(logits), target)
    binary = BinaryCalibrationError(n_bins=BINS, ignore_index=IGNORE)(logits[:, 0].sigmoid(), target)
    assert error_of((logits, target)) == pytest.approx(reference.item(), abs=1e-6)
    assert abs(binary - reference) > 1e-3


def test_a_certain_model_that_is_always_right_has_no_error():
    """A confidence of exactly 1 is in the last bin."""
    target = torch.tensor([[[0, 1, 1]]])
    assert error_of((1e4 * (target[:, None] - 0.5), target)) == 0
    assert np.isnan(error_of((torch.zeros(1, 1, 1, 3), torch.full((1, 1, 3), IGNORE))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_counts_of_half_precision_are_taken_in_float32(dtype):
    logits, target = a_batch(3)
    half = logits.to(dtype)
    assert torch.equal(confidence_counts(half, target), confidence_counts(half.float(), target))
