"""The gradient by the number of residual branches on its way: by hand, and by scaling the branches' gradients."""

from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from nets import (
    Toy,
    X,
    example,
    loss_of,
    one_thread,  # noqa: F401 (a fixture that every test uses)
)
from test_short_skips import Residual, ResidualEncoder
from torch import Tensor, nn

from unetseg.gradients.path_lengths import gradient_by_path_length
from unetseg.gradients.short import residual_blocks


def test_the_paths_of_the_toy_are_those_counted_by_hand():
    """dL/de2 is 4, of e2 = (b x + p x) of x with blocks b = 2, p = 1 and b = 3, p = 5: (1 + 2 t) (5 + 3 t)."""
    toy = Toy()
    toy.encoder = ResidualEncoder(2, None)
    toy.encoder.layer1.append(Residual(3, 5.0))
    toy.encoder.layer2 = nn.Sequential(Residual(2, None))
    # the bottleneck's gradient of 1 adds (1 + 2 t), the long skip of level 2 adds 1
    wanted = np.polynomial.polynomial.polymul(np.polynomial.polynomial.polymul([1, 2], [5, 3]), [2, 2])
    terms = gradient_by_path_length(toy, X, torch.sum)
    assert terms.flatten().tolist() == pytest.approx(wanted.tolist())
    assert all(weight.grad is None for weight in toy.parameters())


def by_scaling(net: nn.Module, images: Tensor) -> Tensor:
    """Scale the gradient of every residual branch by t at n + 1 Chebyshev points, and solve for the coefficients."""
    blocks = list(residual_blocks(net.encoder).values())
    count = len(blocks)
    points = np.cos(np.pi * (np.arange(count + 1) + 0.5) / (count + 1))
    values = []
    for point in points:
        inputs = []

        def scaled(convolution: nn.Module, inputs: tuple[Tensor], point: float = point) -> tuple[Tensor]:
            branch = inputs[0].view_as(inputs[0])
            branch.register_hook(lambda gradient: gradient * point)
            return (branch,)

        def first(block: nn.Module, given: tuple[Tensor], inputs: list[Tensor] = inputs) -> tuple[Tensor]:
            inputs.append(given[0].detach().requires_grad_())
            return (inputs[0],)

        handles = [block.conv1.register_forward_pre_hook(scaled) for block in blocks]
        handles.append(blocks[0].register_forward_pre_hook(first))
        values.append(torch.autograd.grad(loss_of(net(images), images), inputs)[0])
        for handle in handles:
            handle.remove()
    vandermonde = torch.tensor(np.vander(points, increasing=True))
    return torch.linalg.solve(vandermonde, torch.stack(values).flatten(1)).view(count + 1, *values[0].shape)


@pytest.mark.parametrize(("encoder", "skip"), [("resnet18", "concat"), ("resnet18", "none"), ("resnet50", "concat")])
def test_in_float64_the_terms_are_the_coefficients_of_the_scaled_gradient(encoder, skip):
    net, images = example(encoder, skip, images=1)
    net, images = net.double(), images[..., :32, :32].double()
    wanted = by_scaling(net, images)
    found = gradient_by_path_length(net, images, partial(loss_of, images=images))
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / found.sum(0).norm()) < 1e-6  # that of the solution
    net32 = net.float()
    rounded = gradient_by_path_length(net32, images.float(), partial(loss_of, images=images.float()))
    assert float((rounded - found).norm() / found.norm()) < 1e-3


def test_the_terms_sum_to_the_gradient():
    net, images = example("resnet50", images=1)
    net, images = net.double(), images.double()
    terms = gradient_by_path_length(net, images, partial(loss_of, images=images))
    inputs = []
    net.encoder.layer1.register_forward_pre_hook(lambda stage, given: inputs.append(given[0]))
    loss = loss_of(net(images), images)
    (wanted,) = torch.autograd.grad(loss, inputs)
    assert float((terms.sum(0) - wanted).norm() / wanted.norm()) < 1e-12


def test_encoders_without_residual_blocks_are_refused():
    net, images = example("densenet121")
    with pytest.raises(ValueError, match="no residual blocks"):
        gradient_by_path_length(net, images, torch.sum)


def test_what_lies_between_two_blocks_is_refused():
    net, images = example("resnet18")
    net.encoder.layer2.insert(1, nn.ReLU())
    with pytest.raises(ValueError, match="between the residual blocks 2 and 3"):
        gradient_by_path_length(net, images, torch.sum)


def test_a_net_that_ends_before_the_encoders_last_stage_is_split_by_the_blocks_it_has():
    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(8, 8, 8)).eval()
    terms = gradient_by_path_length(net, torch.randn(1, 3, 32, 32), torch.sum)
    assert len(terms) == 4 + 1


def test_blocks_that_normalise_before_their_first_convolution_are_refused():
    """As in He et al. 2016b: what the branch begins with is not the input itself."""

    class Normalising(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv1(x / 2) + x

    toy = Toy()
    toy.encoder = ResidualEncoder(2, None)
    toy.encoder.layer1 = nn.Sequential(Normalising(2, None))
    toy.encoder.layer2 = nn.Sequential(Residual(2, None))
    with pytest.raises(ValueError, match="residual block 0 of the encoder changes its input"):
        gradient_by_path_length(toy, X, torch.sum)
