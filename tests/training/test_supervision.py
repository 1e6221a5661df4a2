"""Heads on the encoder's features (model.auxiliary=true) or on the decoder's (model.deep_supervision=true).

They are there while the network trains, and leave no trace afterwards.
"""

import json

import lightning as L
import pandas as pd
import pytest
import torch

from unetseg.data.dataset import Batch
from unetseg.model import checkpoint
from unetseg.names import SKIPS
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.options.settings import variant
from unetseg.runs.folder import RunFolder
from unetseg.train import options_of_resumed_run, train
from unetseg.training import build

SUPERVISED = ("model.auxiliary=true", "model.skip=none", "trainer.max_epochs=1")
BOTH = ("model.auxiliary=true", "model.deep_supervision=true", "model.skip=nested", "trainer.max_epochs=1")
HEADS = ("auxiliary", "deep_supervision")


def module_of(*overrides):
    torch.manual_seed(0)
    return build.make_module(compose("train", Train, ["data=synthetic", "model.weights=null", *overrides]))


@pytest.fixture
def run(tiny):
    return tiny(*SUPERVISED, "gradients.routes_every_n_steps=2")


@pytest.mark.parametrize("heads", HEADS)
def test_the_network_starts_and_is_recorded_as_without_heads(heads):
    plain, supervised = module_of(), module_of(f"model.{heads}=true")
    for (name, weight), (same, other) in zip(
        plain.model.named_parameters(), supervised.model.named_parameters(), strict=True
    ):
        assert name == same
        assert torch.equal(weight, other)
    assert plain.auxiliary is plain.deep_supervision is None
    recorded = [dict(module.hparams) for module in (plain, supervised)]
    assert [known.pop(heads) for known in recorded] == [False, True]
    assert recorded[0] == recorded[1]


@pytest.mark.parametrize("given", [HEADS[:1], HEADS[1:], HEADS], ids="+".join)
def test_the_loss_is_the_models_plus_the_mean_of_the_heads(given):
    module = module_of(*(f"model.{name}=true" for name in given), "loss=bce")
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value.item()})
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    masks[0, :20] = 255
    loss = module.eval().training_step(Batch(images, masks, torch.arange(2)), 0)
    logits, features, nodes = module.model(images, with_features=True)
    counted = masks != 255

    def bce(predicted):  # pixel by pixel in float64
        logit, truth = predicted.detach()[:, 0][counted].double(), masks[counted].double()
        return float((torch.log1p(torch.exp(-logit.abs())) + logit.clamp(min=0) - logit * truth).mean())

    expected = bce(logits)
    for name, own in zip(HEADS, (features, nodes), strict=True):
        if name in given:
            heads = [bce(of_head) for of_head in getattr(module, name)(own, (64, 64))]
            assert len(heads) == 4
            assert logged[f"train/{name}_loss"] == pytest.approx(sum(heads) / 4, rel=1e-5)
            expected += sum(heads) / 4
    assert logged.keys() == {"train/loss", *(f"train/{name}_loss" for name in given)}
    assert loss.item() == logged["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_classes_and_of_boundaries_hold_for_the_heads():
    weighted = ("loss=cross_entropy", "data.target=trimap", "class_weights=[1,2,3]", "boundary_weight=10")
    module = module_of(*(f"model.{name}=true" for name in HEADS), *weighted)
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value.item()})
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    module.eval().training_step(Batch(images, masks, torch.arange(2)), 0)
    _, _, nodes = module.model(images, with_features=True)
    heads = module.deep_supervision(nodes, (64, 64))
    assert [tuple(logits.shape) for logits in heads] == [(2, 3, 64, 64)] * 4
    losses = [module.loss(logits, masks).item() for logits in heads]
    assert logged["train/deep_supervision_loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert module.loss.weights is not None


WIDTHS = {
    "concat": [256, 128, 64, 32],  # each block but the last, which has the network's own head
    "nested": [64, 64, 64, 32],  # the nodes of level 1, as in Zhou et al. 2018
    "full": [512, 256, 128, 64, 32],  # the bottleneck and each node, as in Huang et al. 2020
}


@pytest.mark.parametrize("skip", SKIPS)
def test_deep_supervision_reads_the_nodes_of_each_decoder(skip):
    module = module_of(f"model.skip={skip}", "model.deep_supervision=true")
    assert module.model.net.decoder.node_channels == WIDTHS.get(skip, WIDTHS["concat"])
    images = torch.randint(0, 256, (2, 3, 61, 95), dtype=torch.uint8)
    logits, _, nodes = module.eval().model(images, with_features=True)
    assert torch.equal(logits, module.model(images))
    assert [node.shape[1] for node in nodes] == module.model.net.decoder.node_channels
    for of_head in module.deep_supervision(nodes, (61, 95)):
        assert of_head.shape == (2, 1, 61, 95)
    heads = module.deep_supervision(nodes, (61, 95))
    (logits.square().mean() + torch.stack(heads).square().mean()).backward()
    assert [name for name, weight in module.named_parameters() if weight.grad is None] == []


def test_a_supervised_run_logs_its_loss_and_its_exit_and_is_used_as_any_other(figures, run):
    metrics = pd.read_csv(run.metrics)
    assert {"train/loss", "train/auxiliary_loss", "gradient/share_auxiliary/stem"} <= set(metrics.name)
    table = pd.read_csv(run.gradient_flow)
    of_stem = table[(table.block == "stem") & table.metric.str.startswith("share_")]
    assert set(of_stem.metric) == {"share_auxiliary", "share_bottleneck"}, "with skip=none there is no other exit"
    assert of_stem.groupby("step").value.sum().to_numpy() == pytest.approx(1, abs=1e-6)
    assert (run.figures / "gradient_routes.png").stat().st_size > 10_000
    model, known = checkpoint.load(run.path)
    assert known["auxiliary"] is True
    assert not any("auxiliary" in name for name in model.state_dict())
    summary = json.loads(run.summary.read_text())
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert summary["auxiliary_parameters"] == 32 + 32 + 48 + 192 + 4  # tu-test_resnet's widths, and a bias each
    assert (summary["auxiliary"], summary["variant"]) == (True, "none auxiliary")


def test_every_head_is_trained_and_counted_and_only_the_runs_checkpoint_has_them(tiny):
    run = tiny(*BOTH)
    state = torch.load(run.last, weights_only=True)["state_dict"]
    biases = [value for name, value in state.items() if name.startswith(HEADS) and name.endswith("bias")]
    assert len(biases) == 4 + 4
    assert all(bias.any() for bias in biases), "they start from 0"
    model, known = checkpoint.load(run.path)
    assert known["deep_supervision"] is True
    assert not any("supervision" in name for name in model.state_dict())
    summary = json.loads(run.summary.read_text())
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert (
        summary["deep_supervision_parameters"] == 3 * 32 + 16 + 4
    )  # nodes of level 1, of which the last is the decoder's, and a bias each
    assert (summary["deep_supervision"], summary["variant"]) == (True, "nested auxiliary deep-supervision")
    assert {"train/auxiliary_loss", "train/deep_supervision_loss"} <= set(pd.read_csv(run.metrics).name)


def test_a_supervised_run_that_was_stopped_goes_on_to_the_same_weights(tiny, tmp_path):
    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                raise KeyError

    options = (*BOTH, "checkpoint.every_n_steps=2")
    with pytest.raises(KeyError):
        tiny("name=stopped", *options, callbacks=[Stop()])
    stopped = RunFolder(tmp_path / "stopped")
    train(options_of_resumed_run([f"resume={stopped.path}"]))
    whole = tiny("name=whole", *options)
    states = [torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, stopped)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_run_that_is_older_than_the_options_keeps_its_name():
    model = compose("train", Train, ["data=synthetic"]).model.model_dump(exclude={*HEADS})
    assert variant(model) == "concat"
