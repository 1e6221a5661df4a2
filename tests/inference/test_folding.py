"""Folded batch normalisation: the same function in fewer passes, only where no other layer reads the convolution."""

import numpy as np
import pytest
import torch
from test_export import SETTINGS, pictures, random_model
from torch import nn

from unetseg.data.view import View
from unetseg.inference.engines import TorchEngine
from unetseg.inference.folding import folded
from unetseg.model.segmenter import probabilities

OTHERS = [{"encoder": name} for name in ("resnet50", "densenet121", "mobilenet_v2", "efficientnet-b0", "vgg11_bn")]


def normalisations(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("settings", SETTINGS + OTHERS, ids=str)
def test_a_folded_model_is_the_same_function(settings):
    model = random_model(**settings)
    images = torch.from_numpy(pictures(2, 64, 96)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found, expected = (probabilities(each(images)) for each in (folded(model), model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "mobilenet_v2"])
def test_of_these_encoders_no_normalisation_is_left(encoder):
    model = random_model(encoder)
    assert normalisations(model) > 0
    assert normalisations(folded(model)) == 0


def test_of_a_densenet_only_those_after_a_convolution_are_folded():
    model = random_model("densenet121")
    of_layers = sum(name.endswith("norm2") for name, _ in model.net.encoder.named_modules())
    stem, decoder = 1, normalisations(model.net.decoder)
    assert normalisations(model) - normalisations(folded(model)) == of_layers + stem + decoder


def test_the_numbers_are_those_of_the_formula():
    model = random_model()
    conv, norm = model.net.encoder.conv1, model.net.encoder.bn1
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    found = folded(model).net.encoder.conv1
    torch.testing.assert_close(found.weight.double(), conv.weight * factor.view(-1, 1, 1, 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.bias.double(), norm.bias - factor * norm.running_mean, atol=1e-6, rtol=1e-5)


def test_the_model_that_is_given_stays_as_it_was():
    model = random_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    TorchEngine(model, classes=("a", "b", "c"), view=View(64), device="cpu").probabilities(pictures(1, 64, 64))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Crossed(nn.Sequential):
    """Neighbours that run in another order."""

    def forward(self, x):
        return self[0](self[1](x))


class Beside(nn.Module):
    """A normalisation beside a convolution, with the names of a ResNet's block."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.conv1(x) + self.bn1(x)


def norm(**kinds) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(16, **kinds)


def shared_activation() -> nn.Sequential:
    act = nn.LeakyReLU(0.1)
    return nn.Sequential(nn.Conv2d(16, 16, 1), act, nn.Identity(), nn.Conv2d(16, 16, 1), act, norm())


def hooked(place: int) -> nn.Sequential:
    part = nn.Sequential(nn.Conv2d(16, 16, 1), norm())
    part[place].register_forward_hook(lambda module, given, result: result.clamp(min=0))
    return part


def in_training() -> nn.Sequential:
    part = nn.Sequential(nn.Conv2d(16, 16, 1), norm())
    part[1].train = lambda mode: part[1]  # stays in training mode
    return part


KEPT_APART = {
    "a shared module": shared_activation,
    "a hook on the convolution": lambda: hooked(0),
    "a hook on the normalisation": lambda: hooked(1),
    "no kept statistics": lambda: nn.Sequential(nn.Conv2d(16, 16, 1), norm(track_running_stats=False)),
    "spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(16, 16, 1)), norm()),
    "a parametrisation": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 1)), norm()),
    "in training": in_training,
}


@pytest.mark.parametrize("part", KEPT_APART.values(), ids=KEPT_APART)
def test_what_is_more_than_a_convolution_and_a_normalisation_is_left_alone(part):
    model = random_model(classes=2, encoder="tu-test_resnet")
    made = part()
    model.net.segmentation_head.insert(0, made.requires_grad_(False))
    if made[-1].running_mean is not None:
        made[-1].running_mean.fill_(0.5), made[-1].running_var.fill_(4.0)
    made.eval()
    images = torch.from_numpy(pictures(1, 64, 64)).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(folded(model)(images), model(images), atol=1e-4)
        assert normalisations(folded(model).net.segmentation_head) == 1


def test_a_class_of_somebodys_own_is_run_as_it_is(monkeypatch):
    model = random_model(encoder="tu-test_resnet")
    monkeypatch.setitem(model.net.config, "skip", "fusions:Mine")
    assert folded(model) is model


@pytest.mark.parametrize("part", [Crossed(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)), Beside()], ids=["order", "names"])
def test_layers_that_are_no_pair_are_left_alone(part):
    model = random_model(classes=2)
    model.net.segmentation_head.insert(0, part.eval())
    with torch.no_grad():
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(0.5), module.running_var.fill_(4.0)
    images = torch.from_numpy(pictures(1, 64, 64)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        np.testing.assert_allclose(folded(model)(images), model(images), atol=1e-4)
    assert normalisations(folded(model)) == 1
