"""Shattered gradients: white noise, brown noise and a network that is linear."""

import numpy as np
import pytest
import torch
from torch import nn

from unetseg.evaluation import shattering
from unetseg.evaluation.shattering import expected_acf, features_by_depth, measure, table
from unetseg.model import Segmenter


def products(vectors):
    """Return PxTxT inner products of PxTxN vectors."""
    return vectors @ vectors.swapaxes(-1, -2)


def noise(lines=8, points=64, entries=500):
    return np.random.default_rng(0).standard_normal((lines, points, entries))


def acf_by_loops(vectors):
    """The autocorrelation function of each series, as the textbooks have it, pooled by sums."""
    lines, points, entries = vectors.shape
    above, below = np.zeros(points // 2 + 1), 0.0
    for line in range(lines):
        for entry in range(entries):
            series = vectors[line, :, entry] - vectors[line, :, entry].mean()
            below += (series**2).sum()
            for lag in range(points // 2 + 1):
                above[lag] += (series[: points - lag] * series[lag:]).sum()
    return above / below


def test_the_autocorrelation_is_that_of_slow_loops():
    vectors = np.cumsum(noise(3, 10, 4), axis=1) + noise(3, 10, 4)
    found = table({"a": products(vectors)})
    assert found.lag.tolist() == list(range(6))
    assert found.acf.tolist() == pytest.approx(acf_by_loops(vectors).tolist())
    pairs = [(line, t, t + 3) for line in range(3) for t in range(7)]
    above = sum(vectors[line, t] @ vectors[line, s] for line, t, s in pairs)
    below = sum((vectors[line, t] @ vectors[line, t] + vectors[line, s] @ vectors[line, s]) / 2 for line, t, s in pairs)
    assert found.cosine[3] == pytest.approx(above / below)


def test_white_noise_has_an_autocorrelation_of_0_beyond_its_mean():
    found = table({"white": products(noise())})
    assert found.acf[0] == found.cosine[0] == 1
    band = 1.96 / np.sqrt(8 * 64 * 500)
    inside = np.abs(found.acf - expected_acf("white", 64))[1:] < band
    assert inside.mean() > 0.85, "19 of 20 lags lie within the band of white noise"
    assert (np.abs(found.acf[1:]) < 1 / 64 + band).all()
    assert (np.abs(found.cosine[1:]) < 3 * band).all()


def test_brown_noise_falls_slowly_and_the_sum_of_both_lies_between():
    white, brown = noise(), np.cumsum(noise()[:, :, ::-1], axis=1)
    acf = table({"brown": products(brown)}).acf
    assert np.abs(acf - expected_acf("brown", 64)).max() < 0.05
    assert acf[1] > 0.9
    mixed = table({"mixed": products(brown + 3 * white)}).acf
    assert ((expected_acf("white", 64) < mixed) & (mixed < acf))[1:12].all()


def test_the_gradient_of_a_linear_function_is_everywhere_the_same():
    same = np.repeat(noise(4, 1, 9), 16, axis=1)
    found = table({"linear": products(same)})
    assert found.cosine.tolist() == pytest.approx([1] * 9)
    assert found.acf.isna().all(), "nothing is left without the mean"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder="tu-test_resnet", weights=None, decoder_channels=(16, 16, 8, 8, 8)).eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_models_gradients_are_those_at_each_point(model, pictures, monkeypatch):
    monkeypatch.setattr(shattering, "POINTS", 6)
    monkeypatch.setattr(shattering, "AT_ONCE", 4)
    found = measure(model, pictures).set_index(["depth", "lag"])
    ends = model.normalise(pictures)
    vectors = {"input": [], "stem": [], "decoder1": []}
    for line in (0, 1):
        for share in np.linspace(0, 1, 6):
            point = ((1 - share) * ends[line : line + 1] + share * ends[line + 2 : line + 3]).float().requires_grad_()
            features, logits = features_by_depth(model, point)
            for depth, own in vectors.items():
                (gradient,) = torch.autograd.grad(logits.mean(), features[depth], retain_graph=True)
                own.append(gradient.flatten().double().numpy())
    for depth, own in vectors.items():
        every = np.stack(own).reshape(2, 6, -1)
        wanted = table({depth: products(every)}).set_index("lag").acf
        # 4,096 of 8,192 entries stand for all of stem's; those of the input and of decoder1 are all there
        assert found.loc[depth].acf.tolist() == pytest.approx(
            wanted.tolist(), abs=0.1 if every.shape[2] > 4096 else 1e-3
        )


def test_a_network_without_kinks_has_one_gradient(model, pictures, monkeypatch):
    monkeypatch.setattr(shattering, "POINTS", 6)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                monkeypatch.setitem(module._modules, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                monkeypatch.setitem(module._modules, name, nn.AvgPool2d(3, 2, 1))
    found = measure(model, pictures)
    assert [*dict.fromkeys(found.depth)] == [
        *("input", "stem", "encoder1", "encoder2", "encoder3", "encoder4"),
        *("decoder4", "decoder3", "decoder2", "decoder1"),
    ]
    assert found.cosine.to_numpy() == pytest.approx(1, abs=1e-5)


def test_decoders_of_all_levels_are_read_at_the_encoder(pictures):
    model = Segmenter(classes=3, encoder="resnet18", weights=None, skip="nested").eval()
    features, logits = features_by_depth(model, model.normalise(pictures[:1]))
    assert [*features] == ["input", "stem", "encoder1", "encoder2", "encoder3", "encoder4"]
    assert logits.shape == (1, 3, 32, 32)
