"""The loss landscape: a quadratic's is known, directions are filter-normalised, and the weights come back."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_lesions import MIXED, batches
from torch import nn

from unetseg.data.dataset import Batch
from unetseg.evaluation import landscape
from unetseg.evaluation.landscape import (
    HessianProducts,
    measure,
    random_direction,
    random_sharpness,
    restored,
    top_eigenpair,
)
from unetseg.model import Segmenter
from unetseg.training.losses import make_loss


def segmenter(skip="concat", **options):
    torch.manual_seed(0)
    small = {"encoder": "tu-test_resnet", "decoder_channels": (16, 16, 8, 8, 8)}
    return Segmenter(classes=2, weights=None, skip=skip, **small, **options).eval()


class Weights(nn.Module):
    """A net without pictures: 3x4 weights and 2 biases, which are its output."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.bias = nn.Parameter(torch.randn(2, generator=generator))

    def forward(self, images):
        own = torch.cat([self.weight.flatten(), self.bias])
        return own.expand(len(images), -1)


class Quadratic(nn.Module):
    """w'Aw / 2 + (1 + the class) for weights w, with A of known eigenvalues."""

    def __init__(self, eigenvalues=tuple(range(-5, 9))):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        rotation, _ = torch.linalg.qr(torch.randn(14, 14, generator=generator, dtype=torch.float64))
        self.top = rotation[:, -1]
        self.matrix = rotation @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ rotation.T

    def forward(self, weights, target):
        weights = weights.double()
        return (weights @ self.matrix @ weights.T).squeeze() / 2 + 1 + target.double().mean()


@pytest.fixture
def pictures():
    masks = torch.tensor([0, 1, 1, 0]).view(4, 1, 1)
    return Batch(torch.zeros(4, 3, 1, 1), masks, torch.arange(4))


def test_a_quadratics_landscape_is_the_quadratic(pictures, monkeypatch):
    monkeypatch.setattr(landscape, "SIDE", 5)
    monkeypatch.setattr(landscape, "POINTS", 7)
    monkeypatch.setattr(landscape, "RESIDUAL", 1e-8)
    net, loss = Weights().double(), Quadratic()
    plane, sharpness = measure(net, pictures, loss, [""] * 4)
    weights = [w.detach().double() for w in net.parameters()]
    own = torch.cat([w.flatten() for w in weights])
    first, second = (
        torch.cat([part.flatten() for part in random_direction(list(net.parameters()), seed)]).double()
        for seed in (0, 1)
    )
    assert plane.groupby("direction").size().to_dict() == {"plane": 25, "first": 7, "second": 7, "top": 7}
    for row in plane.itertuples():
        step = {
            "plane": row.a * first + row.b * second,
            "first": row.a * first,
            "second": row.a * second,
            "top": row.a * loss.top / 8**0.5,
        }[row.direction]
        wanted = [(own + sign * step) @ loss.matrix @ (own + sign * step) / 2 + 1.5 for sign in (1, -1)]
        # an eigenvector has no sign
        assert min(abs(float(value) - row.loss) for value in wanted[: 1 + (row.direction == "top")]) < 1e-4, row
    found = sharpness.set_index("direction")
    assert found.curvature["top"] == pytest.approx(8, rel=1e-9)
    assert found.length["top"] == pytest.approx(8**-0.5), "the quadratic part rises by 1/2"
    assert found.residual["top"] <= 1e-8
    for name, direction in (("first", first), ("second", second)):
        assert found.length[name] == pytest.approx(float(direction.norm()), rel=1e-6)
        wanted = direction @ loss.matrix @ direction / (direction @ direction)
        assert found.curvature[name] == pytest.approx(float(wanted), rel=1e-6)
        assert found.curvature_low[name] == pytest.approx(found.curvature_high[name]), "all pictures have one Hessian"
        halfway = float(direction @ loss.matrix @ direction) / 8  # (1/2)^2 / 2
        assert found.rise[name] == pytest.approx(halfway, rel=1e-6), "the slope of both sides cancels out"
    assert np.isnan(found.rise["top"])
    alone = random_sharpness(net, pictures, loss, [""] * 4)
    pd.testing.assert_frame_equal(alone, sharpness.iloc[:2][[*alone]], check_exact=True)


@pytest.mark.parametrize("eigenvalues", [[-50, *range(12), 12], [-3, *[-1] * 12, -0.5], [0] * 13 + [4]], ids=str)
def test_the_top_eigenvalue_is_the_largest_not_the_one_farthest_from_0(eigenvalues):
    matrix = Quadratic(eigenvalues).matrix
    start = torch.ones(14, dtype=torch.float64)
    value, vector, residual = top_eigenpair(lambda own: matrix @ own, start, range(60))
    assert value == pytest.approx(max(eigenvalues), rel=1e-3)
    assert vector.norm() == pytest.approx(1)
    assert residual == pytest.approx(float((matrix @ vector - value * vector).norm()) / abs(value), abs=1e-9)


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights_and_the_rest_is_0():
    model = segmenter()
    weights = list(model.parameters())
    direction = random_direction(weights, seed=0)
    for weight, own in zip(weights, direction, strict=True):
        if weight.dim() == 1:
            assert not own.any()
        else:
            for filter_, other in zip(weight, own, strict=True):
                assert other.norm().item() == pytest.approx(filter_.norm().item(), rel=1e-5)
    assert not torch.equal(direction[0], random_direction(weights, seed=1)[0])


@pytest.fixture(scope="module")
def small():
    """Two pictures of 32 px."""
    batch = batches((2,))[0]
    return Batch(batch.images[..., :32, 16:48], batch.masks[..., :32, 16:48], batch.indices)


def smooth(model):
    """Put soft layers in the place of those with kinks, which no second difference of losses steps over."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(3, 2, 1))
    return model


@pytest.mark.parametrize(
    ("skip", "flow"), [("concat", "both"), ("concat", "forward"), ("add", "backward"), (MIXED, "both")], ids=str
)
def test_a_product_with_the_hessian_is_the_second_difference_of_losses(small, skip, flow):
    """Losses know nothing of what a long skip does to a gradient."""
    model, criterion = smooth(segmenter(skip, skip_flow=flow)).double(), make_loss("bce_dice", 2).eval()
    products = HessianProducts(model, small, criterion)
    vector = torch.randn(products.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector *= 1e-2 / vector.norm()
    product, along = products(vector, at_once=1)
    assert along.mean() == pytest.approx(float(product @ vector), rel=1e-9)

    def losses(step):
        with restored(list(model.parameters())) as weights, torch.no_grad():
            parts = vector.split([w.numel() for w in weights])
            for weight, part in zip(model.parameters(), parts, strict=True):
                weight += step * part.view_as(weight)
            pairs = zip(model(small.images).split(1), small.masks.split(1), strict=True)
            return np.array([criterion(*pair).item() for pair in pairs])

    assert along == pytest.approx(losses(1) - 2 * losses(0) + losses(-1), rel=1e-3)


def test_the_weights_come_back_to_the_last_bit_also_where_it_fails(small):
    model = segmenter()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def track(sequence, description):
        for count, entry in enumerate(sequence):
            if description == "loss landscape" and count == 3:
                raise KeyboardInterrupt
            if description == "sharpest direction" and count == 1:
                return
            yield entry

    with pytest.raises(KeyboardInterrupt):
        measure(model, small, make_loss("dice", 2).eval(), ["", ""], track=track)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
