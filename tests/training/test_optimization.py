"""The optimizer, its groups, the course of the learning rate, the average of the weights and the early end."""

import copy
import json
import math
import shutil
from types import SimpleNamespace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from torch import nn

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import check_resume
from unetseg.train import find_lr, options_of_resumed_run, train
from unetseg.training import callbacks, lr_finder
from unetseg.training.optimization import Optimization


def rates(given: Optimization, steps: int, warmup: int = 0) -> list[float]:
    """Return the learning rates of a training that steps its schedule after each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = given.make_schedule(optimizer, steps, warmup)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


class TestSchedules:
    def test_one_cycle_is_that_of_torch(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20)
        expected = []
        for step in range(20):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if step < 19:
                schedule.step()
        np.testing.assert_allclose(rates(Optimization(schedule="one_cycle"), 20), expected, rtol=1e-12)

    def test_poly_is_that_of_torch(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9)
        expected = []
        for _ in range(20):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        np.testing.assert_allclose(rates(Optimization(schedule="poly"), 20), expected, rtol=1e-12)

    @pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
    def test_the_rate_rises_linearly_and_then_follows_its_schedule(self, schedule):
        own = Optimization(schedule=schedule)
        found = rates(own, 20, warmup=4)
        np.testing.assert_allclose(found[:5], [0.1, 0.2, 0.3, 0.4, 0.5])
        np.testing.assert_allclose(found[4:], [0.5 * own.factor(step, 16) for step in range(16)])

    def test_the_formula_of_the_cosine_is_that_of_earlier_runs(self):
        found = rates(Optimization(), 20)
        np.testing.assert_allclose(found, [0.5 * Optimization().factor(step, 20) for step in range(20)], rtol=1e-12)

    @pytest.mark.parametrize("schedule", ["cosine", "poly", "constant", "one_cycle"])
    def test_without_a_known_end_the_rate_stays(self, schedule):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        schedule = Optimization(schedule=schedule).make_schedule(optimizer, math.inf, 0)
        for _ in range(3):
            assert optimizer.param_groups[0]["lr"] == 0.5
            optimizer.step()
            if schedule:
                schedule.step()


class Tiny(nn.Module):
    """A module whose encoder and decoder are where those of a training are."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict(
            {"net": nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 1, bias=False)})}
        )


class TestOptimizers:
    @pytest.mark.parametrize(
        ("name", "kind"), [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD"), ("lion", "Lion"), ("nadamw", "NAdamW")]
    )
    def test_each_name_is_an_optimizer(self, name, kind):
        optimizer = Optimization(name, weight_decay=0.1).make_optimizer(Tiny(), 0.01, fused=False)
        assert type(optimizer).__name__ in (kind, f"{kind}Legacy")
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]

    def test_the_encoder_has_a_rate_of_its_own(self):
        module = Tiny()
        optimizer = Optimization(encoder_lr_factor=0.1).make_optimizer(module, 0.01, fused=False)
        encoder, others = optimizer.param_groups
        assert (encoder["lr"], others["lr"]) == (0.001, 0.01)
        assert [id(w) for w in encoder["params"]] == [id(w) for w in module.model["net"]["encoder"].parameters()]
        assert [id(w) for w in others["params"]] == [id(w) for w in module.model["net"]["decoder"].parameters()]

    def test_further_arguments_reach_the_optimizer(self):
        momentum = Optimization("sgd", arguments={"momentum": 0.5}).make_optimizer(Tiny(), 0.1, fused=False)
        assert momentum.param_groups[0]["momentum"] == 0.5
        with pytest.raises(UserError, match=r"optimizer.arguments=\{'momentun': 0.5\}"):
            Optimization("sgd", arguments={"momentun": 0.5}).make_optimizer(Tiny(), 0.1, fused=False)

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(UserError, match=r"(?s)optimizer.name=adamv.*optimizer.name=adamw"):
            Optimization("adamv").make_optimizer(Tiny(), 0.1, fused=False)

    @pytest.mark.parametrize(
        ("optimization", "said"),
        [
            (Optimization("adahessian"), "optimizer.name=adahessian can't be used here: "),
            (Optimization(arguments={"betas": [0.9]}), r"refuses optimizer.arguments=\{'betas': \[0.9\]\}"),
            (Optimization("kron"), "kron draws random numbers of its own"),
            (Optimization(arguments={"fused": True}), "with clipping in mixed precision"),
        ],
    )
    def test_what_fails_in_a_step_is_refused_before_a_training(self, optimization, said):
        with pytest.raises(UserError, match=said):
            optimization.check(torch.device("cpu"), fused=False)

    @pytest.mark.parametrize("optimization", [Optimization(arguments={"foreach": True}), Optimization("sgd")])
    def test_the_check_draws_no_random_number(self, optimization):
        before = torch.random.get_rng_state()
        optimization.check(torch.device("cpu"), fused=True)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_refused_optimizer_leaves_no_run_folder(self, tiny, tmp_path):
        with pytest.raises(UserError, match="adamww is not accepted"):
            tiny("optimizer.name=adamww", "name=refused")
        assert not [*tmp_path.rglob("refused")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("optimizer.schedule=plateau", "optimizer.warmup_epochs=1"), "warmup_epochs=0 with schedule=plateau"),
        (("optimizer.warmup_epochs=9", "trainer.max_epochs=5"), "below trainer.max_epochs, 5"),
        (("optimizer.schedule=plateau", "trainer.limit_val_batches=0"), "validations, for which"),
        (("early_stopping=3", "trainer.limit_val_batches=0"), "validations, for which early_stopping"),
        (("early_stopping=3", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=5"), "none comes in 3 epochs"),
        (("trainer.gradient_clip_val=-1",), "a number above 0; 0 or null: nothing is clipped"),
        (("trainer.gradient_clip_algorithm=value",), "with trainer.gradient_clip_val, the limit"),
        (("optimizer.schedule=poly", "trainer.max_epochs=-1"), "an end with schedule=poly"),
        (("optimizer.ema=0.9", "trainer.strategy=fsdp", "gradients.every_n_steps=0"), "ddp with optimizer.ema"),
        (("optimizer.arguments={lr:1}",), "without lr and weight_decay"),
        (("optimizer.ema=1",), "optimizer.ema"),
        (("model.freeze_encoder=true", "optimizer.encoder_lr_factor=0.1"), "an encoder that stays as it is has no"),
        (
            ("model.freeze_encoder=5", "trainer.max_epochs=5", "optimizer.encoder_lr_factor=0.1"),
            "freeze_encoder=5: an encoder that stays",
        ),
        (("optimizer.schedule=cosin",), "cosine"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        compose("train", Train, ["data=synthetic", *given])


class TestFinder:
    def test_the_rate_rises_by_one_factor_from_step_to_step(self):
        rates = [lr_finder.RisingRate().rate(step) for step in range(lr_finder.STEPS)]
        np.testing.assert_allclose(np.diff(np.log(rates)), np.log(1e6) / 99)

    def test_the_running_mean_has_no_bias_at_its_beginning(self):
        np.testing.assert_allclose(lr_finder.running_mean([0.5] * 7), [0.5] * 7)
        weights = 0.9 ** np.arange(3)[::-1]
        assert lr_finder.running_mean([1.0, 0.0, 4.0])[-1] == pytest.approx(weights @ [1, 0, 4] / weights.sum())

    def test_the_steepest_fall_over_the_logarithm_is_suggested(self):
        lrs = np.logspace(-6, 0, 100)
        losses = 1 - 0.8 / (1 + np.exp(-3 * (np.log10(lrs) + 3)))  # falls fastest at 1e-3
        assert 8e-4 < lr_finder.suggest(lrs, losses) < 1.2e-3
        assert lr_finder.suggest(lrs, np.linspace(0, 1, 100)) is None
        assert lr_finder.suggest(lrs[:5], losses[:5]) is None

    def test_noise_alone_suggests_nothing_and_does_not_hide_a_fall(self):
        lrs, rng = np.logspace(-6, 0, 100), np.random.default_rng(0)
        noise = rng.normal(0, 0.05, (100, 100))
        assert sum(lr_finder.suggest(lrs, 0.7 + one) is not None for one in noise) <= 2
        falls = 1 - 0.5 / (1 + np.exp(-3 * (np.log10(lrs) + 3)))
        assert all(3e-4 < lr_finder.suggest(lrs, falls + one) < 3e-3 for one in noise)

    def test_a_loss_that_has_jumped_up_and_falls_again_is_not_what_fell(self):
        lrs = np.logspace(-6, 0, 100)
        losses = 1 - 0.5 / (1 + np.exp(-3 * (np.log10(lrs) + 3)))
        losses[85:] += np.linspace(1.5, 0, 15)
        assert 8e-4 < lr_finder.suggest(lrs, losses) < 1.2e-3

    def test_each_group_of_weights_has_its_own_share_of_the_rate(self):
        groups = [{"lr": 1.0}, {"lr": 1.0}]
        trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)])
        lr_finder.RisingRate([0.1, 1.0]).on_train_batch_start(trainer, None, None, 0)
        assert [group["lr"] for group in groups] == pytest.approx([1e-7, 1e-6])

    def test_the_command_writes_a_figure_and_makes_no_run_folder(self, drawn, tmp_path, capsys):
        find_lr(compose("train", Train, [*TINY, f"data.root={drawn}", f"output={tmp_path}", "name=a", "find_lr=true"]))
        assert [path.name for path in tmp_path.iterdir()] == ["a_find_lr.png"]
        assert "find_lr=true: " in capsys.readouterr().out

    def test_a_name_that_is_taken_is_refused_before_the_trial(self, drawn, tmp_path, monkeypatch):
        monkeypatch.setattr(lr_finder, "try_rates", None)
        (tmp_path / "a").mkdir()
        (tmp_path / "a/notes.txt").write_text("mine")
        with pytest.raises(UserError, match="exists"):
            find_lr(
                compose("train", Train, [*TINY, f"data.root={drawn}", f"output={tmp_path}", "name=a", "find_lr=true"])
            )


class Weights(L.Callback):
    """Notes all weights after each step."""

    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.after.append({name: value.clone() for name, value in module.state_dict().items()})


def test_the_average_is_validated_tested_and_saved(tiny):
    noted = Weights()
    run = tiny("optimizer.ema=0.8", "trainer.max_epochs=2", callbacks=[noted])
    average = {name: value.double() for name, value in noted.after[0].items()}
    at_end_of_epoch = {}
    for number, weights in enumerate(noted.after[1:], start=2):
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = 0.8 * average[name] + 0.2 * value.double()
        at_end_of_epoch[number] = copy.deepcopy(average)
    last, best = (torch.load(file, weights_only=True) for file in (run.last, run.best))
    for content in (last, best):
        expected = at_end_of_epoch[content["global_step"]]
        for name, value in content["state_dict"].items():
            if value.is_floating_point():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    for name, value in last["current_model_state"].items():
        assert torch.equal(value, noted.after[-1][name])


def test_the_pictures_of_a_validation_are_those_of_the_average(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(callbacks.pictures, "takers", lambda loggers: [*loggers][:1])

    def predicted(model, dataset, indices):
        seen.append({f"model.{name}": value.clone() for name, value in model.state_dict().items()})
        return []

    monkeypatch.setattr(callbacks, "predict_samples", predicted)
    run = tiny("optimizer.ema=0.8", "trainer.max_epochs=1", "gradients.every_n_steps=0")
    average = torch.load(run.last, weights_only=True)["state_dict"]
    assert [name for name, value in seen[-1].items() if not torch.equal(value, average[name])] == []


@pytest.mark.parametrize(
    "given",
    [
        (),
        (
            "optimizer.ema=0.8",
            "optimizer.encoder_lr_factor=0.1",
            "optimizer.schedule=poly",
            "optimizer.warmup_epochs=1",
        ),
        ("optimizer.name=sgd", "optimizer.schedule=plateau", "optimizer.patience=0", "early_stopping=5"),
        ("optimizer.name=lion", "optimizer.schedule=one_cycle"),
        # their states hold a count in a tensor, means over some axes, a number format
        *((f"optimizer.name={name}",) for name in ("lamb", "adafactor", "adafactorbv")),
        ("data.augment=[{OneOf:{transforms:[ElasticTransform,{Affine:{rotate:[-30,30]}}],p:0.8}},GaussNoise]",),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(given, tiny, stopped):
    given = (*given, "trainer.max_epochs=3", "checkpoint.every_n_steps=3")
    whole, broken = tiny("name=whole", *given), stopped(11, *given)
    train(options_of_resumed_run([f"resume={broken.path}"]))
    states = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    for part in ("state_dict", "current_model_state", "averaging_state"):
        first, second = (state.get(part, {}) for state in states)
        assert [name for name, value in first.items() if not torch.equal(value, second[name])] == [], part
    for part in ("optimizer_states", "lr_schedulers", "global_step"):
        assert str(states[0][part]) == str(states[1][part])
    assert whole.metrics.read_text() == broken.metrics.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        # 16 training pictures in batches of 4 are four or five steps an epoch
        (("optimizer.warmup_epochs=3",), "lr would never reach its full value"),
        (("optimizer.warmup_epochs=0.01",), "is none"),
        (("model.freeze_encoder=2", "optimizer.encoder_lr_factor=0.1"), "encoder_lr_factor=0.1 does nothing"),
    ],
)
def test_first_epochs_that_outlast_the_steps_are_refused_before_training(given, said, tiny, tmp_path):
    with pytest.raises(UserError, match=said):
        tiny("trainer.max_epochs=9", "trainer.max_steps=6", "name=refused", *given)
    assert not [*tmp_path.rglob("refused")]
    steps = tiny("trainer.max_epochs=9", "trainer.max_steps=6", "optimizer.warmup_epochs=1", "name=trained")
    assert steps.summary.exists()


def test_a_training_ends_early_and_goes_on_where_asked(tiny, capsys):
    run = tiny("early_stopping=2", "trainer.max_epochs=9", "optimizer.lr=1e-12")
    rows = pd.read_csv(run.metrics)
    validations = int((rows["name"] == "val/iou").sum())
    assert validations < 9
    assert "early_stopping: 2 validations without a val/iou above" in capsys.readouterr().out
    steps = torch.load(run.last, weights_only=True)["global_step"]
    with pytest.raises(
        UserError, match=r"early_stopping=2 has ended this run(.|\n)*early_stopping=null allow_changes="
    ):
        check_resume(options_of_resumed_run([f"resume={run.path}", "trainer.max_epochs=12"]))
    longer = options_of_resumed_run([f"resume={run.path}", "early_stopping=null", "allow_changes=[early_stopping]"])
    check_resume(longer)
    train(longer)
    assert json.loads(run.summary.read_text())["epochs"] == 9
    assert torch.load(run.last, weights_only=True)["global_step"] > steps


def test_a_run_that_has_ended_early_tests_again_and_trains_no_further(tiny):
    run = tiny("early_stopping=2", "trainer.max_epochs=9", "optimizer.lr=1e-12")
    steps = torch.load(run.last, weights_only=True)["global_step"]
    run.summary.unlink()
    train(options_of_resumed_run([f"resume={run.path}"]))
    assert torch.load(run.last, weights_only=True)["global_step"] == steps


def test_a_resumed_run_follows_a_longer_schedule(tiny):
    given = ("optimizer.schedule=poly", "optimizer.encoder_lr_factor=0.5", "optimizer.lr=1e-3")
    run = tiny("trainer.max_epochs=1", *given)
    run.summary.unlink()
    more = ["trainer.max_epochs=2", "allow_changes=[trainer.max_epochs]"]
    noted = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            noted.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    train(options_of_resumed_run([f"resume={run.path}", *more]), [Rates()])
    own, steps = Optimization(schedule="poly"), 2 * len(noted)
    expected = [1e-3 * own.factor(step, steps) for step in range(len(noted), steps)]
    np.testing.assert_allclose([rates[1] for rates in noted], expected, rtol=1e-12)
    np.testing.assert_allclose([rates[0] for rates in noted], [rate / 2 for rate in expected], rtol=1e-12)


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        (("model.weights=null",), 1.0),
        (("model.weights=imagenet",), 0.2),
        (("model.weights=imagenet", "optimizer.encoder_lr_factor=1"), 1.0),
        (("model.weights=null", "optimizer.encoder_lr_factor=0.5"), 0.5),
        (("model.weights=imagenet", "model.freeze_encoder=true"), 0.2),  # of no weights
    ],
)
def test_an_encoder_with_trained_weights_has_a_fifth_of_the_rate(given, factor):
    options = compose("train", Train, ["data=folder", "data.root=.", "data.classes=[a,b]", *given])
    assert (options.optimizer.lr, options.encoder_lr_factor) == (1e-3, factor)


def test_its_rate_stays_when_a_run_is_resumed_without_what_it_began_with(tiny, stopped):
    first = tiny("trainer.max_epochs=1", "name=first")
    given = (f"model.weights={first.path}", "optimizer.encoder_lr_factor=null", "checkpoint.every_n_steps=3")
    whole, broken = tiny("name=whole", *given), stopped(7, *given)
    shutil.rmtree(first.path)
    train(options_of_resumed_run([f"resume={broken.path}"]))
    states = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    first_rates, second_rates = ([g["initial_lr"] for g in s["optimizer_states"][0]["param_groups"]] for s in states)
    assert first_rates == second_rates == [pytest.approx(2e-4), 1e-3]
    weights, again = (state["state_dict"] for state in states)
    assert [name for name, value in weights.items() if not torch.equal(value, again[name])] == []
