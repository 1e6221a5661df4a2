"""GradientFlow: exact splits, hand-computed on a toy and against float64; reading changes nothing."""

import contextlib
import copy
import gc
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
    TOY_RMS,
    TOY_WEIGHTS,
    Scale,
    Toy,
    ToyBlock,
    ToyEncoder,
    X,
    assert_close,
    example,
    loss_of,
    metric,
    numbers,
    one_thread,  # noqa: F401 (a fixture that every test uses)
    step,
    step_in_halves,
    toy_step,
)
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.utils.checkpoint import checkpoint

from unetseg.gradients import GradientFlow, blocks_of
from unetseg.model import Segmenter, SkipUnet
from unetseg.model.skips import Add, NoSkip
from unetseg.names import DENSENETS, LEVELS, RESNETS

BLOCKS = ["stem", *(f"encoder{i}" for i in range(1, 5)), *(f"decoder{i}" for i in range(4, -1, -1)), "head"]


# --- worked out by hand


def test_every_number_of_the_toy_is_the_one_worked_out_by_hand():
    flow = toy_step(Toy(), lr=1 / 16)
    logs = [math.log10(value) for value in TOY_RMS.values()]
    slope = sum((index - 3) * log for index, log in enumerate(logs)) / (2 * (9 + 4 + 1))
    assert numbers(flow) == pytest.approx(
        {("level1", "skip_share"): 1 / 7, ("level1", "deep_share"): 6 / 7}
        | {("level1", "norm"): 14, ("level1", "skip_norm"): 2, ("level1", "deep_norm"): 12}
        | {("level2", "skip_share"): 1 / 4, ("level2", "deep_share"): 3 / 4}
        | {("level2", "norm"): 4, ("level2", "skip_norm"): 1, ("level2", "deep_norm"): 3}
        | {(f"level{level}", "cosine"): 1 for level in (1, 2)}
        | {(f"level{level}", name): 0 for level in (1, 2) for name in ("vanished", "frozen")}
        | {(block, "rms"): value for block, value in TOY_RMS.items()}
        | {(block, "update_ratio"): TOY_RMS[block] / 16 / weight for block, weight in TOY_WEIGHTS.items()}
        | {(block, name): 0 for block in TOY_RMS for name in ("stalled", "zero", "nan", "inf", "frozen")}
        | {("all", "vanishing_slope"): slope, ("all", "centre_dip"): math.log10(3 / math.sqrt(28 * 3.5))},
        rel=1e-12,
    )


@pytest.mark.parametrize("derivative", [3.0, 0.5, -3.0])
def test_an_addition_splits_as_in_a_resnet(derivative):
    """With H = F(x) + x, dL/dx = dL/dH (dF/dx + 1): the skip's part is 1, the deep path's dF/dx."""
    found = numbers(toy_step(Toy(c=derivative), lr=0))
    assert found["level2", "skip_share"] == pytest.approx(1 / (derivative + 1))
    assert found["level2", "deep_share"] == pytest.approx(derivative / (derivative + 1))
    assert found["level2", "norm"] == pytest.approx(abs(derivative + 1))  # dL/dH = 1
    assert found["level2", "cosine"] == math.copysign(1, derivative)
    # The short skip of the encoder, e2 = 2 e1 + e1, is the same inside the deep path of level 1.
    assert found["level1", "deep_norm"] == pytest.approx(abs(derivative + 1) * (2 + 1))


def test_a_gradient_of_zero_has_no_split_and_is_said_to_have_vanished():
    found = numbers(toy_step(Toy(c=-1), lr=0))
    assert [found["level2", name] for name in ("norm", "skip_norm", "deep_norm")] == [0, 1, 1]
    assert math.isnan(found["level2", "skip_share"])
    assert math.isnan(found["level2", "deep_share"])
    assert (found["level2", "vanished"], found["level2", "frozen"], found["level1", "vanished"]) == (1, 0, 0)


def test_a_path_that_gives_nothing_has_no_angle():
    found = numbers(toy_step(Toy(c=0), lr=0))
    assert (found["level2", "skip_share"], found["level2", "deep_norm"]) == (1, 0)
    assert math.isnan(found["level2", "cosine"])


def test_stalled_weights_are_those_whose_update_is_below_the_number_format():
    """bfloat16 has 8 significant bits: the number below 2^k is 2^(k - 8) away, half of that is the limit."""
    flow = toy_step(Toy().bfloat16(), lr=2**-10)
    # The updates, lr rms, against the limits at w, in units of 2^-10: stem 28 > 1, encoder1 4 = 4 (a tie, which goes
    # to the even 2), encoder2 3 < 8, decoder2 24 > 1, decoder1 7 > 4, decoder0 56 > 0.5, head 3.5 < 8.
    wanted = {block: float(block in ("encoder1", "encoder2", "head")) for block in TOY_RMS}
    assert metric(flow, "stalled", "block") == wanted
    ratios = metric(flow, "update_ratio", "block")
    assert {block: float(ratio == 0) for block, ratio in ratios.items()} == wanted
    assert set(metric(toy_step(Toy(), lr=2**-10), "stalled", "block").values()) == {0}  # float32 has 24


def test_stalled_is_a_share_and_the_update_is_that_of_the_step_taken():
    net, images = example()
    head = net.segmentation_head[0]
    before = math.sqrt(sum(float(w.detach().double().square().sum()) for w in head.parameters()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with GradientFlow(net) as flow:
        loss_of(net(images), images).backward()
        head.bias.grad.zero_()
        head.weight.grad.zero_()[0, :9, 0, 0] = 1
        optimizer.step()
    found = numbers(flow)
    assert found["head", "stalled"] == pytest.approx(1 - 9 / (16 * 3 * 3 + 1))
    assert found["head", "update_ratio"] == pytest.approx(0.5 * 3 / before, rel=1e-6)
    assert found["head", "rms"] == pytest.approx(3 / math.sqrt(16 * 3 * 3 + 1))


def test_slope_and_dip_are_those_of_the_logarithm():
    toy = Toy()
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
        for power, weights in zip((-6, -5, -9, 0, -3, -2, -1), blocks_of(toy).values(), strict=True):
            weights[0].grad.fill_(math.nan if power == 0 else 0 if power == -9 else 10.0**power)
        flow.gradients()
    found = numbers(flow)
    # the nan at depth 3 and the 0 at depth 2 leave the line through 10^(depth - 6 ... -1)
    depths, logs = (0, 1, 4, 5, 6), (-6, -5, -3, -2, -1)
    mean = sum(depths) / 5
    slope = sum((d - mean) * y for d, y in zip(depths, logs, strict=True)) / sum((d - mean) ** 2 for d in depths)
    assert found["all", "vanishing_slope"] == pytest.approx(slope, rel=1e-6)
    assert found["all", "centre_dip"] == -math.inf
    assert (found["decoder2", "nan"], found["encoder2", "rms"]) == (1, 0)


# --- exact on real nets


def reference(net: SkipUnet, images: Tensor, dtype: torch.dtype = torch.float64) -> dict[tuple[str, str], float]:
    """Split by two autograd.grad calls for each level: cut from the encoder, and cut from the skip."""
    net, images = copy.deepcopy(net).to(dtype), images.to(dtype)
    features, found = net.encoder(images), {}
    for level in range(1, LEVELS + 1):

        def by(handed_on: Tensor, level: int = level) -> Tensor:
            inputs = [*features[:level], handed_on, *features[level + 1 :]]
            return loss_of(net.segmentation_head(net.decoder(inputs)), images)

        leaf = features[level].detach().requires_grad_()
        skip = torch.autograd.grad(by(leaf), leaf, retain_graph=True, materialize_grads=True)[0].flatten()
        deep = torch.autograd.grad(by(leaf.detach()), features[level], retain_graph=True)[0].flatten()
        both = skip + deep
        values = {"skip_share": skip @ both / (both @ both), "deep_share": deep @ both / (both @ both)}
        values |= {"norm": both.norm(), "skip_norm": skip.norm(), "deep_norm": deep.norm()}
        values |= {"cosine": skip @ deep / (skip.norm() * deep.norm())}
        found |= {(f"level{level}", name): float(value) for name, value in values.items()}
    loss_of(net(images), images).backward()
    for block, weights in blocks_of(net).items():
        gradient = torch.cat([w.grad.flatten() for w in weights])
        found[block, "rms"] = float(gradient.square().mean().sqrt())
    return found


def read(net: SkipUnet, images: Tensor) -> dict[tuple[str, str], float]:
    """Take a step, and return what GradientFlow read in it."""
    return numbers(step(net, images))


def in_float32(net: SkipUnet, images: Tensor) -> dict[tuple[str, str], float]:
    return reference(net, images, torch.float32)


def errors(net: SkipUnet, images: Tensor, measure=read) -> dict[tuple[str, str], float]:
    """Return relative errors (of the cosine absolute ones, it may be near zero) against the reference."""
    wanted, found = reference(net, images), measure(net, images)
    assert {key for key in found if key[1] in ("skip_share", "norm", "rms")} <= wanted.keys()
    exact = {key: value for key, value in wanted.items() if value == 0 or math.isnan(value)}
    assert_close({key: found[key] for key in exact}, exact, 0)
    size = {key: 1 if key[1] == "cosine" else abs(value) for key, value in wanted.items() if key not in exact}
    return {key: abs(found[key] - wanted[key]) / size[key] for key in size}


@pytest.mark.parametrize(
    ("encoder", "skip"),
    [("resnet18", "concat"), ("densenet121", "add"), ("tu-test_resnet", "add"), ("tu-test_resnet", MIXED)],
    ids=str,
)
def test_float32_is_as_near_to_two_separate_gradients_in_float64_as_its_own_rounding_allows(encoder, skip):
    """Some CPUs round a densenet's float32 gradients by more than 1e-4; then autograd's own are as far away."""
    net, images = example(encoder, skip)
    unavoidable = max(errors(net, images, in_float32).values())
    assert max(errors(net, images).values()) < max(1e-4, 2 * unavoidable)
    assert unavoidable < 1e-3


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_with_batch_statistics_the_split_is_exact_as_well(encoder):
    """In float64: a float32 net in training mode is itself 1e-3 away (ReLUs flip, 8 values make a statistic)."""
    net, images = example(encoder, MIXED)
    assert max(errors(net.train().double(), images.double()).values()) < 1e-9


@pytest.mark.parametrize("skip", ["concat", "add", "none"])
def test_shares_sum_to_1_and_none_has_share_0(skip):
    net, images = example("resnet18", skip)
    found = numbers(step(net.train(), images))
    for level, kind in enumerate(net.skip, start=1):
        assert found[f"level{level}", "skip_share"] + found[f"level{level}", "deep_share"] == pytest.approx(1, abs=1e-9)
        assert (found[f"level{level}", "skip_share"] == found[f"level{level}", "skip_norm"] == 0) == (kind == "none")


def test_the_memory_layout_makes_no_difference():
    net, images = example("resnet18", MIXED)
    net, images = net.double(), images.double()
    wanted = numbers(step(net, images, lr=0))
    net = net.to(memory_format=torch.channels_last)
    assert_close(numbers(step(net, images.to(memory_format=torch.channels_last), lr=0)), wanted, 1e-9)


def test_gradients_too_small_to_be_squared_in_float32_are_measured():
    net, images = example()
    wanted = numbers(step(net, images, lr=0))
    net.zero_grad()
    with GradientFlow(net) as flow:
        (loss_of(net(images), images) * 2**-90).backward()
    found = numbers(flow)
    assert found["level1", "norm"] * 2**90 == pytest.approx(wanted["level1", "norm"], rel=1e-3)
    assert found["level1", "skip_share"] == pytest.approx(wanted["level1", "skip_share"], rel=1e-3)
    assert found["stem", "rms"] * 2**90 == pytest.approx(wanted["stem", "rms"], rel=1e-3)


# --- other encoder-decoders


@pytest.mark.parametrize("architecture", ["UnetPlusPlus", "MAnet", "Linknet", "FPN", "DeepLabV3Plus"])
def test_other_decoders_are_read_as_exactly(architecture):
    torch.manual_seed(0)
    net = getattr(smp, architecture)("resnet18", encoder_weights=None).eval().double()
    images = torch.randn(2, 3, 32, 32).double()
    assert max(errors(net, images).values()) < 1e-9
    unused = {"FPN": [1], "DeepLabV3Plus": [1, 3, 4]}.get(architecture, [])
    shares = metric(step(net, images), "skip_share", "skip")
    assert [level for level in range(1, 5) if shares[f"level{level}"] == 0] == unused


def test_a_transformer_has_no_level_1_and_no_stem():
    torch.manual_seed(0)
    flow = step(smp.Unet("mit_b0", encoder_weights=None), torch.randn(2, 3, 32, 32))
    assert [*metric(flow, "skip_share", "skip")] == ["level2", "level3", "level4"]
    assert [*metric(flow, "rms", "block")][:5] == [*(f"encoder{i}" for i in range(1, 5)), "decoder4"]
    assert math.isfinite(metric(flow, "centre_dip", "net")["all"])


def test_another_head_is_a_block_of_its_own():
    net = smp.FPN("resnet18", encoder_weights=None, aux_params={"classes": 2})
    assert list(blocks_of(net))[-3:] == ["decoder", "head", "classification_head"]


def test_features_beside_the_encoders_own_path_have_no_skip_share_and_the_exits_of_the_others():
    class Copying(ToyEncoder):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [feature * 1 for feature in super().forward(images)]

    read = []
    for kind in (Copying, ToyEncoder):
        toy = Toy()
        toy.encoder = kind(0.5, 2, 3)
        with GradientFlow(toy, routes=True) as flow:
            toy(X).sum().backward()
        records = flow.read()
        read.append({(r.kind, r.block, r.metric): r.value for r in records if r.kind in ("exit", "block")})
        assert ("Copying are copies" in flow.no_shares) == (kind is Copying)
        assert ("skip" in {r.kind for r in records}) == (kind is ToyEncoder)
    assert any(kind == "exit" for kind, *_ in read[0])
    assert read[0] == pytest.approx(read[1], nan_ok=True)


def test_a_decoder_that_reads_a_first_feature_other_than_the_image_is_refused():
    """So does DPT's, whose transformer has four features of one stride; what they send back would have no level."""

    class NoImage(ToyEncoder):
        def forward(self, images: Tensor) -> list[Tensor]:
            first = self.conv1(images)
            second = self.layer1(first)
            return [first, second, self.layer2(second)]

    toy = Toy()
    toy.encoder = NoImage(0.5, 2, 3)
    toy.encoder.out_channels = [1, 1, 1]
    for fusions, is_refused in (([Add, NoSkip], False), ([Add, Add], True)):
        toy.decoder.blocks = nn.ModuleList(ToyBlock(fusion(1, 1), 1.0) for fusion in fusions)
        with GradientFlow(toy, routes=True) as flow:
            toy(X).sum().backward()
        with pytest.raises(RuntimeError, match="which is not the image") if is_refused else contextlib.nullcontext():
            flow.read()
        toy.zero_grad()


def test_a_decoder_that_takes_something_else_is_refused():
    class One(Toy):
        def forward(self, images: Tensor) -> Tensor:
            return self.decode(self.encoder(images)[-2:])

    toy = One()
    toy.decoder.blocks = toy.decoder.blocks[:1]
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
    with pytest.raises(RuntimeError, match="ToyDecoder was not given"):
        flow.read()


# --- reading changes nothing


@pytest.mark.parametrize("skip", ["concat", "add"])
@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_the_trained_weights_are_bit_identical_with_and_without_reading(encoder, skip):
    trained = []
    for read in (False, True):
        torch.manual_seed(0)
        model = Segmenter(classes=2, encoder=encoder, skip=skip, weights=None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        flow = GradientFlow(model)
        for _ in range(3):
            images = torch.rand(2, 3, 64, 64) * 255
            if read:
                flow.__enter__()
            optimizer.zero_grad()
            loss_of(model(images), images - 128).backward()
            optimizer.step()
            if read:
                flow.__exit__(None)
                assert all(math.isfinite(value) for (_, name), value in numbers(flow).items() if name != "cosine")
        trained.append(model.state_dict())
    assert all(torch.equal(without, trained[1][key]) for key, without in trained[0].items())


def test_hooks_exist_only_inside_the_block_even_after_an_error():
    net, images = example()

    def optimizer_hooks() -> int:
        return len(optimizers._global_optimizer_pre_hooks) + len(optimizers._global_optimizer_post_hooks)

    before = optimizer_hooks()

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())

    flow, inside = GradientFlow(net), 0
    with contextlib.suppress(KeyError), flow:
        loss_of(net(images), images).backward()
        inside = hooks()
        raise KeyError
    assert inside == 2  # of the decoder and the head
    assert (hooks(), optimizer_hooks()) == (0, before)
    with pytest.raises(RuntimeError, match="no gradient was seen"):
        flow.read()
    assert step(net, images).read()  # and the net can be read again


# --- one step, however it is computed


def test_micro_batches_add_up_to_the_numbers_of_the_big_batch():
    net, images = example(images=4)
    net, images = net.double(), images.double()
    wanted = numbers(step(copy.deepcopy(net), images))
    assert_close(numbers(step_in_halves(net, images)), wanted, 1e-9)


@pytest.mark.quick
def test_two_processes_give_the_numbers_of_one_on_the_joined_batch(tmp_path):
    net, images = example(skip=MIXED, images=4)
    wanted = numbers(step(net.double(), images.double()))
    with beside(save_half, tmp_path):
        found = numbers_of_half(0, tmp_path)
    assert_close(found, wanted, 1e-9)
    theirs = json.loads((tmp_path / "1.json").read_text())
    assert_close({(block, name): value for block, name, value in theirs}, wanted, 1e-9)


def save_half(folder: Path) -> None:
    """Write what the second of the two processes reads."""
    read = [(*key, value) for key, value in numbers_of_half(1, folder).items()]
    (folder / "1.json").write_text(json.dumps(read))


def numbers_of_half(rank: int, folder: Path) -> dict[tuple[str, str], float]:
    """Take the step of `step` on half of the batch, one of two processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=30)
    )
    try:
        net, images = example(skip=MIXED, images=4)
        parallel = nn.parallel.DistributedDataParallel(net.double())
        return numbers(step(parallel, images.double().chunk(2)[rank]))
    finally:
        torch.distributed.destroy_process_group()


def test_gradients_are_read_before_clipping_where_the_caller_says_so():
    wanted, found, late = {}, {}, {}
    for result, clipped, explicit in ((wanted, False, False), (found, True, True), (late, True, False)):
        net, images = example()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with GradientFlow(net) as flow:
            loss_of(net(images), images).backward()
            if explicit:
                flow.gradients()
            if clipped:
                nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
        result |= metric(flow, "rms", "block")
    assert found == wanted
    assert all(late[block] < wanted[block] for block in BLOCKS)


def test_a_closure_of_the_optimizer_can_read_what_the_optimizers_step_began_without():
    """Lightning accumulates so: the last micro-batch is computed after the optimizer's step has begun."""
    net, images = example(images=4)
    net, images = net.double(), images.double()
    wanted = numbers(step(copy.deepcopy(net), images))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def backward(part: Tensor) -> None:
        (loss_of(net(part), part) / 2).backward()

    def closure() -> None:
        backward(images[2:])
        flow.gradients()

    with GradientFlow(net) as flow:
        backward(images[:2])
        optimizer.step(torch.enable_grad()(closure))
    assert_close(numbers(flow), wanted, 1e-9)


def test_values_are_unscaled_under_a_gradient_scaler():
    plain, images = example()
    wanted = numbers(step(plain, images))
    net, images = example()
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with GradientFlow(net, scale=scaler.get_scale) as flow:
        scaler.scale(loss_of(net(images), images)).backward()
        scaler.step(optimizer)  # unscales first
        scaler.update(new_scale=1.0)
    assert_close(numbers(flow), wanted, 1e-4)


def test_bfloat16_autocast_is_close_to_float32():
    net, images = example()
    wanted = numbers(step(net, images, lr=0))
    net.zero_grad()
    with GradientFlow(net) as flow:
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        loss_of(logits.float(), images).backward()
    found = numbers(flow)
    for level in range(1, LEVELS + 1):
        assert found[f"level{level}", "skip_share"] == pytest.approx(wanted[f"level{level}", "skip_share"], abs=0.03)
        assert found[f"level{level}", "norm"] == pytest.approx(wanted[f"level{level}", "norm"], rel=0.05)
    assert found["stem", "rms"] == pytest.approx(wanted["stem", "rms"], rel=0.05)


def test_evaluation_inside_the_block_is_ignored():
    net, images = example()
    wanted = numbers(step(copy.deepcopy(net), images))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with GradientFlow(net) as flow:
        with torch.no_grad():
            net(images)
        loss_of(net(images), images).backward()
        with torch.inference_mode():
            net(images)
        optimizer.step()
    assert_close(numbers(flow), wanted, 0)


def test_the_step_of_another_optimizer_is_not_taken_for_the_nets():
    net, images = example()
    other = nn.Parameter(torch.ones(1))
    other.grad = torch.ones(1)
    with GradientFlow(net) as flow:
        loss_of(net(images), images).backward()
        torch.optim.SGD([other]).step()
        net.segmentation_head[0].bias.grad.fill_(7)
    found = numbers(flow)
    assert found["head", "rms"] > 7 / math.sqrt(16 * 3 * 3 + 1)  # read at the block's end
    assert all(math.isnan(found[block, name]) for block in BLOCKS for name in ("stalled", "update_ratio"))


# --- which backward passes make the step's gradient


def by_hand(flow: GradientFlow) -> dict[tuple[str, str], float]:
    """Return the split of the toy's two levels as read."""
    metrics = ("skip_share", "norm", "skip_norm", "deep_norm")
    return {key: value for key, value in numbers(flow).items() if key[0].startswith("level") and key[1] in metrics}


def toy_split(factor: float = 1) -> dict[tuple[str, str], float]:
    """Return the split of the toy's two levels, see above, for a loss of `factor` times its output."""
    shares = {("level1", "skip_share"): 1 / 7, ("level2", "skip_share"): 1 / 4}
    norms = {("level1", "norm"): 14, ("level1", "skip_norm"): 2, ("level1", "deep_norm"): 12}
    norms |= {("level2", "norm"): 4, ("level2", "skip_norm"): 1, ("level2", "deep_norm"): 3}
    return shares | {key: factor * norm for key, norm in norms.items()}


def test_two_backward_passes_over_one_forward_pass_are_summed_before_they_are_squared():
    toy = Toy()
    with GradientFlow(toy) as flow:
        y = toy(X).sum()
        (5 * y).backward(retain_graph=True)
        (-3 * y).backward()
    assert by_hand(flow) == pytest.approx(toy_split(2))
    assert numbers(flow)["stem", "rms"] == pytest.approx(2 * TOY_RMS["stem"])
    toy.zero_grad()
    with GradientFlow(toy) as flow:
        y = toy(X).sum()
        y.backward(retain_graph=True)
        (-y).backward()
    assert numbers(flow)["level1", "vanished"] == 1


@pytest.mark.quick
def test_passes_of_different_losses_are_as_exact_as_one_pass_of_their_sum():
    net, images = example(skip=MIXED)
    net, images = net.double(), images.double()
    wanted = reference(net, images)
    with GradientFlow(net) as flow:
        logits = net(images)
        other = logits.square().mean()
        loss = loss_of(logits, images)
        (loss - 2 * other).backward(retain_graph=True)
        other.backward(retain_graph=True)
        other.backward()
    found = numbers(flow)
    assert_close({key: found[key] for key in wanted}, wanted, 1e-9)


def test_forward_passes_that_share_a_backward_pass_are_the_joined_batch():
    net, images = example(images=4)
    net, images = net.double(), images.double()
    wanted = numbers(step(net, images, lr=0))
    net.zero_grad()
    with GradientFlow(net) as flow:
        losses = []
        for part in images.split(2):
            losses.append(loss_of(net(part), part) / 2)
            with torch.no_grad():
                net(part)
        sum(losses).backward()
        torch.optim.SGD(net.parameters(), lr=0).step()
    assert_close(numbers(flow), wanted, 1e-9)


def test_features_that_are_decoded_twice_have_one_gradient():
    toy = Toy()
    with GradientFlow(toy) as flow:
        features = toy.encoder(X)
        (toy.decode(features) + toy.decode(features)).sum().backward()
    assert by_hand(flow) == pytest.approx(toy_split(2))


@pytest.mark.parametrize("to_none", [True, False])
def test_what_was_zeroed_before_the_last_pass_does_not_count(to_none):
    toy = Toy()
    with GradientFlow(toy) as flow:
        y = toy(X).sum()
        (10 * y).backward(retain_graph=True)
        toy.zero_grad(set_to_none=to_none)
        y.backward()
    assert by_hand(flow) == pytest.approx(toy_split())
    assert metric(flow, "rms", "block") == pytest.approx(TOY_RMS)


def test_zeroed_at_the_end_of_the_loop_the_step_before_is_the_one_that_is_read():
    toy = Toy()
    optimizer = torch.optim.SGD(toy.parameters(), lr=0)
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert by_hand(flow) == pytest.approx(toy_split())
    assert metric(flow, "rms", "block") == pytest.approx(TOY_RMS)


def test_zeroed_without_a_step_the_gradients_are_read_as_well():
    """A GradScaler leaves steps out; and in a closure's step the gradients come after the step has begun."""
    toy = Toy()
    with GradientFlow(toy, routes=True) as flow:
        toy(X).sum().backward()
        toy.zero_grad()
    assert metric(flow, "rms", "block") == pytest.approx(TOY_RMS)
    assert metric(flow, "share_bottleneck", "exit")["stem"] == pytest.approx(18 / 28)


def test_gradients_from_before_the_block_are_refused_unless_they_are_zeroed():
    """They are in the weights' gradients, and their passes were not seen."""
    toy = Toy()
    toy(X).sum().backward()
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
    with pytest.raises(RuntimeError, match="had gradients before the first backward pass"):
        flow.read()
    with GradientFlow(toy) as flow:
        y = toy(X).sum()
        torch.autograd.grad(y, list(toy.parameters()), retain_graph=True)
        toy.zero_grad(set_to_none=False)
        y.backward()
    assert metric(flow, "rms", "block") == pytest.approx(TOY_RMS)


def ascend(toy: Toy, sign: int = 1) -> None:
    """Add 1 to the weight c of the toy, or take it away again."""
    with torch.no_grad():
        toy.encoder.layer2.weight += sign


class SharpnessAware(torch.optim.SGD):
    """Foret et al. 2021 with a closure: the gradient of the step is that of its second pass."""

    def step(self, closure):
        closure = torch.enable_grad()(closure)
        closure()
        ascend(self.toy)
        self.zero_grad()
        closure()
        ascend(self.toy, -1)
        super().step()


@pytest.mark.parametrize("way", ["two passes", "closure", "autograd.grad"])
def test_of_a_sharpness_aware_step_the_second_pass_is_read(way):
    wanted = toy_step(Toy(c=4), lr=0)
    toy = Toy()
    if way == "closure":
        optimizer = SharpnessAware(toy.parameters(), lr=0)
        optimizer.toy = toy
    else:
        optimizer = torch.optim.SGD(toy.parameters(), lr=0)
    with GradientFlow(toy) as flow:
        if way == "closure":
            optimizer.step(lambda: toy(X).sum().backward())
        else:
            if way == "autograd.grad":
                torch.autograd.grad(toy(X).sum(), list(toy.parameters()))
            else:
                toy(X).sum().backward()
            ascend(toy)
            optimizer.zero_grad()
            toy(X).sum().backward()
            ascend(toy, -1)
            optimizer.step()
    assert by_hand(flow) == by_hand(wanted)
    assert metric(flow, "rms", "block") == metric(wanted, "rms", "block")


def test_gradients_that_reach_no_weight_are_not_counted():
    """Those of an adversarial example, before the step and between two passes of it."""
    toy = Toy()
    with GradientFlow(toy) as flow:
        for _ in range(2):
            image = X.clone().requires_grad_()
            torch.autograd.grad(10 * toy(image).sum(), image)
            toy(image.detach() + 1).sum().backward()
        toy(X.clone().requires_grad_()).sum().backward(inputs=[image])
    shares = toy_split()
    assert by_hand(flow) == pytest.approx(
        {k: v if k[1] == "skip_share" else math.sqrt(2) * v for k, v in shares.items()}
    )


def test_a_gradient_of_the_image_makes_no_frozen_encoder_trained():
    toy = Toy()
    toy.encoder.requires_grad_(False)
    with GradientFlow(toy) as flow:
        toy(X.clone().requires_grad_()).sum().backward()
    assert set(metric(flow, "frozen", "skip").values()) == {1}


class Product(Add):
    """The product of both, whose gradient depends on either."""

    def fuse(self, deep: Tensor, skip: Tensor) -> Tensor:
        return deep * skip


def test_nor_does_it_where_the_encoder_has_no_stem():
    """As in transformers: encoder1 ends at level 2, and what is trained behind that has no part in it."""

    class NoStem(ToyEncoder):
        def forward(self, images: Tensor) -> list[Tensor]:
            second = self.layer1(images)
            return [images, images[:, :0], second, self.layer2(second)]

    toy = Toy()
    toy.encoder = NoStem(1, 2, 3)
    del toy.encoder.conv1
    toy.encoder.out_channels = [1, 0, 1, 1]
    toy.encoder.layer1.requires_grad_(False)
    toy.decoder.blocks = nn.ModuleList(ToyBlock(fusion(1, 1), 1.0) for fusion in (Add, NoSkip, NoSkip))
    with GradientFlow(toy) as flow:
        toy(X.clone().requires_grad_()).sum().backward()
    assert metric(flow, "frozen", "skip") == {"level2": 1}


def test_a_gradient_penalty_is_part_of_the_loss():
    """Y = K e3 s2 s1 with K = h r q p = 1, and the loss is y + dy/dx.

    dy/dx = a (e3 s2 + (b + 1) (e3 s1 + c s2 s1)), so at e = s = (1, 3, 9) dL/ds1 = 27 + 0.5 * 3 * (9 + 3 * 3) = 54,
    dL/ds2 = 9 + 0.5 * (9 + 3 * 3) = 18 and dL/de3 = 3 + 0.5 * (3 + 3) = 6; then dL/de2 = 18 + 3 * 6, which times 3 and
    with 54 is dL/de1.
    """
    toy = Toy()
    for block in toy.decoder.blocks[:-1]:
        block.fusion = Product(1, 1)
    with GradientFlow(toy) as flow:
        image = X.clone().requires_grad_()
        y = toy(image).sum()
        (slope,) = torch.autograd.grad(y, image, create_graph=True)
        (y + slope.sum()).backward()
    found = numbers(flow)
    assert [found["level1", name] for name in ("skip_norm", "deep_norm", "norm")] == pytest.approx([54, 108, 162])
    assert [found["level2", name] for name in ("skip_norm", "deep_norm", "norm")] == pytest.approx([18, 18, 36])


def test_a_gradient_penalty_in_every_micro_batch_and_in_a_pass_of_its_own_is_read():
    """The toy's slope does not depend on its features, only on its weights: dL/de is that of the output."""
    toy = Toy()
    with GradientFlow(toy) as flow:
        for _ in range(2):
            image = X.clone().requires_grad_()
            y = toy(image).sum()
            (slope,) = torch.autograd.grad(y, image, create_graph=True)
            slope.sum().backward(retain_graph=True)
            y.backward()
    assert by_hand(flow) == pytest.approx(
        {key: value * (1 if key[1] == "skip_share" else math.sqrt(2)) for key, value in toy_split().items()}
    )
    slopes = {block: 7 / weight for block, weight in TOY_WEIGHTS.items()}  # dy/dx = 7 is a product of parts
    assert metric(flow, "rms", "block")["head"] == pytest.approx(2 * (TOY_RMS["head"] + slopes["head"]))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("part", ["blocks", "decoder", "stages", "net", "blocks and stages"])
def test_recomputation_changes_nothing(part, reentrant):
    toy, image = Toy(), X.clone().requires_grad_()
    again = partial(checkpoint, use_reentrant=reentrant)
    if part == "net":
        toy.forward = partial(again, toy.forward)
    if part == "decoder":
        # copies of a list's tensors are not made: what the checkpoint takes has to be tensors
        decode = toy.decoder.forward
        toy.decoder.forward = lambda features: again(lambda *copies: decode(copies), *features)
    for module in (*toy.decoder.blocks, toy.encoder.layer1, toy.encoder.layer2):
        if ("stages" if "layer" in str(module) or isinstance(module, Scale) else "blocks") in part:
            module.forward = partial(again, module.forward)
    with GradientFlow(toy) as flow:
        toy(image).sum().backward()
    assert by_hand(flow) == pytest.approx(toy_split())
    assert metric(flow, "rms", "block") == pytest.approx(TOY_RMS)


def test_recomputation_around_the_decoders_hooks_is_right_or_refused():
    for reentrant in (False, True):
        toy = Toy()
        with GradientFlow(toy) as flow:
            features = toy.encoder(X)
            checkpoint(lambda *copies, toy=toy: toy.decode(copies), *features, use_reentrant=reentrant).sum().backward()
        if reentrant:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                flow.read()
        else:
            assert by_hand(flow) == pytest.approx(toy_split())


def test_gradients_that_no_backward_pass_has_left_are_refused():
    toy = Toy()
    with GradientFlow(toy) as flow:  # as functional code trains
        for w, gradient in zip(toy.parameters(), torch.autograd.grad(toy(X).sum(), toy.parameters()), strict=True):
            w.grad = gradient
        torch.optim.SGD(toy.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match=r"torch\.autograd\.grad"):
        flow.read()


@pytest.mark.parametrize("way", ["sum of two tasks", "autograd.grad after zero_grad"])
def test_gradients_put_into_the_weights_by_hand_are_refused(way):
    toy = Toy()
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
        if way == "sum of two tasks":
            first = [w.grad for w in toy.parameters()]
            toy.zero_grad()
            toy(X).sum().backward()
            by_hand = [w.grad + gradient for w, gradient in zip(toy.parameters(), first, strict=True)]
        else:
            toy.zero_grad()
            by_hand = torch.autograd.grad(toy(X).sum(), toy.parameters())
        for w, gradient in zip(toy.parameters(), by_hand, strict=True):
            w.grad = gradient
        torch.optim.SGD(toy.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="by hand"):
        flow.read()


def test_gradients_changed_between_two_passes_are_refused():
    def clip(toy: Toy) -> None:
        nn.utils.clip_grad_norm_(toy.parameters(), 1e-3)

    def zero_a_part(toy: Toy) -> None:
        toy.encoder.conv1.zero_grad()

    for change in (clip, zero_a_part):
        toy = Toy()
        with GradientFlow(toy) as flow:
            toy(X).sum().backward()
            change(toy)
            toy(X).sum().backward()
        with pytest.raises(RuntimeError, match="between two backward passes"):
            flow.read()


def test_the_memory_of_a_reading_does_not_grow_with_the_micro_batches():
    toy, image = Toy(), torch.ones(1, 1, 7, 11)

    def held(batches: int) -> int:
        with GradientFlow(toy):
            for _ in range(batches):
                loss = toy(image).sum()
                loss.backward()
            return sum(type(o) is Tensor and o.shape == image.shape for o in gc.get_objects())

    assert held(9) == held(2)


# --- said, not hidden


def test_a_frozen_encoder_is_said_to_be_frozen_and_not_to_have_vanished():
    net, images = example()
    net.encoder.requires_grad_(False)
    flow = step(net, images)
    found = numbers(flow)
    assert metric(flow, "frozen", "block") == {b: float(b == "stem" or b.startswith("encoder")) for b in BLOCKS}
    assert set(metric(flow, "frozen", "skip").values()) == {1}
    assert set(metric(flow, "vanished", "skip").values()) == {0}
    for name in ("skip_share", "deep_share", "norm", "skip_norm", "deep_norm", "cosine"):
        assert all(math.isnan(value) for value in metric(flow, name, "skip").values())
    for name in ("rms", "update_ratio", "stalled"):
        assert all(math.isnan(found[block, name]) for block in BLOCKS[:5])
        assert all(math.isfinite(found[block, name]) for block in BLOCKS[5:])
    assert math.isfinite(found["all", "vanishing_slope"])
    assert math.isnan(found["all", "centre_dip"])


def test_of_a_partly_frozen_net_the_trainable_part_is_measured():
    net, images = example("resnet18", "add")
    whole, images = copy.deepcopy(net), images
    net.encoder.conv1.requires_grad_(False)
    net.encoder.bn1.requires_grad_(False)
    net.encoder.layer1.requires_grad_(False)[1].bn2.requires_grad_(True)
    found = numbers(step(net, images))
    last = net.encoder.layer1[1].bn2
    gradient = torch.cat([last.weight.grad, last.bias.grad])
    assert found["encoder1", "rms"] == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-5)
    assert [found[f"level{level}", "frozen"] for level in range(1, 5)] == [1, 0, 0, 0]
    wanted = numbers(step(whole, images))
    kept = {key: value for key, value in wanted.items() if key[0] in ("level2", "level3", "level4", "encoder2", "head")}
    assert_close({key: found[key] for key in kept}, kept, 1e-6)


def test_nan_and_inf_are_counted_and_shown():
    net, images = example()
    with GradientFlow(net) as flow:
        loss_of(net(images), images).backward()
        net.segmentation_head[0].weight.grad.flatten()[:5] = math.nan
        net.decoder.blocks[0].conv1[0].weight.grad.flatten()[:3] = -math.inf
        flow.gradients()
    found = numbers(flow)
    assert metric(flow, "nan", "block") == {block: 5.0 * (block == "head") for block in BLOCKS}
    assert metric(flow, "inf", "block") == {block: 3.0 * (block == "decoder4") for block in BLOCKS}
    assert math.isnan(found["head", "rms"])
    assert found["decoder4", "rms"] == math.inf
    assert math.isfinite(found["all", "vanishing_slope"])  # of the other blocks


def test_a_level_whose_gradient_is_nan_is_nan_and_neither_frozen_nor_vanished():
    net, images = example()
    with GradientFlow(net) as flow:
        (loss_of(net(images), images) * math.nan).backward()
    for name in ("skip_share", "deep_share", "norm", "skip_norm", "deep_norm", "cosine"):
        assert all(math.isnan(value) for value in metric(flow, name, "skip").values())
    assert set(metric(flow, "frozen", "skip").values()) == set(metric(flow, "vanished", "skip").values()) == {0}


def test_a_weight_without_a_gradient_counts_as_zero():
    net, images = example()
    with GradientFlow(net) as flow:
        loss_of(net(images), images).backward()
        net.segmentation_head[0].weight.grad = None
        net.segmentation_head[0].bias.grad.fill_(29)
    assert numbers(flow)["head", "rms"] == pytest.approx(29 / math.sqrt(16 * 3 * 3 + 1))


# --- errors say what to do


def test_reading_without_forward_or_backward_pass_says_what_to_do():
    net, images = example()
    with GradientFlow(net) as nothing:
        pass
    with torch.no_grad(), GradientFlow(net) as evaluated:
        net(images)
    with GradientFlow(net) as forward:
        loss = loss_of(net(images), images)
    outside = net(images)
    with GradientFlow(net) as backward:
        loss_of(outside, images).backward()
    loss.backward()  # too late
    with GradientFlow(net) as inside:
        loss_of(net(images), images).backward()
        with pytest.raises(RuntimeError, match=r"read\(\) after it"):
            inside.read()
    for flow in (GradientFlow(net), nothing, evaluated, forward, backward):
        with pytest.raises(RuntimeError, match=r"call net\(images\).* and loss.backward\(\) inside"):
            flow.read()
    with pytest.raises(RuntimeError, match="belongs into"):
        inside.gradients()


@pytest.mark.parametrize("way", ["function", "in_place", "inside"])
def test_a_compiled_net_is_read_as_exactly_and_stays_compiled(way):
    net, images = example()
    wanted = numbers(step(copy.deepcopy(net), images))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if way == "in_place":
        module = net
        net.compile(backend=backend)
    else:
        compiled = torch.compile(net, backend=backend)
        module = compiled if way == "function" else nn.Sequential(compiled)
    with torch.no_grad():
        module(images)
    assert len(graphs) == 1
    assert numbers(step(module, images)) == wanted
    assert len(graphs) == 1, "the step that was read was compiled"
    module(images)
    assert len(graphs) == 2, "the step after it was not"


@pytest.mark.parametrize("warm", [False, True])
def test_a_net_whose_wrapper_is_compiled_is_read_as_exactly(warm):
    torch._dynamo.reset()
    toy = Toy()
    fast = torch.compile(toy, backend="eager")
    if warm:
        fast(X).sum().backward()
        toy.zero_grad()
    for _ in range(2):
        with GradientFlow(toy) as flow:
            fast(X).sum().backward()
        assert by_hand(flow) == pytest.approx(toy_split())
        toy.zero_grad()
        fast(X).sum().backward()
        toy.zero_grad()


def test_a_net_is_read_by_one_at_a_time():
    net, images = example()
    loss_of(net(images), images).backward()
    with GradientFlow(net), pytest.raises(RuntimeError, match="already"), GradientFlow(net):
        pass
    with GradientFlow(net):
        pass


def test_the_net_is_found_inside_another_module():
    model = Segmenter(classes=2, encoder="resnet18", weights=None)
    assert GradientFlow(model).net is GradientFlow(nn.Sequential(model)).net is model.net
    for module, count in ((nn.Linear(1, 1), 0), (nn.Sequential(model, example()[0]), 2)):
        with pytest.raises(ValueError, match=f"holds {count} encoder-decoders"):
            GradientFlow(module)


# --- blocks


@pytest.mark.parametrize("encoder", RESNETS + DENSENETS)
def test_every_parameter_is_in_exactly_one_block(encoder):
    with torch.device("meta"):
        net = SkipUnet(encoder, skip=MIXED, weights=None)
    blocks = blocks_of(net)
    assert list(blocks) == BLOCKS
    block_of = {id(weight): block for block, weights in blocks.items() for weight in weights}
    starts = {"stem": ("conv1.", "bn1.", "features.conv0.", "features.norm0."), "encoder4": ("features.norm5.",)}
    for i in range(1, 5):
        names = (f"layer{i}.", f"features.denseblock{i}.", f"features.transition{i}.")
        starts[f"encoder{i}"] = (*starts.get(f"encoder{i}", ()), *names)
    starts = {block: tuple(f"encoder.{name}" for name in names) for block, names in starts.items()}
    starts |= {f"decoder{4 - i}": (f"decoder.blocks.{i}.",) for i in range(5)} | {"head": ("segmentation_head.",)}
    for name, weight in net.named_parameters():
        assert [block for block in BLOCKS if name.startswith(starts[block])] == [block_of[id(weight)]], name
    assert sum(map(len, blocks.values())) == len(list(net.parameters()))


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_stages_that_a_net_of_less_depth_leaves_out_are_unused(encoder):
    """They are not starved of gradient: they are no part of the net."""
    blocks = list(blocks_of(smp.Unet(encoder, encoder_depth=3, encoder_weights=None, decoder_channels=(8, 8, 8))))
    assert blocks == ["stem", "encoder1", "encoder2", "unused", "decoder2", "decoder1", "decoder0", "head"]


def test_a_parameter_of_no_block_is_an_error():
    net, _ = example()
    net.temperature = nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match="in no block"):
        GradientFlow(net).__enter__()
