"""Which of a run's two checkpoints is tested, and is meant by its folder."""

import json
import shutil

import lightning as L
import pytest
import torch

import unetseg
from unetseg.errors import UserError
from unetseg.inference.export import save_pretrained
from unetseg.model import checkpoint
from unetseg.options import recorded
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.reporting import results, scores
from unetseg.runs.folder import check_resume
from unetseg.train import options_of_resumed_run, train

ACCEPTED = ("data=folder", "data.root=.", "data.classes=[a,b]", "trainer.max_epochs=5", "model.weights=null")


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ((), "last"),
        (("optimizer.schedule=poly",), "last"),
        (("optimizer.schedule=one_cycle",), "last"),
        (("optimizer.schedule=constant",), "best"),
        (("optimizer.schedule=plateau",), "best"),
        (("trainer.max_epochs=-1", "+trainer.max_time=00:01:00:00"), "best"),
        (("checkpoint.choose=best",), "best"),
        (("recipe=from_scratch",), "best"),
    ],
)
def test_the_last_weights_are_chosen_where_the_rate_falls_to_0(given, chosen):
    assert compose("train", Train, [*ACCEPTED, *given]).chooses_last(ended_early=False) == (chosen == "last")


def test_a_training_that_is_ended_early_chooses_the_best_and_says_so(tiny, capsys):
    class End(L.Callback):
        def __init__(self, epoch):
            self.epoch = epoch

        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch >= self.epoch

    given = ("checkpoint.choose=null", "optimizer.lr=1e-3", "trainer.max_epochs=3")
    whole = tiny("name=whole", *given)
    assert "testing last.ckpt, the weights of the last step" in capsys.readouterr().out
    ended = tiny("name=ended", *given, callbacks=[End(0)])
    assert "testing best.ckpt, those of the best val/iou" in capsys.readouterr().out
    at_the_end = tiny("name=at_the_end", *given, callbacks=[End(2)])
    chosen = [json.loads(run.summary.read_text())["checkpoint"] for run in (whole, ended, at_the_end)]
    assert chosen == ["last.ckpt", "best.ckpt", "last.ckpt"]


@pytest.fixture
def of_last(tiny):
    """A run whose last.ckpt was tested; its best.ckpt has other weights, which take a pet for the background."""
    run = tiny("checkpoint.choose=last", "name=of_last")
    best = torch.load(run.best, weights_only=True)
    for name, value in best["state_dict"].items():
        if ".segmentation_head." in name:
            value.neg_()
    torch.save(best, run.best)
    return run


def test_the_tested_checkpoint_is_what_the_folder_means(of_last, tmp_path):
    summary = json.loads(of_last.summary.read_text())
    assert summary["checkpoint"] == "last.ckpt"
    found = {
        path: unetseg.evaluate(f"output={tmp_path}/{number}", checkpoint=str(path)).summary["test/iou"]
        for number, path in enumerate((of_last.path, of_last.last, of_last.best))
    }
    assert found[of_last.path] == found[of_last.last] == pytest.approx(summary["test/iou"], abs=1e-12)
    assert found[of_last.best] != found[of_last.last]
    weights = [checkpoint.load(path)[0].state_dict() for path in (of_last.path, of_last.last, of_last.best)]
    same = [all(torch.equal(value, other[name]) for name, value in weights[0].items()) for other in weights[1:]]
    assert same == [True, False]


def test_a_folder_that_has_lost_it_gives_the_other_and_says_so(of_last, capsys):
    of_last.last.unlink()
    assert checkpoint.checkpoint_file(of_last.path) == of_last.best
    assert f"{of_last.path} holds no last.ckpt; its best.ckpt is taken" in capsys.readouterr().err
    of_last.best.unlink()
    with pytest.raises(UserError, match=r"holds no checkpoints/last\.ckpt"):
        checkpoint.checkpoint_file(of_last.path)


@pytest.mark.parametrize("content", ["{", "[]", '{"checkpoint": "../../etc/passwd"}', '{"checkpoint": 3}', "[" * 9999])
def test_a_summary_that_names_none_is_refused(of_last, content):
    of_last.summary.write_text(content)
    with pytest.raises(UserError, match=r"summary\.json"):
        checkpoint.load(of_last.path)


def test_an_earlier_run_means_its_best(of_last):
    summary = json.loads(of_last.summary.read_text())
    del summary["checkpoint"]
    of_last.summary.write_text(json.dumps(summary))
    assert checkpoint.checkpoint_file(of_last.path) == of_last.best


def test_a_run_that_goes_on_means_its_best_so_far_and_says_so(of_last, capsys, tmp_path):
    of_last.summary.unlink()
    assert checkpoint.checkpoint_file(of_last.path) == of_last.best
    assert f"{of_last.path} is not finished; its best.ckpt is taken" in capsys.readouterr().err
    evaluated = unetseg.evaluate(f"output={tmp_path}/out", checkpoint=str(of_last.path))
    assert evaluated.summary["checkpoint"] == str(of_last.best)


def test_a_report_uses_the_evaluations_of_the_tested_checkpoint_alone(of_last):
    for file in (of_last.last, of_last.best):
        unetseg.evaluate(f"output={of_last.path}/evaluation/{file.stem}", "lesion=true", checkpoint=str(file))
    read = results.read(of_last.path)
    assert [name for _, _, name, _, _ in scores.lesions(read)] == ["last"]
    reason = "it is of best.ckpt, and the scores of the run are of last.ckpt"
    assert read.damaged == [("of_last/evaluation/best", reason)]
    summary = of_last.path / "evaluation/best/summary.json"
    summary.write_text(json.dumps({"checkpoint": str(of_last.path)}))  # as earlier versions
    assert [name for _, _, name, _, _ in scores.lesions(results.read(of_last.path))] == ["last"]


def test_a_damaged_one_is_told_with_the_other(of_last):
    of_last.last.write_bytes(of_last.last.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"(?s)last\.ckpt can't be loaded.*try: {of_last.best}"):
        checkpoint.load(of_last.path)


def test_a_card_has_the_scores_of_its_own_weights_alone(tiny, tmp_path):
    run = tiny("checkpoint.choose=last", "trainer.max_epochs=1", "model.encoder=resnet18")
    for number, (path, has_scores) in enumerate({run.path: True, run.last: True, run.best: False}.items()):
        save_pretrained(path, tmp_path / str(number))
        assert ("test/iou" in (tmp_path / str(number) / "README.md").read_text()) == has_scores
    run.summary.write_text("{")
    save_pretrained(run.last, tmp_path / "damaged")
    assert "test/iou" not in (tmp_path / "damaged/README.md").read_text()


def test_the_average_of_the_last_weights_is_tested(tiny, tmp_path):
    run = tiny("checkpoint.choose=last", "optimizer.ema=0.8", "optimizer.lr=0.05", "trainer.max_epochs=2")
    again = unetseg.evaluate(f"output={tmp_path}/out", checkpoint=str(run.last)).summary
    assert again["test/iou"] == pytest.approx(json.loads(run.summary.read_text())["test/iou"], abs=1e-12)


def test_the_choice_of_a_run_stays_when_it_is_resumed(of_last):
    shutil.copy(of_last.summary, of_last.path / "kept.json")
    of_last.summary.unlink()
    with pytest.raises(UserError, match=r"checkpoint\.choose"):
        check_resume(options_of_resumed_run([f"resume={of_last.path}", "checkpoint.choose=best"]))
    train(options_of_resumed_run([f"resume={of_last.path}"]))
    now, before = (json.loads((of_last.path / name).read_text()) for name in ("summary.json", "kept.json"))
    assert (now["checkpoint"], now["test/iou"]) == ("last.ckpt", before["test/iou"])


def test_a_run_of_before_there_was_a_choice_keeps_to_what_it_did(tmp_path):
    options = compose("train", Train, list(ACCEPTED)).model_dump()
    del options["checkpoint"]["choose"], options["optimizer"]["encoder_lr_factor"]
    (tmp_path / "config.yaml").write_text(json.dumps(options))
    read = recorded.read_training(tmp_path / "config.yaml")
    assert (read["checkpoint"]["choose"], read["optimizer"]["encoder_lr_factor"]) == ("best", 1.0)
