"""Two processes with half of a batch each do what one does with the whole batch.

The pair of processes (this one and one that is forked for it) runs every check below once; the tests
compare what each of the two found with one process on the joined batch.
"""

import json
import os
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, WIDTHS, Forked, beside
from test_devices import free_port
from test_losses import CASES as LOSSES
from test_losses import make_case
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from unetseg.gradients import GradientFlow
from unetseg.model import Segmenter
from unetseg.names import IGNORE
from unetseg.training.distributed import is_distributed, join_batch_norm, separate_batch_norm, sum_over_processes
from unetseg.training.losses import make_loss

MIXED = ["none", "concat", "add", "attention"]
SETTINGS = {
    "concat": {},
    "add": {"skip": "add"},
    "attention": {"skip": "attention"},
    "placebo": {"skip": "placebo"},
    "none": {"skip": "none"},
    "multiply, scse, respath": {"skip": ["multiply", "scse", "respath", "respath"]},
    "full": {"skip": "full"},
    "channel": {"skip": "channel"},
    "mixed": {"skip": MIXED, "skip_flow": ["both", "forward", "backward", "both"]},
    "forward": {"skip": MIXED, "skip_flow": "forward"},
    "backward": {"skip": MIXED[::-1], "skip_flow": "backward"},
    "no short skips": {"short_skips": False},
    "no normalisation": {"normalisation": "none"},
}
"""Of the skip grid, arguments of SkipUnet."""

FORMATS = {"float64": (torch.float64, 0.0), "far from 0": (torch.float32, 1000.0), "bfloat16": (torch.bfloat16, 0.0)}
"""Of the inputs to batch normalisation: dtype and mean."""


def mine(joined: Tensor) -> Tensor:
    """Return this process's share of a batch of 4: an image, the other has three; alone, the whole batch."""
    return joined.split([1, 3])[distributed.get_rank()] if is_distributed() else joined


def half(joined: Tensor) -> Tensor:
    """Return this process's half of a batch; alone, the whole batch."""
    return joined.chunk(2)[distributed.get_rank()] if is_distributed() else joined


def parallel(net: nn.Module) -> nn.Module:
    """Return the net as DDP trains it; alone, the net."""
    return DistributedDataParallel(join_batch_norm(net)) if is_distributed() else net


def segmented(classes: int) -> tuple[Tensor, Tensor]:
    """Return images, 4x3x8x8, and classes: the first image has ignored pixels, and lacks the last class of three."""
    torch.manual_seed(0)
    target = torch.randint(0, classes, (4, 8, 8), dtype=torch.uint8)
    target[0][target[0] == 2] = 0
    target[0, :5] = IGNORE
    return torch.randn(4, 3, 8, 8, dtype=torch.float64), target


def loss_and_gradient(name: str, classes: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """Return a loss while training, and the gradient of the weights before it."""
    images, target = segmented(classes)
    net = parallel(nn.Conv2d(3, 1 if classes == 2 else classes, 3, padding=1).double())
    loss = make_case(name, classes, weighted)(net(mine(images)), mine(target))
    loss.backward()
    return loss.detach(), next(net.parameters()).grad


def loss_in_evaluation(name: str, classes: int, weighted: bool) -> Tensor:
    """Return a loss of the first image, as it is in evaluation."""
    images, target = segmented(classes)
    return make_case(name, classes, weighted).eval()(images[:1, : 1 if classes == 2 else classes], target[:1])


def normalised(dtype: torch.dtype, mean: float) -> dict[str, Tensor]:
    """Return what two steps of batch normalisation give: sums over images are those of this process's."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm = join_batch_norm(norm.double() if dtype == torch.float64 else norm)
    images, directions = (mean + torch.randn(4, 5, 6, 7).mul(3)).to(dtype), torch.randn(4, 5, 6, 7).to(dtype)
    for batch in (images.flip(1), images.to(memory_format=torch.channels_last)):
        norm.zero_grad()
        share = mine(batch).detach().requires_grad_()
        output = norm(share)
        (output * mine(directions)).sum().backward()
    assert output.dtype == dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    found = {"output": output.detach(), "input gradient": share.grad}
    found |= {f"{name} gradient": weight.grad for name, weight in norm.named_parameters()}
    return found | norm.state_dict()


def trained(**setting) -> dict[str, Tensor]:
    """Return the losses before and after a step, and sums over the weights after it.

    DDP reports weights that the step did not use at the second forward pass.
    """
    torch.manual_seed(0)
    net = Segmenter(classes=2, encoder="resnet18", weights=None, decoder_channels=WIDTHS, **setting)
    images, masks = torch.randint(0, 256, (2, 3, 64, 64)), torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    net, loss = parallel(net), make_loss("bce_dice", 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = loss(net(half(images)), half(masks))
    before.backward()
    optimizer.step()
    after = loss(net(half(images)), half(masks))
    state = torch.cat([value.flatten() for value in net.state_dict().values()])
    return {"losses": torch.stack([before, after]).detach(), "state": torch.stack([state.sum(), state.norm()])}


def flow() -> Tensor:
    """Return every number of the gradient flow of a step, with joint statistics and a joint loss, in float64."""
    torch.manual_seed(0)
    net = Segmenter(classes=2, encoder="resnet18", weights=None, decoder_channels=WIDTHS, skip=MIXED).double()
    images, masks = torch.randint(0, 256, (2, 3, 64, 64)), torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    net = parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with GradientFlow(net) as reading:
        make_loss("dice", 2)(net(half(images)), half(masks)).backward()
        optimizer.step()
    return torch.tensor([record.value for record in reading.read()], dtype=torch.float64)


def findings() -> dict:
    """Run all checks on this process, in the same order on both; one is for the first process alone."""
    found = {("loss", *loss): loss_and_gradient(*loss) for loss in LOSSES}
    if not is_distributed() or distributed.get_rank() == 0:
        found |= {("evaluation", *loss): loss_in_evaluation(*loss) for loss in LOSSES}
    found |= {("norm", name): normalised(*form) for name, form in FORMATS.items()}
    found |= {("trained", name): trained(**setting) for name, setting in SETTINGS.items()}
    return found | {"flow": flow()}


def run(rank: int, folder: Path) -> dict:
    """Run all checks as one of two processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=30)
    )
    try:
        return findings()
    finally:
        distributed.destroy_process_group()
        torch.set_num_threads(threads)


def save_second(folder: Path) -> None:
    """Run all checks as the second process."""
    torch.save(run(1, folder), folder / "1.pt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[dict, dict]:
    """Return what each of two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    with beside(save_second, folder):
        first = run(0, folder)
    return first, torch.load(folder / "1.pt")


# --- losses


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_loss_and_its_gradient_are_those_of_the_joined_batch(pair, loss):
    for found in pair:
        torch.testing.assert_close(found["loss", *loss], loss_and_gradient(*loss), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_in_evaluation_a_loss_is_that_of_its_own_process_which_waits_for_no_other(pair, loss):
    assert pair[0]["evaluation", *loss] == loss_in_evaluation(*loss)


def test_alone_nothing_is_summed():
    part = torch.ones(3)
    assert sum_over_processes(part) is part


# --- batch normalisation


@pytest.mark.parametrize(("name", "tolerance"), [("float64", 1e-12), ("far from 0", 1e-3), ("bfloat16", 1e-2)])
def test_batch_norm_is_that_of_the_joined_batch(pair, name, tolerance):
    """Of 1 and 3 images; at a mean of 1000 and a deviation of 3 the difference of squares would have no right digit."""
    first, second = (found["norm", name] for found in pair)
    for key, wanted in normalised(*FORMATS[name]).items():
        if key in ("output", "input gradient"):
            found = [torch.cat([first[key], second[key]])]
        else:
            found = [first[key] + second[key]] if "gradient" in key else [first[key], second[key]]
        for value in found:
            assert (value - wanted).double().norm() <= tolerance * wanted.double().norm(), key


def test_joined_batch_norm_is_torchs_alone_in_its_keys_and_when_it_is_separated():
    torch.manual_seed(0)
    norm, images = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    joined = nn.BatchNorm2d(3)
    both = nn.Sequential(joined, nn.ReLU())
    assert join_batch_norm(both) is both
    assert (type(joined) is nn.BatchNorm2d, joined.state_dict().keys()) == (False, norm.state_dict().keys())
    for training in (True, False):
        assert torch.equal(joined.train(training)(images), norm.train(training)(images))
    assert all(torch.equal(a, b) for a, b in zip(joined.buffers(), norm.buffers(), strict=True))
    separate_batch_norm(both)
    assert type(joined) is nn.BatchNorm2d


# --- nets under strict DDP


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_trains_under_ddp_and_has_no_unused_weights(pair, name):
    """After a step both processes have the same weights and statistics to the last bit."""
    first, second = (found["trained", name] for found in pair)
    assert torch.equal(first["state"], second["state"])
    assert torch.equal(first["losses"], second["losses"])
    # in float32, with 8 values in a statistic at the coarsest level
    torch.testing.assert_close(first["losses"], trained(**SETTINGS[name])["losses"], rtol=2e-3, atol=0)


def test_the_gradient_flow_is_that_of_the_joined_batch(pair):
    for found in pair:
        torch.testing.assert_close(found["flow"], flow(), rtol=1e-9, atol=1e-14, equal_nan=True)


# --- the whole training, as a command

TWENTY_STEPS = (
    *TINY,
    "data.size=32",
    "data.train_images=45",  # 40 are trained on in two epochs, 5 validate
    "data.test_images=5",  # 3 and 2: two batches and one
    "trainer.precision=64-true",
    "trainer.log_every_n_steps=1",
    "gradients.every_n_steps=0",
)


def trained_by_two(drawn, folder: Path, *options: str):
    """Return the run folder of two processes with half of a batch of four each."""
    from unetseg.runs.folder import RunFolder

    halves = ["data.batch_size=2", "trainer.devices=2", "trainer.strategy=ddp", "trainer.sync_batchnorm=true"]
    own = [f"data.root={drawn}", f"output={folder}", "name=two"]
    launched = {"TORCHELASTIC_RUN_ID": "two", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):  # as torchrun starts them
        environment = os.environ | launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(Forked([*TINY, *options, *halves, *own], log, environment=environment))
    assert [process.wait() for process in processes] == [0, 0], "\n".join(log.read_text() for log in logs)
    return RunFolder(folder / "two")


@pytest.fixture(scope="module")
def two(drawn, tmp_path_factory):
    """Return the run folder of two processes with half of the batch each."""
    return trained_by_two(drawn, tmp_path_factory.mktemp("two"), *TWENTY_STEPS[len(TINY) :])


def logged(run, name: str) -> list[float]:
    """Return the values of a number in metrics.csv."""
    table = pd.read_csv(run.metrics)
    return table[table.name == name].value.tolist()


@pytest.mark.quick
def test_two_processes_train_as_one_with_the_whole_batch(two, tiny):
    """In float64; in float32 Adam turns the rounding of sums into differences of 1e-2 within 20 steps."""
    alone = tiny(*TWENTY_STEPS[len(TINY) :])
    assert len(logged(two, "train/loss")) == 20
    assert logged(two, "train/loss") == pytest.approx(logged(alone, "train/loss"), abs=1e-6)
    for name in ("train/iou", "val/iou", "val/boundary_iou", "test/iou"):
        assert logged(two, name) == pytest.approx(logged(alone, name), abs=1e-6), name


def test_two_processes_hold_an_encoder_and_let_it_go_as_one_does(drawn, tiny, tmp_path):
    """The encoder gets no gradient in the first epoch, which DDP must expect, and one in the second."""
    thaw = (*TWENTY_STEPS[len(TINY) :], "model.freeze_encoder=1", "optimizer.name=sgd", "optimizer.lr=0.05")
    both, alone = trained_by_two(drawn, tmp_path, *thaw), tiny(*thaw)
    assert len(logged(both, "train/loss")) == 20
    assert logged(both, "train/loss") == pytest.approx(logged(alone, "train/loss"), abs=1e-6)
    ends = [torch.load(run.last, weights_only=True)["state_dict"] for run in (both, alone)]
    for name, value in ends[0].items():
        torch.testing.assert_close(value.double(), ends[1][name].double(), rtol=1e-5, atol=1e-6)


def test_two_processes_share_crops_and_whole_pictures_as_one_sees_them(drawn, tiny, tmp_path):
    """The losses of the joined batches, and the scores of 3 and of 7 whole pictures, each on one of the two."""
    crops = ("data.size=64", "data.crop=32", "data.crops=2", "trainer.max_epochs=1", *TWENTY_STEPS[-3:])
    both, alone = trained_by_two(drawn, tmp_path, *crops), tiny(*crops)
    assert len(logged(both, "train/loss")) == 9
    for name in ("train/loss", "train/iou", "val/iou", "val/loss", "test/iou", "test/boundary_iou"):
        assert logged(both, name) == pytest.approx(logged(alone, name), abs=1e-4), name


def test_two_processes_evaluate_to_the_very_numbers_of_one(two, drawn, tmp_path):
    from unetseg.data.dataset import collate
    from unetseg.data.sources import make_data
    from unetseg.evaluation.record import TestRecord
    from unetseg.model import checkpoint
    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.runs.folder import RunFolder
    from unetseg.training import build
    from unetseg.training.losses import make_loss
    from unetseg.training.module import SegmentationModule

    model, known = checkpoint.load(two.best)
    data = make_data(compose("train", Train, [*TWENTY_STEPS, f"data.root={drawn}"]).data.model_dump(), known["seed"])
    record = TestRecord(RunFolder(tmp_path))
    (tmp_path / "figures").mkdir()
    loss = make_loss(known["loss"], 2)
    alone = {"accelerator": "cpu", "precision": "64-true", "enable_progress_bar": False}
    build.make_trainer(alone, [], [record], tmp_path).test(SegmentationModule(model, loss, classes=2), data)
    pd.testing.assert_frame_equal(pd.read_csv(two.per_image), pd.read_csv(tmp_path / "per_image.csv"), check_exact=True)
    summary = json.loads(two.summary.read_text())
    alone_scores = record.set_scores()
    calibration = alone_scores.pop("test/ece")  # a sum of floats, in another order
    assert calibration == pytest.approx(summary["test/ece"], abs=1e-7)
    assert alone_scores.items() <= summary.items()

    examples, total = data.test_dataloader().dataset, 0.0
    for part in ([0, 2], [4], [1, 3]):  # the batches of the first process, and that of the second
        batch = collate([examples.load(0, index) for index in part])
        with torch.no_grad():
            total += len(part) * loss.eval()(model.eval()(batch.images), batch.masks).item()
    assert logged(two, "test/loss") == pytest.approx([total / 5], rel=1e-6)
