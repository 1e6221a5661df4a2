"""Stalled weights and the update ratio are those of the gradient's part of a step: weight decay is taken out."""

import math

import pytest
import torch
from nets import TOY_RMS, Toy, X, metric, numbers, one_thread  # noqa: F401 (a fixture that every test uses)

from unetseg.gradients import GradientFlow
from unetseg.gradients.decay import decay_of

WAYS = {"one by one": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""The ways in which torch.optim takes a step."""


def read_step(toy, optimizer, gradient=None):
    """Take a step on the toy in the block, with every weight's gradient set to `gradient` if one is given."""
    with GradientFlow(toy) as flow:
        toy(X.to(toy.segmentation_head.weight.dtype)).sum().backward()
        for w in toy.parameters():
            if gradient is not None:
                w.grad.fill_(gradient)
        optimizer.step()
    return flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_of_zero_stalls_every_weight_whatever_the_decay(way, dtype):
    toy = Toy(a=0.3, b=1.7).to(dtype)
    optimizer = torch.optim.AdamW(toy.parameters(), lr=2e-2, weight_decay=0.5, **WAYS[way])
    before = [w.detach().clone() for w in toy.parameters()]
    flow = read_step(toy, optimizer, gradient=0)
    assert not any(torch.equal(w, old) for w, old in zip(toy.parameters(), before, strict=True)), "decay has moved them"
    for name, value in {"stalled": 1, "update_ratio": 0, "zero": 1}.items():
        assert set(metric(flow, name, "block").values()) == {value}


@pytest.mark.parametrize("way", WAYS)
def test_the_decay_is_the_optimizers_own_to_the_last_bit(way):
    torch.manual_seed(0)
    for lr in (2e-4, 1.37e-3, *([torch.tensor(2e-4)] if way != "foreach" else [])):
        weight = torch.nn.Parameter(torch.randn(100_000))
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.01, **WAYS[way])
        optimizer.step()
        assert torch.equal(decay_of(optimizer, optimizer.param_groups[0])(before), weight)


def test_the_update_is_what_the_step_adds_to_the_decay():
    """The first step of AdamW is lr * sign(g), as g / sqrt(g^2) = 1 but for eps: 1/16 here, beside a decay of 1/32."""
    toy = Toy(a=0.5)
    flow = read_step(toy, torch.optim.AdamW(toy.parameters(), lr=1 / 16, weight_decay=0.5, eps=0), gradient=1)
    found = numbers(flow)
    assert float(toy.encoder.conv1.weight.detach()) == pytest.approx(0.5 * (1 - 1 / 32) - 1 / 16)
    assert found["stem", "update_ratio"] == pytest.approx(1 / 16 / 0.5)
    assert (found["stem", "stalled"], found["stem", "zero"]) == (0, 0)


def test_without_decay_a_step_is_compared_with_the_weight_as_it_was():
    weight = torch.nn.Parameter(torch.ones(1))
    for optimizer in (torch.optim.AdamW([weight], weight_decay=0), torch.optim.SGD([weight], weight_decay=0.1)):
        assert decay_of(optimizer, optimizer.param_groups[0]) is None


def test_decay_that_is_added_to_the_gradient_is_part_of_the_step():
    toy = Toy(a=0.5)
    found = numbers(read_step(toy, torch.optim.SGD(toy.parameters(), lr=0.5, weight_decay=0.25), gradient=0))
    assert (found["stem", "update_ratio"], found["stem", "stalled"], found["stem", "zero"]) == (0.5 * 0.25, 0, 1)


@pytest.mark.parametrize("optimizer", ["NAdam", "RAdam", "Adam"])
def test_other_optimizers_with_decoupled_decay_are_read_in_the_same_way(optimizer):
    toy = Toy(a=0.3)
    made = getattr(torch.optim, optimizer)(toy.parameters(), lr=0.02, weight_decay=0.5, decoupled_weight_decay=True)
    assert set(metric(read_step(toy, made, gradient=0), "stalled", "block").values()) == {1}


@pytest.mark.parametrize("optimizer", [name for name in ("Adafactor", "Muon") if hasattr(torch.optim, name)])
def test_so_are_those_whose_decay_is_always_decoupled(optimizer):
    before = torch.rand(8, 8)
    weight = torch.nn.Parameter(before.clone())
    weight.grad = torch.zeros_like(weight)
    made = getattr(torch.optim, optimizer)([weight], lr=0.02, weight_decay=0.5)
    made.step()
    assert not torch.equal(weight, before)
    assert torch.equal(decay_of(made, made.param_groups[0])(before), weight)


def test_each_group_has_its_own_rate_and_decay_those_of_the_step():
    toy = Toy(a=0.3, b=1.7)
    encoder, others = list(toy.encoder.parameters()), [*toy.decoder.parameters(), *toy.segmentation_head.parameters()]
    groups = [{"params": encoder, "lr": 0.02, "weight_decay": 0.5}, {"params": others, "lr": 0.3, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)
    with GradientFlow(toy) as flow:
        (toy(X).sum() * 0).backward()
        optimizer.step()
        schedule.step()  # as Lightning does, before the reading ends
    assert set(metric(flow, "stalled", "block").values()) == {1}


def test_a_weight_without_a_gradient_is_not_decayed_and_counts_as_zeros():
    toy = Toy(a=0.5)
    optimizer = torch.optim.AdamW(toy.parameters(), lr=0.02, weight_decay=0.5)
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
        toy.encoder.conv1.weight.grad = None
        optimizer.step()
    found = numbers(flow)
    assert float(toy.encoder.conv1.weight.detach()) == 0.5
    assert [found["stem", name] for name in ("stalled", "update_ratio", "zero", "rms")] == [1, 0, 1, 0]


def test_a_gradient_that_a_closure_computes_is_decayed_as_well():
    """The optimizer has no gradients yet when its step begins: so it is in every training of Lightning."""
    toy = Toy(a=0.3)
    optimizer = torch.optim.AdamW(toy.parameters(), lr=0.02, weight_decay=0.5)

    def closure():
        optimizer.zero_grad()
        loss = toy(X).sum() * 0
        loss.backward()
        return loss

    with GradientFlow(toy) as flow:
        optimizer.step(closure)
    assert set(metric(flow, "stalled", "block").values()) == {1}


def test_a_step_that_a_fused_optimizer_leaves_out_has_no_decay():
    """GradScaler hands inf on to the kernel, which then changes nothing."""
    toy = Toy(a=0.3)
    optimizer = torch.optim.AdamW(toy.parameters(), lr=0.02, weight_decay=0.5, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with GradientFlow(toy) as flow:
        scaler.scale(toy(X).sum() * math.inf).backward()
        scaler.step(optimizer)
    found = numbers(flow)
    assert float(toy.encoder.conv1.weight.detach()) == pytest.approx(0.3)
    assert {found[block, "stalled"] for block in TOY_RMS} == {1}
    assert {found[block, "update_ratio"] for block in TOY_RMS} == {0}


def test_two_steps_decay_twice():
    toy = Toy(a=0.5)
    optimizer = torch.optim.AdamW(toy.parameters(), lr=0.5, weight_decay=0.5)
    with GradientFlow(toy) as flow:
        (toy(X).sum() * 0).backward()
        optimizer.step()
        optimizer.step()
    assert float(toy.encoder.conv1.weight.detach()) == 0.5 * 0.75**2
    assert set(metric(flow, "stalled", "block").values()) == {1}


def test_zero_is_the_share_of_gradient_entries_that_are_exactly_zero():
    toy = Toy()
    with GradientFlow(toy) as flow:
        toy(X).sum().backward()
        for w, value in zip(toy.encoder.parameters(), (0.0, 1e-44, math.nan), strict=True):
            w.grad.fill_(value)
        flow.gradients()
    shares = metric(flow, "zero", "block")
    assert [shares[block] for block in ("stem", "encoder1", "encoder2")] == [1, 0, 0], "1e-44 is float32's, and not 0"
