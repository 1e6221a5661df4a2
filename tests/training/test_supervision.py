"""model.auxiliary=true: heads on the encoder's features while training, and no trace of them afterwards."""

import json

import lightning as L
import pandas as pd
import pytest
import torch

from unetseg.data.dataset import Batch
from unetseg.model import checkpoint
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.options.settings import variant
from unetseg.runs.folder import RunFolder
from unetseg.train import options_of_resumed_run, train
from unetseg.training import build

SUPERVISED = ("model.auxiliary=true", "model.skip=none", "trainer.max_epochs=1")


def module_of(*overrides):
    torch.manual_seed(0)
    return build.make_module(compose("train", Train, ["data=synthetic", "model.weights=null", *overrides]))


@pytest.fixture
def run(tiny):
    return tiny(*SUPERVISED, "gradients.routes_every_n_steps=2")


def test_the_network_starts_and_is_recorded_as_without_heads():
    plain, supervised = module_of(), module_of("model.auxiliary=true")
    for (name, weight), (same, other) in zip(
        plain.model.named_parameters(), supervised.model.named_parameters(), strict=True
    ):
        assert name == same
        assert torch.equal(weight, other)
    assert plain.auxiliary is None
    recorded = [dict(module.hparams) for module in (plain, supervised)]
    assert [known.pop("auxiliary") for known in recorded] == [False, True]
    assert recorded[0] == recorded[1]


def test_the_loss_is_the_models_plus_the_mean_of_the_heads():
    module = module_of("model.auxiliary=true", "loss=bce")
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value.item()})
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    masks[0, :20] = 255
    loss = module.eval().training_step(Batch(images, masks, torch.arange(2)), 0)
    logits, features = module.model(images, with_features=True)
    counted = masks != 255

    def bce(predicted):  # pixel by pixel in float64
        logit, truth = predicted.detach()[:, 0][counted].double(), masks[counted].double()
        return float((torch.log1p(torch.exp(-logit.abs())) + logit.clamp(min=0) - logit * truth).mean())

    heads = [bce(of_head) for of_head in module.auxiliary(features, (64, 64))]
    assert len(heads) == 4
    assert logged["train/auxiliary_loss"] == pytest.approx(sum(heads) / 4, rel=1e-5)
    assert loss.item() == logged["train/loss"] == pytest.approx(bce(logits) + sum(heads) / 4, rel=1e-5)


def test_a_supervised_run_logs_its_loss_and_its_exit_and_is_used_as_any_other(run):
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
    assert summary["auxiliary_parameters"] == 64 + 64 + 128 + 256 + 4  # resnet18's widths, and a bias each
    assert (summary["auxiliary"], summary["variant"]) == (True, "none auxiliary")


def test_every_head_is_trained(tiny):
    run = tiny(*SUPERVISED)
    state = torch.load(run.last, weights_only=True)["state_dict"]
    biases = [value for name, value in state.items() if name.startswith("auxiliary.") and name.endswith("bias")]
    assert len(biases) == 4
    assert all(bias.any() for bias in biases), "they start from 0"


def test_a_supervised_run_that_was_stopped_goes_on_to_the_same_weights(tiny, tmp_path):
    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                raise KeyError

    options = (*SUPERVISED, "checkpoint.every_n_steps=2")
    with pytest.raises(KeyError):
        tiny("name=stopped", *options, callbacks=[Stop()])
    stopped = RunFolder(tmp_path / "stopped")
    train(options_of_resumed_run([f"resume={stopped.path}"]))
    whole = tiny("name=whole", *options)
    states = [torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, stopped)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_run_that_is_older_than_the_option_keeps_its_name():
    model = compose("train", Train, ["data=synthetic"]).model.model_dump(exclude={"auxiliary"})
    assert variant(model) == "concat"
