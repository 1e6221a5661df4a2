"""The number format that a training computes in where none is asked for."""

import os

import pytest
import torch

from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.training import build, precision
from unetseg.training.precision import FOR_RANKS, FULL, MIXED, best_precision, scoring_precision


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
    ("trained_in", "scored_in"), [(FULL, FULL), (MIXED, MIXED), (None, MIXED), ("16-mixed", MIXED)]
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
