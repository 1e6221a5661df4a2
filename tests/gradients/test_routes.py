"""By which exit of the encoder a gradient came: worked out by hand, and against nets with all other exits cut."""

import copy
import json
import math
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import beside
from nets import (
    MIXED,
    Toy,
    X,
    assert_close,
    example,
    loss_of,
    numbers,
    one_thread,  # noqa: F401 (a fixture that every test uses)
    step,
    step_in_halves,
    toy_step,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unetseg.gradients import GradientFlow, blocks_of
from unetseg.model import SkipUnet
from unetseg.model.auxiliary import AuxiliaryHeads

SMALL = "tu-test_resnet"
EXITS = ["level1", "level2", "level3", "level4", "bottleneck"]


def routes(flow: GradientFlow) -> dict[tuple[str, str], float]:
    """Return what was read of the exits by block and metric."""
    return {(record.block, record.metric): record.value for record in flow.read() if record.kind == "exit"}


# --- worked out by hand: see the toy in nets.py. c_1 = 2, c_2 = 1 and, at the bottleneck, c_3 = 1.
# The stem's weight a gets c_1 x = 4 by level 1, c_2 (b + 1) x = 6 by level 2, c_3 c (b + 1) x = 18 by the bottleneck;
# b of encoder1 gets c_2 e1 = 1 and c_3 c e1 = 3; c of encoder2 c_3 e2 = 3.
TOY_TERMS = {
    "stem": {"level1": [4], "level2": [6], "bottleneck": [18]},
    "encoder1": {"level2": [1], "bottleneck": [3]},
    "encoder2": {"bottleneck": [3]},
    "encoder": {"level1": [4, 0, 0], "level2": [6, 1, 0], "bottleneck": [18, 3, 3]},
}


def toy_routes(factor: float = 1, lr: float = math.nan) -> dict[tuple[str, str], float]:
    """Return every number of the toy's exits for a loss of `factor` times its output."""
    wanted = {}
    for block, terms in TOY_TERMS.items():
        vectors = {name: factor * torch.tensor(term, dtype=torch.float64) for name, term in terms.items()}
        total = sum(vectors.values())
        for name, vector in vectors.items():
            wanted[block, f"share_{name}"] = float(vector @ total / (total @ total))
            wanted[block, f"norm_{name}"] = float(vector.norm())
            wanted[block, f"fall_{name}"] = float(lr * vector @ total)
        names = list(vectors)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                cosine = vectors[first] @ vectors[second] / (vectors[first].norm() * vectors[second].norm())
                wanted[block, f"cosine_{first}_{second}"] = float(cosine)
    return wanted


def test_every_number_of_the_toy_is_the_one_worked_out_by_hand():
    assert_close(routes(toy_step(Toy().double(), lr=1 / 16, routes=True)), toy_routes(lr=1 / 16), 1e-12)


def test_exits_are_read_only_where_they_are_asked_for():
    assert routes(toy_step(Toy(), lr=0)) == {}


# --- against nets in which every other exit is cut


def terms_by_cutting(net: nn.Module, images: Tensor) -> list[list[Tensor]]:
    """Return the gradient of each encoder weight by each exit: all others are detached in a forward pass of its own."""
    terms = []
    for exit_ in range(1, len(net.encoder.out_channels)):
        features = [e if level == exit_ else e.detach() for level, e in enumerate(net.encoder(images))]
        loss = loss_of(net.segmentation_head(net.decoder(features)), images)
        weights = list(net.encoder.parameters())
        terms.append(list(torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)))
    return terms


def unet(encoder: str, skip: str | list[str] = "concat") -> SkipUnet:
    return example(encoder, skip)[0]


@pytest.mark.parametrize(
    "build",
    [
        partial(unet, "resnet18"),
        partial(unet, SMALL, "add"),
        partial(unet, SMALL, ["none", "concat", "attention", "add"]),
        partial(unet, "densenet121"),
        partial(unet, SMALL, "nested"),
        partial(unet, SMALL, "full"),
        partial(unet, SMALL, "channel"),
        partial(unet, SMALL, ["multiply", "respath", "scse", "respath"]),
        partial(smp.UnetPlusPlus, SMALL, encoder_weights=None),
        partial(smp.FPN, SMALL, encoder_weights=None),
        partial(smp.DeepLabV3Plus, "resnet18", encoder_weights=None),
    ],
    ids=[
        "resnet18",
        "add",
        "mixed",
        "densenet121",
        "nested",
        "full",
        "channel",
        "multiply, respath, scse",
        "UnetPlusPlus",
        "FPN",
        "DeepLabV3Plus",
    ],
)
def test_in_float64_the_terms_are_those_of_nets_with_one_exit_and_sum_to_the_gradient(build):
    torch.manual_seed(0)
    net, images = build().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    terms = terms_by_cutting(net, images)
    found = routes(step(copy.deepcopy(net), images, routes=True))
    position = {id(weight): i for i, weight in enumerate(net.encoder.parameters())}
    blocks = {b: weights for b, weights in blocks_of(net).items() if b.startswith(("stem", "encoder"))}
    blocks["encoder"] = list(net.encoder.parameters())
    for block, weights in blocks.items():
        places = [position[id(weight)] for weight in weights]
        vectors = [torch.cat([term[place].flatten() for place in places]) for term in terms]
        total = torch.stack(vectors).sum(0)
        for name, vector in zip(EXITS, vectors, strict=True):
            wanted = {"share": vector @ total / (total @ total), "norm": vector.norm(), "fall": 0.1 * vector @ total}
            tolerance = {"share": 1e-12, "norm": 1e-12 * total.norm(), "fall": 1e-12 * total @ total}
            for metric, value in wanted.items():
                known = found.get((block, f"{metric}_{name}"), 0.0)  # an exit behind a block has no number
                assert abs(known - value) < tolerance[metric], (block, name, metric)
        assert sum(found.get((block, f"share_{name}"), 0) for name in EXITS) == pytest.approx(1, abs=1e-12)


def test_a_features_only_skip_is_no_exit():
    """What flows forward alone brings no gradient back."""
    torch.manual_seed(0)
    net = SkipUnet("resnet18", skip_flow="forward", weights=None).eval()
    found = routes(step(net, torch.randn(2, 3, 64, 64), routes=True))
    assert {name for _, name in found if name.startswith("share")} == {"share_bottleneck"}
    assert all(value == 1 for (_, name), value in found.items() if name == "share_bottleneck")


# --- reading changes nothing, however the step is computed


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "densenet121"])
def test_the_trained_weights_and_the_other_numbers_are_bit_identical(encoder):
    results = []
    for with_routes in (False, True):
        net, images = example(encoder)
        net.train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        others = []
        for _ in range(2):
            optimizer.zero_grad()
            with GradientFlow(net, routes=with_routes) as flow:
                loss_of(net(images), images).backward()
                optimizer.step()
            others += [(r.block, r.metric, str(r.value)) for r in flow.read() if r.kind in ("skip", "block", "net")]
        results.append((net.state_dict(), others))
    (without, numbers_without), (with_, numbers_with) = results
    assert all(torch.equal(weight, with_[name]) for name, weight in without.items())
    assert numbers_without == numbers_with


@pytest.mark.quick
def test_micro_batches_add_up_to_the_numbers_of_the_big_batch():
    net, images = example(images=4)
    net, images = net.double(), images.double()
    wanted = routes(step(copy.deepcopy(net), images, routes=True))
    assert_close(routes(step_in_halves(net, images, routes=True)), wanted, 1e-9)


def test_two_processes_give_the_numbers_of_one_on_the_joined_batch(tmp_path):
    net, images = example(skip=MIXED, images=4)
    wanted = routes(step(net.double(), images.double(), routes=True))
    with beside(save_half, tmp_path):
        found = routes_of_half(0, tmp_path)
    theirs = json.loads((tmp_path / "1.json").read_text())
    for reading in (found, {(block, name): value for block, name, value in theirs}):
        assert_close(reading, wanted, 1e-9)


def save_half(folder: Path) -> None:
    """Write what the second of the two processes reads."""
    read = [(*key, value) for key, value in routes_of_half(1, folder).items()]
    (folder / "1.json").write_text(json.dumps(read))


def routes_of_half(rank: int, folder: Path) -> dict[tuple[str, str], float]:
    """Take the step of `step` on half of the batch, one of two processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=30)
    )
    try:
        net, images = example(skip=MIXED, images=4)
        parallel = nn.parallel.DistributedDataParallel(net.double())
        return routes(step(parallel, images.double().chunk(2)[rank], routes=True))
    finally:
        torch.distributed.destroy_process_group()


def test_clipping_after_the_reading_changes_the_step_and_not_the_shares():
    net, images = example()
    wanted = routes(step(copy.deepcopy(net), images, routes=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradientFlow(net, routes=True) as flow:
        loss_of(net(images), images).backward()
        flow.gradients()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    found = routes(flow)
    assert {k: v for k, v in found.items() if "fall" not in k[1]} == {
        k: v for k, v in wanted.items() if "fall" not in k[1]
    }
    falls = {key: value / (1e-3 / float(norm)) for key, value in found.items() if "fall" in key[1]}
    assert falls == pytest.approx({key: wanted[key] for key in falls}, rel=1e-2, abs=1e-6)


def test_terms_are_unscaled_under_a_gradient_scaler():
    net, images = example()
    wanted = routes(step(copy.deepcopy(net), images, routes=True))
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with GradientFlow(net, scale=scaler.get_scale, routes=True) as flow:
        scaler.scale(loss_of(net(images), images)).backward()
        scaler.step(optimizer)  # unscales first
        scaler.update(new_scale=1.0)
    found = routes(flow)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_what_a_fused_optimizer_unscales_by_itself_is_read_unscaled():
    """GradScaler leaves it to the optimizer's kernel: in its hook the gradients still have the factor of the loss."""
    toy = Toy()
    optimizer = torch.optim.AdamW(toy.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with GradientFlow(toy, scale=scaler.get_scale, routes=True) as flow:
        scaler.scale(toy(X).sum()).backward()
        scaler.step(optimizer)
    wanted = {key: value for key, value in toy_routes().items() if "fall" not in key[1]}
    assert_close({key: value for key, value in routes(flow).items() if key in wanted}, wanted, 1e-6)
    assert numbers(flow)["stem", "rms"] == pytest.approx(28)


@pytest.mark.parametrize("way", ["clipped", "clipped and then read", "clipped by value", "scaled"])
def test_gradients_that_are_no_sum_of_the_terms_are_refused(way):
    """What is left of them for the bottleneck would be its share: -23 in the toy once they are clipped to 1."""
    toy, scaler = Toy(), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(toy.parameters(), lr=0.1)
    with GradientFlow(toy, routes=True) as flow:
        if way == "scaled":  # `scale` was forgotten
            scaler.scale(toy(X).sum()).backward()
            scaler.step(optimizer)
        else:
            toy(X).sum().backward()
            if way == "clipped by value":
                nn.utils.clip_grad_value_(toy.parameters(), 20)  # the stem's 28 alone
            else:
                nn.utils.clip_grad_norm_(toy.parameters(), 1)
            if way == "clipped and then read":
                flow.gradients()
            optimizer.step()
    with pytest.raises(RuntimeError, match=r"not those that the backward passes have left: call flow.gradients\(\)"):
        flow.read()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype):
    net, images = example()
    wanted = routes(step(copy.deepcopy(net), images, lr=0, routes=True))
    with GradientFlow(net, routes=True) as flow:
        with torch.autocast("cpu", dtype):
            logits = net(images)
        loss_of(logits.float(), images).backward()
    found = routes(flow)
    shares = [key for key in wanted if key[1].startswith("share")]
    assert [found[key] for key in shares] == pytest.approx([wanted[key] for key in shares], abs=0.03)
    for block in {block for block, _ in shares}:
        assert sum(value for key, value in found.items() if key[0] == block and "share" in key[1]) == pytest.approx(1)


@pytest.mark.parametrize("part", ["blocks", "decoder", "stages", "net"])
def test_recomputation_changes_nothing(part):
    toy, image = Toy().double(), X.double().requires_grad_()
    again = partial(checkpoint, use_reentrant=False)
    if part == "net":
        toy.forward = partial(again, toy.forward)
    if part == "decoder":
        decode = toy.decoder.forward
        toy.decoder.forward = lambda features: again(lambda *copies: decode(copies), *features)
    for module in {"blocks": toy.decoder.blocks, "stages": [toy.encoder.layer1, toy.encoder.layer2]}.get(part, []):
        module.forward = partial(again, module.forward)
    with GradientFlow(toy, routes=True) as flow:
        toy(image).sum().backward()
    assert_close(routes(flow), toy_routes(), 1e-12)


def test_reentrant_recomputation_of_the_encoder_is_refused():
    toy, image = Toy(), X.clone().requires_grad_()
    toy.encoder.layer1.forward = partial(checkpoint, toy.encoder.layer1.forward, use_reentrant=True)
    with GradientFlow(toy, routes=True) as flow:
        toy(image).sum().backward()
    with pytest.raises(RuntimeError, match=r"routes of the gradient can't be told: .*backwards twice"):
        flow.read()


def test_two_backward_passes_over_one_forward_pass_are_summed_before_they_are_squared():
    toy = Toy().double()
    with GradientFlow(toy, routes=True) as flow:
        y = toy(X.double()).sum()
        (5 * y).backward(retain_graph=True)
        (-3 * y).backward()
    assert_close(routes(flow), toy_routes(2), 1e-12)


def test_passes_that_leave_nothing_in_the_weights_are_not_counted():
    toy = Toy().double()
    with GradientFlow(toy, routes=True) as flow:
        torch.autograd.grad(7 * toy(X.double()).sum(), list(toy.parameters()))
        (11 * toy(X.double()).sum()).backward()
        toy.zero_grad()
        toy(X.double()).sum().backward()
    assert_close(routes(flow), toy_routes(), 1e-12)


def test_a_gradient_penalty_is_refused_because_it_enters_the_encoder_elsewhere():
    toy = Toy()
    with GradientFlow(toy, routes=True) as flow:
        y = toy(X).sum()
        (slope,) = torch.autograd.grad(y, [toy.encoder.conv1.weight], create_graph=True)
        (y + slope.square().sum()).backward()
    with pytest.raises(RuntimeError, match="enters the encoder elsewhere"):
        flow.read()


def test_of_a_partly_frozen_encoder_the_trainable_part_is_told():
    net, images = example()
    wanted = routes(step(copy.deepcopy(net), images, routes=True))
    net.encoder.conv1.requires_grad_(False)
    net.encoder.bn1.requires_grad_(False)
    found = routes(step(net, images, routes=True))
    assert {block for block, _ in found} == {"encoder1", "encoder2", "encoder3", "encoder4", "encoder"}
    stages = [key for key in found if key[0] != "encoder"]
    assert [found[key] for key in stages] == pytest.approx([wanted[key] for key in stages], rel=1e-4, abs=1e-6)


def test_a_step_without_gradients_ends_the_block_in_peace():
    net, images = example()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradientFlow(net, routes=True) as flow:
        net(images)
        optimizer.step()
    with pytest.raises(RuntimeError, match="no gradient was seen"):
        flow.read()


def test_a_frozen_encoder_has_no_routes():
    net, images = example()
    net.encoder.requires_grad_(False)
    assert routes(step(net, images, routes=True)) == {}


def test_a_compiled_net_is_told_as_exactly():
    torch._dynamo.reset()
    toy = Toy().double()
    fast = torch.compile(toy, backend="eager")
    fast(X.double()).sum().backward()
    toy.zero_grad()
    with GradientFlow(toy, routes=True) as flow:
        fast(X.double()).sum().backward()
    assert_close(routes(flow), toy_routes(), 1e-12)


@pytest.mark.parametrize("dose", [0.25, 2.0])
def test_a_dose_is_read_where_it_arrives_at_the_encoder(dose):
    """In float64, level by level and block by block: the skip's part is the factor times what it is without a dose."""
    found = []
    for factor in (1.0, dose):
        torch.manual_seed(0)
        net = SkipUnet("resnet18", skip_gradient=[1, factor, 1, 1], weights=None).eval().double()
        found.append(numbers(step(net, torch.randn(2, 3, 64, 64).double(), routes=True)))
    whole, dosed = found
    assert dosed["level2", "skip_norm"] == pytest.approx(dose * whole["level2", "skip_norm"])
    assert dosed["level2", "deep_norm"] == pytest.approx(whole["level2", "deep_norm"])
    for block in ("stem", "encoder1"):
        assert dosed[block, "norm_level2"] == pytest.approx(dose * whole[block, "norm_level2"])
        for other in ("level3", "level4", "bottleneck"):
            assert dosed[block, f"norm_{other}"] == pytest.approx(whole[block, f"norm_{other}"])


def test_auxiliary_heads_are_an_exit_of_their_own():
    """Their loss enters the encoder by the heads alone: its term is the gradient of that loss without any other."""
    net, images = example("resnet18", MIXED)
    net, images = net.double(), images.double()
    heads = AuxiliaryHeads(net.encoder.out_channels, classes=1).double()

    def losses() -> tuple[Tensor, Tensor]:
        features = net.encoder(images)
        return loss_of(net.decode(features), images), sum(loss_of(x, images) for x in heads(features, (64, 64)))

    readings = {}
    for supervised in (False, True):
        net.zero_grad()
        with GradientFlow(net, routes=True, auxiliary=heads) as flow:
            main, auxiliary = losses()
            (main + supervised * auxiliary).backward()
        readings[supervised] = numbers(flow)
    main, auxiliary = losses()
    for block, weights in blocks_of(net).items():
        if not block.startswith(("stem", "encoder")):
            continue
        whole, by_heads = (
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)]
            )
            for loss in (main + auxiliary, auxiliary)
        )
        found, unsupervised = ({name: v for (b, name), v in readings[x].items() if b == block} for x in (True, False))
        if block == "encoder4":
            assert "share_auxiliary" not in found, "no head lies below the last stage"
        else:
            assert found["norm_auxiliary"] == pytest.approx(float(by_heads.norm()), rel=1e-9)
            assert found["share_auxiliary"] == pytest.approx(float(by_heads @ whole / (whole @ whole)), rel=1e-9)
        assert sum(v for name, v in found.items() if name.startswith("share_")) == pytest.approx(1)
        for exit_ in (name for name in EXITS if f"norm_{name}" in unsupervised):
            assert found[f"norm_{exit_}"] == pytest.approx(unsupervised[f"norm_{exit_}"], rel=1e-9), exit_
