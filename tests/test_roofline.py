"""A training step divided among its blocks, held against nets whose operations are counted by hand."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "scripts"))

import gpu
from benchmarks import processes, report, roofline, ways
from benchmarks.parts import BACKWARD, FORWARD, Parts, counted
from benchmarks.steps import batch, stepper

from unetseg.evaluation.cost import cost
from unetseg.model import Segmenter
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.train import train

RESULT = report.Result("tiny", [[{"": "a", "s": 1.0}]], {"a, s": [1.0]})


class TwoConvolutions(nn.Module):
    """A convolution of 3 to 4 channels and one of 4 to 2, each 3x3."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 2, 3, padding=1, bias=False)

    def forward(self, images):
        return self.second(torch.relu(self.first(images)))


def test_operations_and_least_bytes_are_those_counted_by_hand():
    net = TwoConvolutions()
    blocks = {"a": [*net.first.parameters()], "b": [*net.second.parameters()]}
    images = torch.zeros(2, 3, 8, 8)
    with counted() as read:
        parts = Parts(net, blocks, read)
        with parts.watched():
            outputs = net(images)
        parts.enter("loss", outputs)
        outputs.sum().backward()
        parts.enter("end", images)
    needs = parts.differences(lambda first, after: after - first)
    pixels = 2 * 8 * 8
    first, second = 2 * pixels * 4 * 3 * 9, 2 * pixels * 2 * 4 * 9  # a multiplication and an addition for each weight
    pictures, between, outputs = (4 * pixels * channels for channels in (3, 4, 2))  # bytes of float32
    weights_a, weights_b = 4 * 4 * 3 * 9, 4 * 2 * 4 * 9
    assert needs["a", FORWARD].tolist() == [first, pictures + weights_a + between]
    assert needs["b", FORWARD].tolist() == [second, between + weights_b + outputs]
    # the gradients of the weights and of the input; the pictures have none
    assert needs["b", BACKWARD].tolist() == [2 * second, outputs + 2 * between + 2 * weights_b]
    assert needs["a", BACKWARD].tolist() == [first, between + pictures + 2 * weights_a]


class Slow(torch.autograd.Function):
    """Moves a clock on by its seconds, forward and backward."""

    @staticmethod
    def forward(context, inputs, clock, forward, backward):
        context.clock, context.seconds = clock, backward
        clock[0] += forward
        return inputs.clone()

    @staticmethod
    def backward(context, gradient):
        context.clock[0] += context.seconds
        return gradient, None, None, None


class SlowBlock(nn.Module):
    def __init__(self, clock, forward, backward):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.arguments = clock, forward, backward

    def forward(self, inputs):
        return Slow.apply(self.weight * inputs, *self.arguments)


class SlowUnet(nn.Module):
    """An encoder of two blocks, a decoder block on both, a head."""

    def __init__(self, clock):
        super().__init__()
        seconds = {"stem": (1, 10), "encoder1": (2, 20), "decoder1": (3, 30), "head": (4, 40)}
        for name, own in seconds.items():
            self.add_module(name, SlowBlock(clock, *own))

    def forward(self, inputs):
        fine = self.stem(inputs)
        return self.head(self.decoder1(self.encoder1(fine) + fine))


def test_the_time_of_each_block_is_its_own_also_beside_a_long_skip():
    clock = [0]
    net = SlowUnet(clock)
    parts = Parts(net, {name: [*block.parameters()] for name, block in net.named_children()}, lambda: clock[0])
    for _ in range(2):
        begun = clock[0]
        parts.enter("other", torch.ones(1))
        with parts.watched():
            outputs = net(torch.ones(1))
        parts.enter("loss", outputs)
        outputs.sum().backward()
        parts.enter("optimizer", torch.ones(1))
        clock[0] += 5
        parts.enter("other", torch.ones(1))
        seconds = parts.differences(lambda first, after: after - first)
        assert sum(seconds.values()) == clock[0] - begun
        both_ways = {block: (seconds[block, FORWARD], seconds[block, BACKWARD]) for block in dict(net.named_children())}
        assert both_ways == {"stem": (1, 10), "encoder1": (2, 20), "decoder1": (3, 30), "head": (4, 40)}
        assert seconds["optimizer", FORWARD] == 5
        assert seconds["loss", FORWARD] == 0


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_the_blocks_operations_add_up_to_those_of_the_step(encoder):
    torch.manual_seed(0)
    step = roofline.Watched(encoder, 32, 2)
    needs = step.needs()
    with FlopCounterMode(display=False) as counter:
        step.bare()
    assert sum(flops for flops, _ in needs.values()) == counter.get_total_flops()
    forward = sum(flops for (_, way), (flops, _) in needs.items() if way == FORWARD)
    assert forward == 2 * cost(step.model, 32)["flops"]
    seconds = step.seconds()
    assert set(seconds) == {*((block, way) for block in step.blocks for way in (FORWARD, BACKWARD)),
                            *((part, FORWARD) for part in ("other", "loss", "optimizer"))}  # fmt: skip
    assert all(value > 0 for value in seconds.values())


def test_a_block_is_bound_by_what_takes_longer():
    seconds = {("a", FORWARD): 0.25, ("a", BACKWARD): 0.75, ("optimizer", FORWARD): 1.0}
    needs = {("a", FORWARD): np.array([1e9, 1e6]), ("a", BACKWARD): np.array([3e9, 3e6]),
             ("optimizer", FORWARD): np.array([0, 5e7])}  # fmt: skip
    a, optimizer, whole = roofline.by_block(seconds, needs, rate=8e9, copying=1e8)
    assert (a["GFLOP"], a["least MB"], a["forward, ms"], a["backward, ms"]) == (4, 4, 250, 750)
    assert (a["% of the step"], a["utilisation, %"], a["ms at the roofline"], a["bound by"]) == (
        50,
        50,
        500,
        "arithmetic",
    )
    assert (optimizer["utilisation, %"], optimizer["ms at the roofline"], optimizer["bound by"]) == (0, 500, "memory")
    assert (whole["utilisation, %"], whole["ms at the roofline"]) == (25, 1000)


def test_utilisation_is_taken_within_a_round():
    # the machine is half as fast in the second round
    rate = np.array([100.0, 50])
    rows = roofline.utilisation({"bare": rate / 2, "ours": rate / 4}, operations=1e9, rate=rate)
    assert rows[0]["utilisation, %"] == (50, 50, 50)
    assert rows[1]["utilisation, %"] == (25, 25, 25)
    assert rows[1]["times the bare"] == (0.5, 0.5, 0.5)


def test_a_recomputed_decoder_has_the_same_gradients():
    gradients = {}
    for way, change in {"as set": lambda model: None, "recomputed": ways.recompute}.items():
        torch.manual_seed(0)
        model = Segmenter(classes=2, encoder="tu-test_resnet", weights=None)
        change(model)
        calls = []
        model.net.decoder.blocks[-1].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        stepper(model, *batch(32, 2), mixed=False)()
        gradients[way] = [weight.grad for weight in model.parameters()]
        assert len(calls) == (1 if way == "as set" else 2), "the finest block is recomputed, where that is asked for"
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_turn_that_may_not_fit_is_left_out_and_what_was_measured_is_kept(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gpu, "FIRST_GUESS", {"train": 60, "ways": 20})

    def work(seconds):
        def measure():
            now[0] += seconds
            return report.Result("tiny", [[{"": "a", "at": now[0]}]], {})

        return measure

    turns = [("train", "train a", work(10)), ("train", "train b", work(75)), ("ways", "ways", work(20)),
             ("train", "train a", work(10)), ("train", "train b", work(75))]  # fmt: skip
    names = {"train": "train", "ways": "ways --steps 9"}
    left_out, failed = gpu.run(turns, 100, entries := {}, tmp_path, "python scripts/gpu.py", names)
    assert not failed
    assert left_out == ["ways", "train b"], "15 s are left: enough for a's 10, not for 20, nor for b's 75"
    assert entries["train"]["tables"][0][0]["at"] == 95
    assert json.loads((tmp_path / "gpu.json").read_text()) == entries
    assert "## train" in (tmp_path / "gpu.md").read_text()


def test_a_turn_that_fails_keeps_no_other_from_being_measured(tmp_path, monkeypatch, capsys):
    def fails():
        raise RuntimeError("CUDA out of memory\nmore of it")

    monkeypatch.setattr(gpu, "plan", lambda *_: [("train", "train a", fails), ("ways", "ways", lambda: RESULT)])
    before = {"gradients": report.entry(RESULT, "python scripts/gpu.py --parts gradients")}
    report.write(before, tmp_path / "gpu.json")
    (tmp_path / "gpu.md").write_text(report.markdown(before))
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--batch-size", "2", "--steps", "2", f"--pets={tmp_path}/pets", f"--output={tmp_path}"])
    assert caught.value.code == 2, "there are no pictures"
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--batch-size", "2", "--steps", "2", f"--output={tmp_path}"])
    assert caught.value.code == 1
    assert "failed: train a: CUDA out of memory\n" in capsys.readouterr().out
    entries = json.loads((tmp_path / "gpu.json").read_text())
    ways = "ways --batch-size 2 --steps 2"
    assert [*entries] == ["gradients", ways], "what an earlier command has measured stays"
    assert entries[ways]["command"] == "python scripts/gpu.py --batch-size 2 --steps 2"


@pytest.mark.parametrize(
    "given", [["--steps", "0"], ["--batch-size", "0"], ["--seconds", "-5"], ["--sizes", "100"], ["--encoders", "nope"]]
)
def test_wrong_options_end_with_status_2_at_once(tmp_path, monkeypatch, given):
    monkeypatch.setattr(gpu, "drawn", lambda *_: pytest.fail("pictures are drawn"))
    with pytest.raises(SystemExit) as caught:
        gpu.main([*given, "--output", str(tmp_path)])
    assert caught.value.code == 2


def in_this_process(overrides, folder):
    """Train as a process of its own would, whose imports take longer than all the rest."""
    return train(compose("train", Train, [*overrides, f"output={folder.parent}", f"name={folder.name}"]))


def test_the_whole_table_is_measured_at_a_tiny_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "peer", lambda *_: {"images_per_second": 1.0})
    monkeypatch.setattr(roofline, "COPIED", 2**16)
    monkeypatch.setattr(roofline, "LONG_ENOUGH", 0.0)
    monkeypatch.setattr(gpu, "DRAWN_SIDE", 64)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(processes, "ours", in_this_process)
    tiny = ["--encoders", "resnet18", "--sizes", "32", "--batch-size", "2", "--steps", "2", "--workers", "0"]
    gpu.main([*tiny, "--output", str(tmp_path), "--seconds", "10000"])
    entries = json.loads((tmp_path / "gpu.json").read_text())
    options = " --encoders resnet18 --sizes 32 --batch-size 2 --steps 2 --workers 0"
    assert [*entries] == [part + options for part in gpu.PARTS if part != "ddp"]
    entries = {part.removesuffix(options): entry for part, entry in entries.items()}
    (row,) = entries["train"]["tables"][0]
    assert row["times smp's recipe (target 5)"] == row["ours, images/s"], "the peer has 1 image/s"
    assert len(entries["train"]["rounds"]["resnet18, 32 px, bare, images/s"]) == 1
    machine, whole, blocks = entries["roofline"]["tables"]
    assert len(machine) == 3
    assert [row[""] for row in whole] == ["bare step", "ours"]
    assert blocks[-1]["block"] == "step"
    text = (tmp_path / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert str(tmp_path) not in text


def test_the_shell_script_installs_wheels_and_passes_its_options_on(tmp_path):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH: $*" >> {log}\n')
    python.chmod(0o755)
    (tmp_path / "a.whl").touch()
    environment = {**os.environ, "PYTHON": str(python), "WHEELS": str(tmp_path), "PYTHONPATH": "before"}
    script = ["bash", "scripts/gpu.sh", "--seconds", "9"]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    install, check, run = log.read_text().splitlines()
    assert "--no-index" in install
    assert install.endswith(f"{tmp_path}/a.whl")
    assert "kornia" in check
    assert run.endswith("scripts/gpu.py --seconds 9")
    assert run.startswith(f"{ROOT}:{ROOT}/scripts:")
    assert ":before: " in run
