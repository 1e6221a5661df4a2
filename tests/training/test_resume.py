"""A run that was stopped goes on to what it would have been."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import TINY

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import options_of_the_run, train
from unetseg.training import preflight
from unetseg.training.resume import make_checkpointing


def resume(run, *more):
    overrides = [f"resume={run.path}", *more]
    options = compose("train", Train, [*options_of_the_run(overrides), *overrides])
    preflight.train(options)
    return train(options)


class Stopped(Exception):
    pass


@pytest.fixture
def stopped(tiny, tmp_path):
    """Return a function that trains until the n-th step and returns the broken run folder."""

    def run(step, *overrides):
        import lightning as L

        class Stop(L.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                if trainer.global_step == step:
                    raise Stopped

        with pytest.raises(Stopped):
            tiny("name=stopped", *overrides, callbacks=[Stop()])
        return RunFolder(tmp_path / "stopped")

    return run


OPTIONS = ("trainer.max_epochs=3", "gradients.every_n_steps=2", "model.skip=[none,concat,add,concat]")


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The undisturbed run."""
    own = [f"data.root={drawn}", f"output={tmp_path_factory.mktemp('whole')}"]
    return RunFolder(train(compose("train", Train, [*TINY, *own, *OPTIONS]))["folder"])


STEPS = ("checkpoint.every_n_steps=3",)


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (2, ()),  # before the first checkpoint
        (12, ("data.workers=2",)),
        (11, (*STEPS, "data.workers=2")),
    ],
)
def test_the_resumed_run_equals_the_undisturbed_one(whole, stopped, step, more):
    broken = stopped(step, *OPTIONS, *more)
    resume(broken)
    states = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        assert str(states[0][part]) == str(states[1][part])
    assert states[0]["global_step"] == 15
    assert all(torch.equal(states[0]["state_dict"][k], states[1]["state_dict"][k]) for k in states[0]["state_dict"])
    for table in ("metrics", "gradient_flow", "per_image"):
        assert getattr(whole, table).read_text() == getattr(broken, table).read_text()


def test_the_best_checkpoint_is_still_known_after_the_folder_was_moved(stopped, tmp_path):
    broken = stopped(12, *OPTIONS)
    before = torch.load(broken.last, weights_only=True)["callbacks"]
    moved = RunFolder(shutil.move(broken.path, tmp_path / "moved"))
    saver, _ = make_checkpointing(moved)
    state = before[saver.state_key]
    saver.load_state_dict(state)
    assert saver.best_model_path == str(moved.best)
    assert saver.best_model_score == state["best_model_score"]
    resume(moved)
    assert moved.summary.exists()


def test_other_options_are_refused_and_listed(stopped):
    broken = stopped(2, *OPTIONS)
    with pytest.raises(UserError, match=r"model.encoder: resnet18 -> resnet34; optimizer.lr: 0.001 -> 0.1"):
        resume(broken, "model.encoder=resnet34", "optimizer.lr=0.1")


def test_options_allowed_by_name_may_differ_and_what_they_were_is_kept(stopped):
    broken = stopped(7, *OPTIONS)
    before = broken.config.read_text()
    resume(broken, "trainer.max_epochs=4", "allow_changes=[trainer.max_epochs]")
    assert (broken.path / "config_1.yaml").read_text() == before
    changed = yaml.safe_load(broken.config.read_text())
    assert changed == {**yaml.safe_load(before), "trainer": {**changed["trainer"], "max_epochs": 4}}
    assert json.loads(broken.summary.read_text())["epochs"] == 4


def test_weights_of_another_model_are_refused_also_when_the_change_is_allowed(stopped):
    broken = stopped(7, *OPTIONS)
    with pytest.raises(UserError, match="the weights don't fit this model"):
        resume(broken, "model.skip=none", "allow_changes=[model.skip]")


def test_a_finished_run_is_refused(tiny):
    with pytest.raises(UserError, match="this run is finished"):
        resume(tiny("trainer.max_epochs=1"))


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"it holds a config\.yaml"):
        compose("train", Train, ["data=synthetic", f"resume={tmp_path}"])


def test_a_folder_is_trained_in_by_one_process_at_a_time(stopped):
    broken = stopped(2, *OPTIONS)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 6); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, broken.path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="is being trained by another process"):
            resume(broken)
    finally:
        other.kill()
        other.wait()
    resume(broken)


def test_the_record_of_the_options_stays_as_it_was(stopped):
    broken = stopped(7, *OPTIONS)
    before = yaml.safe_load(broken.config.read_text())
    resume(broken)
    assert yaml.safe_load(broken.config.read_text()) == before
