"""Short and dense skips: worked out by hand, and against nets in which every reader has a copy of its own."""

import copy
import json
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import beside
from nets import (
    Scale,
    Toy,
    ToyEncoder,
    X,
    assert_close,
    example,
    loss_of,
    one_thread,  # noqa: F401 (a fixture that every test uses)
    step,
    step_in_halves,
)
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unetseg.gradients import GradientFlow
from unetseg.gradients.dense import dense_blocks, mean_weights
from unetseg.gradients.short import residual_blocks
from unetseg.model import SkipUnet


def readings(flow: GradientFlow) -> dict[tuple[str, str], float]:
    """Return what was read of short and dense skips by block and metric."""
    return {(r.block, r.metric): r.value for r in flow.read() if r.kind in ("short", "dense")}


def shares(found: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {key: value for key, value in found.items() if "share" in key[1] or "reuse" in key[1]}


# --- worked out by hand, on the toy of nets.py, whose dL/de2 is 4 and whose e1 leaves by a long skip as well


class Residual(nn.Module):
    """H = b x + x, or H = b x + p x."""

    def __init__(self, b: float, p: float | None):
        super().__init__()
        self.conv1, self.downsample = Scale(b), None if p is None else Scale(p)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(x)
        branch += x if self.downsample is None else self.downsample(x)
        return branch


class ResidualEncoder(ToyEncoder):
    def __init__(self, b: float, p: float | None):
        super().__init__(0.5, 2, 3)
        self.layer1 = nn.Sequential(Residual(b, p))

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.conv1(images)
        second = self.layer1(first)
        return [images, first, second, self.layer2(second)]


class Layer(nn.Module):
    """The weighted sum of all before it."""

    def __init__(self, *weights: float):
        super().__init__()
        self.conv1 = nn.Conv2d(len(weights), 1, 1, bias=False)
        self.conv1.weight.data = torch.tensor(weights, dtype=torch.float32).view(1, -1, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv1(torch.cat(features, 1))


class Dense(nn.ModuleDict):
    """t1 = 2 t0, t2 = -t0 + 3 t1; the output is [t0, t1, t2]."""

    def __init__(self):
        super().__init__({"denselayer1": Layer(2), "denselayer2": Layer(-1, 3)})

    def forward(self, first: Tensor) -> Tensor:
        features = [first]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Module):
    """5 t0 + t1 + 0.5 t2."""

    def __init__(self):
        super().__init__()
        self.conv = Layer(5, 1, 0.5).conv1

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features)


class DenseEncoder(ToyEncoder):
    def __init__(self):
        super().__init__(0.5, 2, 3)
        del self.layer1
        self.denseblock1, self.transition1 = Dense(), Transition()

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.conv1(images)
        second = self.transition1(self.denseblock1(first))
        return [images, first, second, self.layer2(second)]


def toy(encoder: nn.Module) -> Toy:
    net = Toy()
    net.encoder = encoder
    return net.double()


def read(net: nn.Module, images: Tensor | None = None) -> dict[tuple[str, str], float]:
    with GradientFlow(net, routes=True) as flow:
        net(X.double() if images is None else images).sum().backward()
    return readings(flow)


def toy_residual(factor: float = 1, p: float | None = None) -> dict[tuple[str, str], float]:
    """By the residual branch 4 b = 8 comes to x = e1, by the addition 4, or 4 p."""
    residual, identity = 8, 4 * (1 if p is None else p)
    both = residual + identity
    numbers = {
        **{"residual_share": residual / both, "identity_share": identity / both},
        **{"norm": factor * abs(both), "residual_norm": factor * residual, "identity_norm": factor * abs(identity)},
        **{"cosine": 1 if identity > 0 else -1, "projected": float(p is not None)},
    }
    return {("encoder1.0", name): value for name, value in numbers.items()}


@pytest.mark.parametrize("p", [None, 3.0, -0.5])
def test_a_residual_block_splits_into_what_came_by_the_addition_and_by_the_branch(p):
    """The gradient of 2 that e1 gets by its long skip is not the block's."""
    assert_close(read(toy(ResidualEncoder(2, p))), toy_residual(p=p), 1e-12)


def test_a_dense_layers_gradient_is_split_by_its_later_readers():
    """t1 gets 4 by the output and 3 * 2 by layer 2; t0 gets 20 by the output, 2 * 10 by layer 1, -1 * 2 by layer 2."""
    wanted = {"reuse_1_2": 6 / 10, "reuse_1_out": 4 / 10}
    wanted |= {"reuse_0_1": 20 / 38, "reuse_0_2": -2 / 38, "reuse_0_out": 20 / 38}
    wanted |= {"weight_0_1": 2, "weight_0_2": 1, "weight_1_2": 3, "weight_0_out": 5, "weight_1_out": 1}
    assert_close(read(toy(DenseEncoder())), {("encoder1", name): value for name, value in wanted.items()}, 1e-12)


def test_short_skips_are_read_only_with_the_routes():
    net = toy(ResidualEncoder(2, None))
    with GradientFlow(net) as flow:
        net(X.double()).sum().backward()
    assert readings(flow) == {}


# --- against nets in which every reader has a copy of its own


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


@pytest.mark.parametrize(("name", "blocks"), [
    ("tu-regnetx_002", [f"encoder{stage}.{i}" for stage, n in enumerate((1, 1, 4, 7), start=1) for i in range(n)]),
    ("tu-resnet10t", [f"encoder{stage}.0" for stage in range(1, 5)]),
])  # fmt: skip
def test_blocks_of_other_encoders_are_named_by_their_stages(name, blocks):
    assert list(residual_blocks(get_encoder(name, weights=None))) == blocks


def test_a_transition_that_is_no_densenets_has_no_weights_to_tell():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.transition1 = nn.ModuleList([nn.Conv2d(3, 3, 1)])  # as in an HRNet

    assert mean_weights(Branches()) == {}


def test_timms_dense_blocks_are_named_by_their_stages():
    with torch.device("meta"):
        assert list(dense_blocks(get_encoder("tu-densenet121", weights=None))) == [f"encoder{s}" for s in range(1, 5)]


def short_by_copies(net: nn.Module, images: Tensor) -> dict[tuple[str, str], float]:
    """Give the branch and the addition of one block after the other copies of its input, and split by their gradients.

    The rest of the gradient never reaches the block, so that a long skip that leaves at its input plays no part.
    """
    found = {}
    for name, block in residual_blocks(net.encoder).items():
        copies = []

        def own_copy(module: nn.Module, inputs: tuple[Tensor], copies: list[Tensor] = copies) -> tuple[Tensor]:
            copies.append(leaf(inputs[0]))
            return (copies[-1],)

        handles = [module.register_forward_pre_hook(own_copy) for module in (block, block.conv1)]
        loss_of(net(images), images).backward()
        for handle in handles:
            handle.remove()
        identity, residual = (own.grad.flatten() for own in copies)
        both = identity + residual
        found[name, "identity_share"] = float(identity @ both / (both @ both))
        found[name, "residual_share"] = float(residual @ both / (both @ both))
    return found


def dense_by_copies(net: nn.Module, images: Tensor, name: str, source: int) -> dict[tuple[str, str], float]:
    """Give every reader of a source a copy of its own, and split by their gradients."""
    copies = {}

    def own_copy(number: int, layer: nn.Module, inputs: tuple[list[Tensor]]) -> tuple[list[Tensor]]:
        (features,) = inputs
        if number == source + 1:
            features[source] = copies["out"] = leaf(features[source])  # the list is that of the block's output, too
        copies[number] = leaf(features[source])
        return ([*features[:source], copies[number], *features[source + 1 :]],)

    layers = dense_blocks(net.encoder)[name].values()
    later = [
        layer.register_forward_pre_hook(partial(own_copy, number))
        for number, layer in enumerate(layers, start=1)
        if number > source
    ]
    loss_of(net(images), images).backward()
    for handle in later:
        handle.remove()
    both = sum(own.grad for own in copies.values())
    return {
        (name, f"reuse_{source}_{reader}"): float((own.grad * both).sum() / (both * both).sum())
        for reader, own in copies.items()
    }


def in_float64(encoder: str) -> tuple[nn.Module, Tensor]:
    net, images = example(encoder)
    return net.double(), images[..., :32, :32].double()


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_of_a_resnet_the_shares_are_those_of_copies_and_sum_to_1(encoder):
    net, images = in_float64(encoder)
    found = shares(readings(step(copy.deepcopy(net), images, routes=True)))
    wanted = short_by_copies(net, images)
    assert len(wanted) == 2 * {"resnet18": 8, "resnet50": 16}[encoder]
    assert found.keys() == wanted.keys()
    assert max(abs(found[key] - wanted[key]) for key in wanted) < 1e-11
    for block in {block for block, _ in found}:
        assert abs(found[block, "identity_share"] + found[block, "residual_share"] - 1) < 1e-12


@pytest.mark.quick
def test_of_a_densenet_the_reuse_is_that_of_copies_and_sums_to_1():
    net, images = in_float64("densenet121")
    found = shares(readings(step(copy.deepcopy(net), images, routes=True)))
    assert len(found) == sum((n + 1) * (n + 2) // 2 - 1 for n in (6, 12, 24, 16))
    for block, source in (("encoder1", 0), ("encoder1", 5), ("encoder2", 4), ("encoder3", 0), ("encoder4", 9)):
        wanted = dense_by_copies(net, images, block, source)
        assert {key for key in found if key[0] == block and key[1].startswith(f"reuse_{source}_")} == wanted.keys()
        assert max(abs(found[key] - wanted[key]) for key in wanted) < 1e-11
        assert abs(sum(found[key] for key in wanted) - 1) < 1e-12


def test_of_a_resnet_that_concatenates_the_shares_are_those_of_copies():
    torch.manual_seed(0)
    net = SkipUnet("resnet18", short_skips="concat", weights=None).eval().double()
    images = torch.randn(1, 3, 32, 32).double()
    wanted = short_by_copies(net, images)
    assert len(wanted) == 2 * 8
    assert_close(shares(readings(step(net, images, routes=True))), wanted, 1e-9)


@pytest.mark.parametrize("short_skips", [False, "add"])
def test_a_densenet_that_does_not_concatenate_has_no_reuse(short_skips):
    net = SkipUnet("densenet121", short_skips=short_skips, weights=None)
    assert readings(step(net, torch.randn(2, 3, 64, 64), routes=True)) == {}


def test_blocks_of_other_libraries_are_found():
    torch.manual_seed(0)
    net = smp.Unet("se_resnet50", encoder_weights=None).eval().double()
    images = torch.randn(1, 3, 32, 32).double()
    wanted = short_by_copies(net, images)
    assert len(wanted) == 2 * 16
    assert_close(shares(readings(step(net, images, routes=True))), wanted, 1e-9)


def test_an_identity_module_is_no_projection():
    """As timm's RegNet writes it."""
    net = toy(ResidualEncoder(2, 3.0))
    net.encoder.layer1[0].downsample = nn.Identity()
    assert_close(read(net), toy_residual(), 1e-12)


def test_blocks_without_an_addition_have_no_share():
    torch.manual_seed(0)
    net = SkipUnet("resnet18", short_skips=False, weights=None)
    assert readings(step(net, torch.randn(2, 3, 64, 64), routes=True)) == {}


# --- one step, however it is computed

NETS = pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])


@NETS
def test_micro_batches_add_up_to_the_numbers_of_the_big_batch(encoder):
    net, images = example(encoder, images=4)
    net, images = net.double(), images[..., :32, :32].double()
    wanted = readings(step(copy.deepcopy(net), images, routes=True))
    assert_close(readings(step_in_halves(net, images, routes=True)), wanted, 1e-9)


@NETS
def test_two_processes_give_the_numbers_of_one_on_the_joined_batch(encoder, tmp_path):
    net, images = example(encoder, images=4)
    wanted = readings(step(net.double(), images[..., :32, :32].double(), routes=True))
    with beside(save_half, encoder, tmp_path):
        found = readings_of_half(0, encoder, tmp_path)
    theirs = json.loads((tmp_path / "1.json").read_text())
    for numbers in (found, {(block, name): value for block, name, value in theirs}):
        assert_close(numbers, wanted, 1e-9)


def save_half(encoder: str, folder: Path) -> None:
    """Write what the second of the two processes reads."""
    read = [(*key, value) for key, value in readings_of_half(1, encoder, folder).items()]
    (folder / "1.json").write_text(json.dumps(read))


def readings_of_half(rank: int, encoder: str, folder: Path) -> dict[tuple[str, str], float]:
    """Take the step of `step` on half of the batch, one of two processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=30)
    )
    try:
        net, images = example(encoder, images=4)
        parallel = nn.parallel.DistributedDataParallel(net.double())
        return readings(step(parallel, images[..., :32, :32].double().chunk(2)[rank], routes=True))
    finally:
        torch.distributed.destroy_process_group()


def test_clipping_and_a_gradient_scaler_change_nothing():
    net, images = example()
    wanted = readings(step(copy.deepcopy(net), images, routes=True))
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with GradientFlow(net, scale=scaler.get_scale, routes=True) as flow:
        scaler.scale(loss_of(net(images), images)).backward()
        scaler.unscale_(optimizer)
        flow.gradients()
        nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update(new_scale=1.0)
    assert_close(readings(flow), wanted, 1e-4)


@NETS
def test_bfloat16_is_close_to_float32(encoder):
    net, images = example(encoder)
    wanted = shares(readings(step(copy.deepcopy(net), images, lr=0, routes=True)))
    with GradientFlow(net, routes=True) as flow:
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        loss_of(logits.float(), images).backward()
    assert shares(readings(flow)) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("part", ["blocks", "stages", "net"])
@pytest.mark.parametrize("encoder", [partial(ResidualEncoder, 2, None), partial(ResidualEncoder, 2, 3.0), DenseEncoder])
def test_recomputation_changes_nothing(encoder, part):
    net, image = toy(encoder()), X.double().requires_grad_()
    wanted = read(copy.deepcopy(net))
    again = partial(checkpoint, use_reentrant=False)
    stages = [net.encoder.denseblock1] if encoder is DenseEncoder else [net.encoder.layer1]
    blocks = list(stages[0].values() if encoder is DenseEncoder else stages[0])
    for module in {"blocks": blocks, "stages": stages, "net": [net]}[part]:
        module.forward = partial(again, module.forward)
    assert_close(read(net, image), wanted, 1e-12)


@NETS
def test_recomputation_of_the_blocks_of_real_nets_changes_nothing(encoder):
    """A dense block of torchvision has a way of its own."""
    net, images = in_float64(encoder)
    wanted = readings(step(copy.deepcopy(net), images, routes=True))
    for block in residual_blocks(net.encoder).values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for layers in dense_blocks(net.encoder).values():
        for layer in layers.values():
            layer.memory_efficient = True
    assert_close(readings(step(net, images, routes=True)), wanted, 1e-9)


def test_forward_passes_that_share_a_recomputed_backward_pass_are_the_joined_batch():
    net = toy(ResidualEncoder(2, None))
    block = net.encoder.layer1[0]
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    with GradientFlow(net, routes=True) as flow:
        (net(X.double()).sum() + net(X.double()).sum()).backward()
    assert_close(readings(flow), toy_residual(2**0.5), 1e-12)


def test_reentrant_recomputation_of_a_block_is_refused_without_long_skips_as_well():
    """With long skips the exits refuse it."""
    torch.manual_seed(0)
    net = SkipUnet("resnet18", skip="none", weights=None)
    block = net.encoder.layer2[1]
    block.forward = partial(checkpoint, block.forward, use_reentrant=True)
    with pytest.raises(RuntimeError, match="recomputed from a copy"):
        step(net, torch.randn(2, 3, 64, 64), routes=True).read()


def test_two_backward_passes_over_one_forward_pass_are_summed_before_they_are_squared():
    net = toy(ResidualEncoder(2, 3.0))
    with GradientFlow(net, routes=True) as flow:
        y = net(X.double()).sum()
        (5 * y).backward(retain_graph=True)
        (-3 * y).backward()
    assert_close(readings(flow), toy_residual(2, p=3.0), 1e-12)


def test_passes_that_leave_nothing_in_the_weights_are_not_counted():
    net = toy(ResidualEncoder(2, None))
    with GradientFlow(net, routes=True) as flow:
        torch.autograd.grad(7 * net(X.double()).sum(), list(net.parameters()))
        (11 * net(X.double()).sum()).backward()
        net.zero_grad()
        with torch.no_grad():
            net(X.double())
        net(X.double()).sum().backward()
    assert_close(readings(flow), toy_residual(), 1e-12)


def test_what_no_gradient_reaches_has_no_numbers():
    net, images = example()
    net.encoder.conv1.requires_grad_(False)
    net.encoder.bn1.requires_grad_(False)
    net.encoder.layer1.requires_grad_(False)
    found = readings(step(net, images, routes=True))
    blocks = ["encoder2.1", "encoder3.0", "encoder3.1", "encoder4.0", "encoder4.1"]  # what the others get is frozen
    assert list(dict.fromkeys(block for block, _ in found)) == blocks


def test_a_compiled_net_is_told_as_exactly():
    torch._dynamo.reset()
    net = toy(ResidualEncoder(2, None))
    fast = torch.compile(net, backend="eager")
    fast(X.double()).sum().backward()
    net.zero_grad()
    with GradientFlow(net, routes=True) as flow:
        fast(X.double()).sum().backward()
    assert_close(readings(flow), toy_residual(), 1e-12)
