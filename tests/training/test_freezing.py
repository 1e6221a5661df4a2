"""A frozen encoder: nothing of it changes while it is held, and it trains as ever afterwards."""

import json

import lightning as L
import pandas as pd
import pytest
import torch
from conftest import TINY

from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import options_of_resumed_run, train
from unetseg.training import build
from unetseg.training.optimization import ENCODER

QUIET = ("gradients.every_n_steps=0",)


class Encoders(L.Callback):
    """Keeps the encoder's state, weights and statistics, as it is at the beginning and after each epoch."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, module):
        self.keep(module)

    def on_train_epoch_end(self, trainer, module):
        self.keep(module)

    def keep(self, module):
        state = module.get_submodule(ENCODER.rstrip(".")).state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})

    @property
    def changes(self):
        """How many tensors each epoch has changed."""
        pairs = zip(self.states, self.states[1:], strict=False)
        return [sum(not torch.equal(new[name], old[name]) for name in old) for old, new in pairs]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_encoder_stays_as_it_is_for_the_whole_training(tiny, optimizer):
    seen = Encoders()
    given = (f"optimizer.name={optimizer}", "optimizer.weight_decay=0.1", "optimizer.ema=0.9")
    run = tiny(*QUIET, *given, "model.freeze_encoder=true", callbacks=[seen])
    assert seen.changes == [0, 0]
    best = torch.load(run.best, weights_only=True)["state_dict"]
    assert all(torch.equal(best[f"{ENCODER}{name}"], value) for name, value in seen.states[0].items())
    summary = json.loads(run.summary.read_text())
    assert summary["frozen_parameters"] == 372_688  # tu-test_resnet's
    assert summary["parameters"] > summary["frozen_parameters"]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_encoder_is_held_for_the_first_epochs_and_trains_then(tiny, optimizer):
    seen = Encoders()
    given = (f"optimizer.name={optimizer}", "model.freeze_encoder=1")
    tiny(*QUIET, *given, "optimizer.ema=0.9", "trainer.max_epochs=2", callbacks=[seen])
    assert seen.changes == [0, len(seen.states[0])]


def test_held_for_all_epochs_is_held_for_good(tiny):
    held, frozen = (tiny(*QUIET, f"name=f{value}", f"model.freeze_encoder={value}") for value in ("2", "true"))
    first, second = (torch.load(run.last, weights_only=True)["state_dict"] for run in (held, frozen))
    assert all(torch.equal(first[name], value) for name, value in second.items())


HELD = ("model.freeze_encoder=2", "trainer.max_epochs=3", "gradients.every_n_steps=4", "checkpoint.every_n_steps=3")


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The run that nothing stops."""
    own = [f"data.root={drawn}", f"output={tmp_path_factory.mktemp('whole')}"]
    return RunFolder(train(compose("train", Train, [*TINY, *own, *HELD]))["folder"])


@pytest.mark.parametrize("step", [8, 10, 13], ids=["held", "let go", "training"])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(whole, stopped, step):
    broken = stopped(step, *HELD)
    train(options_of_resumed_run([f"resume={broken.path}"]))
    states = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    assert all(torch.equal(value, states[1]["state_dict"][name]) for name, value in states[0]["state_dict"].items())
    assert str(states[0]["optimizer_states"]) == str(states[1]["optimizer_states"])
    for table in ("metrics", "gradient_flow"):
        assert getattr(whole, table).read_text() == getattr(broken, table).read_text()


def test_gradient_readings_say_that_the_encoder_is_frozen(tiny):
    run = tiny("model.freeze_encoder=1", "gradients.every_n_steps=5", "gradients.routes_every_n_steps=5")
    table = pd.read_csv(run.gradient_flow, keep_default_na=False)
    stem = table[table.block == "stem"].pivot(index="step", columns="metric", values="value")
    assert stem.frozen.to_dict() == {0: "1.0", 5: "0.0"}
    assert stem.rms.to_dict()[0] == "nan"
    assert float(stem.rms.to_dict()[5]) > 0
    assert set(table[table.kind == "exit"].step) == {5}


def test_the_plan_says_how_much_is_frozen(tiny, capsys):
    tiny(*QUIET, "model.freeze_encoder=true", "trainer.max_epochs=1")
    assert "0.52 M parameters (0.37 M of them frozen)" in capsys.readouterr().out


def test_only_epochs_need_a_callback():
    for value, count in (("false", 0), ("true", 0), ("3", 1)):
        options = compose("train", Train, ["data=synthetic", f"model.freeze_encoder={value}"])
        assert len(build.make_steering(options)) == count
