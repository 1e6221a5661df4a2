"""The number format that a training computes in where none is asked for."""

import os

import pytest
import torch

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training import build, precision
from unetseg.training.precision import DOUBLE, FOR_RANKS, FULL, HALF, MIXED, best_precision, describe, scoring_precision


@pytest.fixture
def timed_cpu(monkeypatch):
    """Return a function that gives this machine a CPU with bfloat16, with these seconds for a turn in each format."""

    def give(full: float, mixed: float) -> None:
        precision.bfloat16_gain.cache_clear()
        monkeypatch.setattr(precision, "_seconds", lambda convolution, images, is_mixed: mixed if is_mixed else full)

    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(FOR_RANKS, "")  # so that it's as before at the end
    yield give
    precision.bfloat16_gain.cache_clear()


@pytest.mark.parametrize(("full", "mixed", "best"), [(4.0, 1.0, MIXED), (2.0, 1.0, MIXED), (1.0, 1.0, FULL),
                                                     (82.0, 128.0, FULL)])  # fmt: skip
def test_a_cpu_with_bfloat16_computes_in_it_where_that_was_clearly_faster(timed_cpu, full, mixed, best):
    timed_cpu(full, mixed)
    assert best_precision("cpu") == best
    assert os.environ[FOR_RANKS] == best


def test_a_process_measures_once(timed_cpu, monkeypatch):
    timed_cpu(4.0, 1.0)
    assert best_precision("cpu") == MIXED
    monkeypatch.setattr(precision, "_seconds", lambda *_: 1 / 0)
    assert best_precision("cpu") == MIXED


def test_further_processes_of_a_run_take_the_answer_of_the_first(timed_cpu, monkeypatch):
    timed_cpu(1.0, 1.0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(FOR_RANKS, MIXED)
    assert best_precision("cpu") == MIXED


def test_processes_that_cannot_agree_on_a_measurement_take_the_cpus_word(timed_cpu, monkeypatch):
    timed_cpu(1.0, 4.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert best_precision("cpu") == MIXED


def test_a_cpu_without_bfloat16_is_not_timed(monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "_seconds", lambda *_: 1 / 0)
    assert best_precision("cpu") == FULL


@pytest.mark.parametrize(
    ("trained_in", "scored_in"),
    [(FULL, FULL), (MIXED, MIXED), (DOUBLE, DOUBLE), (None, MIXED), (HALF, MIXED), ("bf16-true", MIXED)],
)
def test_a_checkpoint_is_scored_in_the_format_of_its_training(timed_cpu, trained_in, scored_in):
    timed_cpu(4.0, 1.0)
    assert scoring_precision(trained_in, "cpu") == scored_in


def test_a_checkpoint_in_bfloat16_is_scored_in_it_also_where_it_is_slower_but_not_where_there_is_none(
    timed_cpu, monkeypatch
):
    timed_cpu(1.0, 4.0)
    assert scoring_precision(MIXED, "cpu") == MIXED
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    assert scoring_precision(MIXED, "cpu") == FULL


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_scores_in_every_format_that_it_can_train_in(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    for trained_in in (FULL, MIXED, HALF, DOUBLE):
        assert scoring_precision(trained_in, "gpu") == trained_in
    assert scoring_precision(None, "gpu") == (MIXED if native else FULL)


def test_the_format_is_told_with_the_trainings_where_they_differ():
    assert describe(FULL, FULL) == "scored in 32-true"
    assert describe(MIXED, HALF) == "scored in bf16-mixed; trained in 16-mixed"
    assert describe(MIXED, None) == "scored in bf16-mixed; the checkpoint doesn't say what it was trained in"


def test_the_measurement_draws_no_random_numbers(monkeypatch):
    monkeypatch.setattr(precision, "ROUNDS", 1)
    before = torch.get_rng_state()
    assert 0 < precision.bfloat16_gain.__wrapped__() < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_a_format_that_is_asked_for_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "best_precision", lambda accelerator: 1 / 0)
    trainer = build.make_trainer({"accelerator": "cpu", "precision": "64-true"}, [], [], tmp_path)
    assert trainer.precision == "64-true"


def test_a_run_that_is_resumed_keeps_its_format_unless_another_is_asked_for(tmp_path):
    options = compose("train", Train, ["data=synthetic"]).model_copy(update={"resume": str(tmp_path)})
    last = tmp_path / "checkpoints/last.ckpt"
    last.parent.mkdir()
    assert build.trainer_arguments(options)["precision"] is None, "nothing is recorded yet"
    for recorded, kept in ((MIXED, MIXED), (FULL, FULL), ("anything", None)):
        torch.save({"precision": recorded}, last)
        assert build.trainer_arguments(options)["precision"] == kept
    options.trainer["precision"] = "64-true"
    assert build.trainer_arguments(options)["precision"] == "64-true"


@pytest.mark.parametrize("value", ["auto", "bf16-true", "16-true", "transformer-engine", "128", "7"])
def test_a_format_that_no_run_is_scored_in_is_refused(value):
    with pytest.raises(UserError, match=f"trainer.precision={value} is not accepted") as caught:
        compose("train", Train, ["data=synthetic", f"trainer.precision={value}"])
    assert "null, 32-true, bf16-mixed, 16-mixed or 64-true" in str(caught.value)
