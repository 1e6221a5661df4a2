"""A run that was stopped goes on to what it would have been."""

import json
import math
import os
import shutil
import subprocess
import sys

import lightning as L
import pytest
import torch
import yaml
from conftest import TINY

from unetseg.errors import UserError
from unetseg.model.checkpoint import load
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import options_of_resumed_run, train
from unetseg.training import preflight
from unetseg.training.resume import make_checkpointing, rewind


def resume(run, *more, callbacks=()):
    overrides = [f"resume={run.path}", *more]
    options = options_of_resumed_run(overrides)
    preflight.train(options)
    return train(options, callbacks)


OPTIONS = ("trainer.max_epochs=3", "gradients.every_n_steps=2", "model.skip=[none,concat,add,shuffled]")


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The undisturbed run."""
    own = [f"data.root={drawn}", f"output={tmp_path_factory.mktemp('whole')}"]
    return RunFolder(train(compose("train", Train, [*TINY, *own, *OPTIONS]))["folder"])


STEPS = ("checkpoint.every_n_steps=3",)


def assert_equal(whole, broken):
    """The two run folders hold the same weights, states and tables, to the last bit."""
    states = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    for part in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
        assert str(states[0][part]) == str(states[1][part])
    assert all(torch.equal(states[0]["state_dict"][k], states[1]["state_dict"][k]) for k in states[0]["state_dict"])
    for table in ("metrics", "gradient_flow", "per_image"):
        assert getattr(whole, table).read_text() == getattr(broken, table).read_text()


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
    assert_equal(whole, broken)
    last = torch.load(whole.last, weights_only=True)
    assert last["global_step"] == 15
    assert last["precision"] == json.loads(whole.summary.read_text())["precision"], "with which a run goes on"


def test_a_run_of_crops_that_was_stopped_within_an_epoch_goes_on_likewise(tiny, stopped):
    crops = ("data.crop=32", "data.scale=0.8", "trainer.max_epochs=2", "gradients.every_n_steps=4", *STEPS)
    undisturbed = tiny("name=whole", *crops)
    broken = stopped(17, *crops, "data.workers=2")
    resume(broken)
    assert_equal(undisturbed, broken)


class Stop(Exception):
    """Ends a training as a stop in the second epoch does."""


@pytest.fixture(scope="module")
def stopped_once(drawn, tmp_path_factory):
    """A run that was stopped in its second epoch, after its first checkpoint."""

    class AtSeven(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 7:
                raise Stop

    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stop):
        train(
            compose("train", Train, [*TINY, f"data.root={drawn}", f"output={folder}", "name=run", *OPTIONS]),
            [AtSeven()],
        )
    return RunFolder(folder / "run")


@pytest.fixture
def broken(stopped_once, tmp_path):
    """A copy of that run."""
    return copied(stopped_once, tmp_path / "broken")


@pytest.mark.quick
def test_the_best_checkpoint_is_still_known_after_the_folder_was_moved(broken, tmp_path):
    before = torch.load(broken.last, weights_only=True)["callbacks"]
    moved = RunFolder(shutil.move(broken.path, tmp_path / "moved"))
    saver, _ = make_checkpointing(moved)
    state = before[saver.state_key]
    saver.load_state_dict(state)
    assert saver.best_model_path == str(moved.best)
    assert saver.best_model_score == state["best_model_score"]
    resume(moved)
    assert moved.summary.exists()


@pytest.fixture
def unfinished(whole, tmp_path):
    """A copy of the undisturbed run from before its test, with an epoch to go."""
    run = RunFolder(shutil.copytree(whole.path, tmp_path / "unfinished"))
    run.summary.unlink()
    return run


def changed(path, alter) -> None:
    """Change what a checkpoint holds."""
    content = torch.load(path, weights_only=True)
    alter(content)
    torch.save(content, path)


MORE = ("trainer.max_epochs=4", "allow_changes=[trainer.max_epochs]")


def test_paths_in_a_checkpoint_are_not_followed(unfinished, tmp_path, monkeypatch):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/photo").write_text("precious")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("was fetched"))
    saver, _ = make_checkpointing(unfinished)

    def alter(content):
        victim = str(tmp_path / "victim")
        content["callbacks"][saver.state_key] |= {
            "dirpath": str(unfinished.checkpoints),
            "best_model_path": "http://127.0.0.1:9/best.ckpt",
            "kth_best_model_path": victim,
            "best_k_models": {victim: torch.tensor(-1.0)},
            "best_model_score": torch.tensor(-1.0),
        }

    changed(unfinished.last, alter)
    resume(unfinished, *MORE)
    assert (tmp_path / "victim/photo").read_text() == "precious"


DAMAGE = {
    "no epoch": lambda c: c.pop("epoch"),
    "text for a number": lambda c: c.update(global_step="15"),
    "another version": lambda c: c.update({"pytorch-lightning_version": "0.1.0"}),
    "weights that are none": lambda c: c["state_dict"].update({"model.mean": 3}),
    "sparse weights": lambda c: c["state_dict"].update({"model.mean": torch.zeros(3).to_sparse()}),
    "moments of other weights": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3, 3)),
    "a moment of one number": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(())),
    "means of other weights": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg_sq_row=torch.zeros(99)),
    "no groups": lambda c: c["optimizer_states"][0].pop("param_groups"),
    "a schedule of tensors": lambda c: c["lr_schedulers"][0].update(base_lrs=torch.zeros(3)),
    "counts that are texts": lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="1"),
    "no loop": lambda c: c["loops"].pop("fit_loop"),
    "no tables": lambda c: c["callbacks"]["Continuation"].pop("tables"),
    "random numbers of nothing": lambda c: c["callbacks"]["Continuation"]["random"].update(python=(3, (1,), None)),
}


@pytest.mark.parametrize("alter", DAMAGE.values(), ids=DAMAGE)
def test_what_a_checkpoint_may_not_hold_is_named_in_a_message(unfinished, alter):
    changed(unfinished.last, alter)
    with pytest.raises(UserError, match=r"checkpoints.* can't be read: "):
        resume(unfinished, *MORE)


def damage(path, kind, tmp_path):
    """Cut a checkpoint short, flip a bit of it, or put one in its place that runs code when it is unpickled."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[: 10**6] if kind == "cut" else content)
    if kind == "code":
        torch.save({"state_dict": Bomb()}, path)


@pytest.mark.parametrize("kind", ["cut", "flipped", "code"])
def test_a_damaged_last_checkpoint_is_named_and_nothing_of_it_runs(unfinished, tmp_path, kind):
    damage(unfinished.last, kind, tmp_path)
    with pytest.raises(UserError, match=r"last\.ckpt can't be read: "):
        resume(unfinished)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_best_checkpoint_is_forgotten_with_a_word_and_nothing_of_it_runs(unfinished, tmp_path, capsys):
    damage(unfinished.best, "code", tmp_path)
    resume(unfinished)
    assert "best.ckpt is gone or damaged" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", [".lock", "metrics.csv", "config.yaml", "checkpoints", "checkpoints/last.ckpt", "wandb"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(unfinished, tmp_path, name):
    outside, path = tmp_path / "outside", unfinished.path / name
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    before = outside.read_bytes() if outside.is_file() else sorted(outside.iterdir())
    path.symlink_to(outside)
    with pytest.raises(UserError, match=f"{name} is a link, a pipe or a device"):
        resume(unfinished)
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.iterdir()))


def test_rows_that_a_power_cut_took_are_told(unfinished, capsys):
    rows = unfinished.metrics.read_bytes()
    unfinished.metrics.write_bytes(rows[: len(rows) // 2])
    rewind(unfinished)
    assert "metrics.csv is " in capsys.readouterr().err
    assert unfinished.metrics.read_bytes() == rows[: rows.rfind(b"\n", 0, len(rows) // 2) + 1]


def test_options_in_the_folder_cannot_allow_their_own_change(unfinished):
    text = unfinished.config.read_text().replace("allow_changes: []", "allow_changes: [seed]")
    unfinished.config.write_text(text)
    with pytest.raises(UserError, match="the run has other options: seed: 0 -> 5"):
        resume(unfinished, "seed=5")


def test_other_options_are_refused_and_listed(broken):
    with pytest.raises(UserError, match=r"model.encoder: tu-test_resnet -> resnet34; optimizer.lr: 0.001 -> 0.1"):
        resume(broken, "model.encoder=resnet34", "optimizer.lr=0.1")


def test_options_allowed_by_name_may_differ_and_what_they_were_is_kept(broken):
    before = broken.config.read_text()
    resume(broken, "trainer.max_epochs=4", "allow_changes=[trainer.max_epochs]")
    assert (broken.path / "config_1.yaml").read_text() == before
    changed = yaml.safe_load(broken.config.read_text())
    assert changed == {**yaml.safe_load(before), "trainer": {**changed["trainer"], "max_epochs": 4}}
    assert json.loads(broken.summary.read_text())["epochs"] == 4


def test_weights_of_another_model_are_refused_also_when_the_change_is_allowed(broken):
    before = broken.config.read_text()
    with pytest.raises(UserError, match="the weights don't fit this model"):
        resume(broken, "model.skip=none", "allow_changes=[model.skip]")
    assert broken.config.read_text() == before, "or the run could never go on again"
    assert not (broken.path / "config_1.yaml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.initialisation=glorot", "model.initialisation can't differ"),
        ("model.strict_weights=false", "does nothing with model.weights=null"),
    ],
)
def test_options_of_the_first_weights_are_refused_as_they_would_not_be_followed(small, change, message, tmp_path):
    small = copied(small, tmp_path / "small")
    small.config.write_text(small.config.read_text().replace("tu-test_resnet", "resnet18"))  # which has glorot
    with pytest.raises(UserError, match=message):
        resume(small, change, "trainer.max_epochs=4", f"allow_changes=[{change.partition('=')[0]},trainer.max_epochs]")


SMALL = ("data.size=32", "data.train_images=12", "data.test_images=2", "data.batch_size=2", "gradients.every_n_steps=0",
         "trainer.max_epochs=2", "trainer.log_every_n_steps=1")  # fmt: skip
"""Five steps an epoch."""


def copied(run, folder):
    """Return a copy of a run folder; its checkpoints, which are replaced and never changed, are the same files."""
    for path in run.path.rglob("*"):
        target = folder / path.relative_to(run.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            (os.link if path.suffix == ".ckpt" else shutil.copy)(path, target)
    return RunFolder(folder)


class Copies(L.Callback):
    """Copies the run folder before certain steps; in the middle of an epoch with a checkpoint of just then."""

    def __init__(self, run, steps, folder):
        self.run, self.steps, self.folder = run, steps, folder

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step in self.steps:
            if batch_idx:
                trainer.save_checkpoint(self.run.last)
            copied(self.run, self.folder / f"at_{trainer.global_step}")


@pytest.fixture(scope="module")
def small(drawn, tmp_path_factory):
    """A finished run of two epochs, with copies of how it was before its steps 5, 6 and 7."""
    folder = tmp_path_factory.mktemp("small")
    run = RunFolder(folder / "small")
    options = compose("train", Train, [*TINY, f"data.root={drawn}", f"output={folder}", "name=small", *SMALL])
    train(options, [Copies(run, (5, 6, 7), folder)])
    return run


@pytest.fixture
def ended(small, tmp_path):
    """The same run, as if it had been killed in its test."""
    run = copied(small, tmp_path / "ended")
    for file in run.results:
        file.unlink()
    return run


class Rates(L.Callback):
    """Keeps the learning rate and weight decay of each step."""

    def __init__(self):
        self.lr, self.decay, self.images = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        group = trainer.optimizers[0].param_groups[0]
        self.lr.append(group["lr"])
        self.decay.append(group["weight_decay"])
        self.images.append(len(batch.indices))


def cosine(lr, steps, total):
    return pytest.approx([lr * (1 + math.cos(math.pi * step / total)) / 2 for step in steps], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("start", "change", "lr", "steps", "total"),
    [
        (5, "trainer.max_epochs=3", 1e-3, range(5, 15), 15),
        (6, "optimizer.lr=0.01", 0.01, range(6, 10), 10),
        (7, "data.batch_size=4", 1e-3, range(4, 6), 6),  # three steps an epoch, the first of which was two of before
        (5, "trainer.accumulate_grad_batches=2", 1e-3, [3, 3, 4, 4, 5], 6),
    ],
)
def test_a_change_that_is_allowed_makes_the_schedule_of_the_new_options(
    small, tmp_path, start, change, lr, steps, total
):
    run, rates = copied(RunFolder(small.path.parent / f"at_{start}"), tmp_path / "run"), Rates()
    allowed = f"allow_changes=[{change.partition('=')[0]},optimizer.weight_decay]"
    resume(run, change, allowed, "optimizer.weight_decay=0.5", callbacks=[rates])
    assert rates.lr == cosine(lr, steps, total)
    assert set(rates.decay) == {0.5}
    group = torch.load(run.last, weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (lr, 0.5)
    if change == "data.batch_size=4":
        assert rates.images == [4, 2], "the six pictures that the epoch has left"


def test_a_batch_size_that_the_epoch_begun_cannot_take_is_refused(small, tmp_path):
    run = copied(RunFolder(small.path.parent / "at_6"), tmp_path / "run")
    with pytest.raises(UserError, match=r"after 2 pictures; .* 5 at once\n.*divides 2"):
        resume(run, "data.batch_size=5", "allow_changes=[data.batch_size]")
    assert yaml.safe_load(run.config.read_text())["data"]["batch_size"] == 2


def test_a_finished_run_is_refused_with_the_way_to_extend_it(small):
    with pytest.raises(UserError, match=r"this run is finished(.|\n)*try: resume=.* trainer.max_epochs=4"):
        resume(small)
    with pytest.raises(UserError, match=r"trainer\.max_epochs: 2 -> 1"):
        resume(small, "trainer.max_epochs=1")


def test_a_change_that_is_refused_leaves_the_run_as_it_was(small, tmp_path):
    run = copied(small, tmp_path / "copy")
    before = {path.name: path.read_text() for path in (*run.results, *run.tables, run.config) if path.exists()}
    with pytest.raises(UserError, match="val_check_interval=99 is more than"):
        resume(
            run, "trainer.max_epochs=3", "trainer.val_check_interval=99", "allow_changes=[trainer.val_check_interval]"
        )
    assert {name: (run.path / name).read_text() for name in before} == before
    assert not list(run.path.glob("*_1.*"))


def test_more_epochs_extend_a_finished_run_and_its_earlier_results_are_kept(small, tmp_path):
    run, rates = copied(small, tmp_path / "copy"), Rates()
    assert run.edge_distance_per_image in run.results
    before = {path.name: path.read_text() for path in (*run.results, run.config)}
    resume(run, "trainer.max_epochs=3", callbacks=[rates])
    assert rates.lr == cosine(1e-3, range(10, 15), 15)
    assert json.loads(run.summary.read_text())["epochs"] == 3
    for name, text in before.items():
        stem, _, ending = name.partition(".")
        assert (run.path / f"{stem}_1.{ending}").read_text() == text
    assert yaml.safe_load(run.config.read_text())["trainer"]["max_epochs"] == 3


def test_without_a_validation_in_each_epoch_the_last_checkpoint_is_of_the_last_one(tiny, tmp_path):
    copies = Copies(RunFolder(tmp_path / "seldom"), (5,), tmp_path)
    whole = tiny(*SMALL, "trainer.check_val_every_n_epoch=2", "name=seldom", callbacks=[copies])
    broken = RunFolder(tmp_path / "at_5")
    assert torch.load(broken.last, weights_only=True)["global_step"] == 5
    resume(broken)
    last = [torch.load(run.last, weights_only=True) for run in (broken, whole)]
    assert last[0]["global_step"] == last[1]["global_step"] == 10
    assert broken.metrics.read_text() == whole.metrics.read_text()
    assert all(w.equal(last[1]["state_dict"][name]) for name, w in last[0]["state_dict"].items())


def test_a_best_checkpoint_that_is_gone_is_said_and_the_last_weights_are_tested(ended, capsys):
    ended.best.unlink()
    summary = resume(ended)
    assert "the last weights are tested" in capsys.readouterr().out
    assert summary["val/iou"] is None
    assert load(ended.path)[1]["seed"] == 0, "last.ckpt, as there is no other"
    assert 0 <= summary["test/iou"] <= 1


def test_without_last_ckpt_a_run_is_not_begun_anew_over_its_best(ended):
    ended.last.unlink()
    best = ended.best.read_bytes()
    with pytest.raises(UserError, match=r"best\.ckpt has the weights alone(.|\n)*model\.weights=") as error:
        resume(ended)
    assert ended.best.read_bytes() == best
    assert "rm " not in str(error.value)
    ended.best.unlink()
    resume(ended)
    assert torch.load(ended.last, weights_only=True)["global_step"] == 10


def test_a_run_that_was_killed_before_its_first_last_ckpt_begins_anew(ended):
    ended.last.unlink()
    first = [line for line in ended.metrics.read_text().splitlines() if line.split(",")[1] in ("epoch", "0")]
    ended.metrics.unlink()  # it may be shared with the fixture's
    ended.metrics.write_text("\n".join(first) + "\n")
    resume(ended)
    assert torch.load(ended.last, weights_only=True)["global_step"] == 10


def test_best_ckpt_has_the_weights_and_options_alone(ended):
    best, last = (torch.load(file, weights_only=True) for file in (ended.best, ended.last))
    assert best.keys() < last.keys()
    assert best["hyper_parameters"] == last["hyper_parameters"]
    assert best["state_dict"].keys() == last["state_dict"].keys()
    assert not {"optimizer_states", "callbacks"} & best.keys()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_last_ckpt_is_named_with_the_ways_on(ended, damage):
    content = bytearray(ended.last.read_bytes())
    middle = len(content) // 2
    if damage == "flipped":
        content[middle : middle + 20] = bytes(byte ^ 255 for byte in content[middle : middle + 20])
    ended.last.unlink()
    ended.last.write_bytes({"cut": content[:middle], "empty": b""}.get(damage, content))
    with pytest.raises(UserError, match=r"(?s)last\.ckpt can't be read.*weights=.*best\.ckpt name=NEW") as error:
        resume(ended)
    assert "rm " not in str(error.value)
    ended.best.unlink()
    ended.best.write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.ckpt can't be read(.|\n)*rm .*last\.ckpt .*best\.ckpt, and"):
        resume(ended)


def test_a_resume_that_was_refused_keeps_no_other_process_out(ended):
    ended.last.unlink()
    ended.last.write_bytes(b"")
    with pytest.raises(UserError) as error:
        resume(ended)
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    subprocess.run([sys.executable, "-c", take, ended.path / ".lock"], check=True)
    assert error.value  # what holds the frames of the refused run


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"it holds a config\.yaml"):
        compose("train", Train, ["data=synthetic", f"resume={tmp_path}"])


def test_a_folder_is_trained_in_by_one_process_at_a_time(broken):
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


def test_the_record_of_the_options_stays_as_it_was(broken):
    before = yaml.safe_load(broken.config.read_text())
    resume(broken)
    assert yaml.safe_load(broken.config.read_text()) == before


@pytest.mark.parametrize(
    "change",
    ["optimizer.name=sgd", "optimizer.arguments={betas:[0.5,0.9]}", "optimizer.encoder_lr_factor=0.1"],
)
def test_an_optimizer_with_a_state_of_another_kind_is_refused(small, change):
    with pytest.raises(UserError, match=rf"{change.partition('=')[0]} can't differ(.|\n)*model.weights="):
        resume(small, change, "trainer.max_epochs=4", f"allow_changes=[{change.partition('=')[0]},trainer.max_epochs]")


def test_rates_are_not_tried_on_a_resumed_run(small):
    with pytest.raises(UserError, match="find_lr=true without resume"):
        resume(small, "find_lr=true")


@pytest.mark.parametrize(
    ("change", "factors"),
    [
        ("optimizer.schedule=poly", [(1 - step / 10) ** 0.9 for step in range(7, 10)]),
        ("optimizer.schedule=plateau", [1, 1, 1]),
        ("optimizer.warmup_epochs=1", [(1 + math.cos(math.pi * (step - 5) / 5)) / 2 for step in range(7, 10)]),
    ],
)
def test_another_schedule_begins_at_the_step_of_the_run(small, tmp_path, change, factors):
    run, rates = copied(RunFolder(small.path.parent / "at_7"), tmp_path / "run"), Rates()
    resume(run, change, f"allow_changes=[{change.partition('=')[0]}]", callbacks=[rates])
    assert rates.lr == pytest.approx([1e-3 * factor for factor in factors])


class Kept(L.Callback):
    """Keeps what a run begins with: its weights, and how long it waits."""

    def on_train_epoch_start(self, trainer, module):
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}
        schedule, stop = trainer.lr_scheduler_configs[0].scheduler, trainer.early_stopping_callback
        self.patience = schedule.patience, stop.patience


def test_how_long_it_waits_and_whether_weights_are_averaged_is_what_the_resumed_run_is_asked_for(tiny):
    run = tiny("optimizer.schedule=plateau", "early_stopping=5", "optimizer.ema=0.8", *SMALL)
    last, kept = torch.load(run.last, weights_only=True), Kept()
    changes = {"optimizer.patience": 1, "early_stopping": 9, "optimizer.ema": "null", "trainer.max_epochs": 3}
    given = [f"{key}={value}" for key, value in changes.items()]
    resume(run, *given, f"allow_changes=[{','.join(changes)}]", callbacks=[kept])
    assert kept.patience == (1, 9)
    assert all(torch.equal(kept.weights[name], value) for name, value in last["current_model_state"].items())


def test_a_run_with_a_checkpoint_does_not_need_what_it_started_from(tiny, tmp_path):
    source = tiny("name=source", "trainer.max_epochs=1", "gradients.every_n_steps=0")
    run = tiny("name=started", f"model.weights={source.path}", "trainer.max_epochs=1", "gradients.every_n_steps=0")
    shutil.rmtree(source.path)
    run.summary.unlink()
    resume(run)
    assert run.summary.exists()
    assert yaml.safe_load(run.config.read_text())["model"]["weights"] == str(source.path)
    run.last.unlink()
    with pytest.raises(UserError, match=r"model\.weights"):
        resume(run)
