"""Nets whose gradients are known, and a step with them: for the tests of gradients/."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from unetseg.gradients import GradientFlow
from unetseg.model import SkipUnet
from unetseg.model.skips import Add, NoSkip

MIXED = ["none", "concat", "add", "concat"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run on one thread: small nets on two busy ones wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def numbers(flow: GradientFlow) -> dict[tuple[str, str], float]:
    """Return what was read by block and metric."""
    return {(record.block, record.metric): record.value for record in flow.read()}


def metric(flow: GradientFlow, name: str, kind: str) -> dict[str, float]:
    """Return one metric by block."""
    return {record.block: record.value for record in flow.read() if (record.metric, record.kind) == (name, kind)}


def example(encoder: str = "resnet18", skip: str | list[str] = "concat", images: int = 2) -> tuple[SkipUnet, Tensor]:
    """Return a net in evaluation mode (batch norm couples no images then) and Bx3x64x64 images."""
    torch.manual_seed(0)
    widths = [32, 32, 16, 16, 16]  # for speed
    net = SkipUnet(encoder, skip=skip, weights=None, decoder_channels=widths)
    return net.eval(), torch.randn(images, 3, 64, 64)


def loss_of(logits: Tensor, images: Tensor) -> Tensor:
    """Return a loss with masks made of the images, Bx3xHxW."""
    return binary_cross_entropy_with_logits(logits, (images[:, :1] > 0).to(logits.dtype))


def step(net: nn.Module, images: Tensor, lr: float = 0.1, routes: bool = False) -> GradientFlow:
    """Take one step of gradient descent in the block."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    optimizer.zero_grad()
    with GradientFlow(net, routes=routes) as flow:
        loss_of(net(images), images).backward()
        optimizer.step()
    return flow


def step_in_halves(net: nn.Module, images: Tensor, routes: bool = False) -> GradientFlow:
    """Take the step of `step` by two micro-batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradientFlow(net, routes=routes) as flow:
        for part in images.chunk(2):
            (loss_of(net(part), part) / 2).backward()
        optimizer.step()
    return flow


def assert_close(found: dict, wanted: dict, tolerance: float) -> None:
    """Compare all numbers, nan being equal to nan."""
    assert found == pytest.approx(wanted, rel=tolerance, abs=1e-14, nan_ok=True)


class Scale(nn.Module):
    """Multiplies with one weight."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight


class ToyEncoder(nn.Module):
    """e1 = a x, e2 = b e1 + e1 (a short skip), e3 = c e2."""

    def __init__(self, a: float, b: float, c: float):
        super().__init__()
        self.conv1, self.layer1, self.layer2 = Scale(a), Scale(b), Scale(c)
        self.out_channels = [1, 1, 1, 1]

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.conv1(images)
        second = self.layer1(first) + first
        return [images, first, second, self.layer2(second)]


class ToyBlock(nn.Module):
    """Fuses and multiplies with one weight."""

    def __init__(self, fusion: nn.Module, weight: float):
        super().__init__()
        self.fusion, self.scale = fusion, Scale(weight)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        return self.scale(self.fusion(deep, skip))


class ToyDecoder(nn.Module):
    """d2 = p (e3 + e2), d1 = q (d2 + e1), d0 = r d1."""

    def __init__(self, p: float, q: float, r: float):
        super().__init__()
        self.blocks = nn.ModuleList([ToyBlock(Add(1, 1), p), ToyBlock(Add(1, 1), q), ToyBlock(NoSkip(1, 0), r)])

    def forward(self, features: list[Tensor]) -> Tensor:
        deep = features[-1]
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            deep = block(deep, skip)
        return deep


class Toy(SkipUnet):
    """A U-Net of two levels and seven weights: a, b, c in the encoder, p, q, r in the decoder, h in the head."""

    def __init__(self, a: float = 0.5, b: float = 2, c: float = 3, p: float = 0.5, q: float = 2, r: float = 0.25):
        nn.Module.__init__(self)
        self.encoder, self.decoder, self.segmentation_head = ToyEncoder(a, b, c), ToyDecoder(p, q, r), Scale(4)


X = torch.full((1, 1, 1, 1), 2.0)
# x = 2:  e1 = 1, e2 = 2 + 1 = 3, e3 = 9, d2 = (9 + 3) / 2 = 6, d1 = 2 (6 + 1) = 14, d0 = 3.5, y = 14
# dL/dy = 1:  dL/dd0 = h = 4, dL/dd1 = 4 r = 1, dL/dd2 = 1 q = 2 and the same by the skip to e1,
# dL/de3 = 2 p = 1 and the same by the skip to e2, which gets 1 c = 3 by the deep path: 4 in all;
# e1 gets 4 (b + 1) = 12 by the deep path and 2 by its skip.
TOY_RMS = {"stem": 28, "encoder1": 4, "encoder2": 3, "decoder2": 24, "decoder1": 7, "decoder0": 56, "head": 3.5}
TOY_WEIGHTS = {"stem": 0.5, "encoder1": 2, "encoder2": 3, "decoder2": 0.5, "decoder1": 2, "decoder0": 0.25, "head": 4}


def toy_step(toy: Toy, lr: float, routes: bool = False) -> GradientFlow:
    """Take one step down the gradient of the toy's output at x = 2."""
    optimizer = torch.optim.SGD(toy.parameters(), lr=lr)
    with GradientFlow(toy, routes=routes) as flow:
        toy(X.to(toy.segmentation_head.weight.dtype)).sum().backward()
        optimizer.step()
    return flow
