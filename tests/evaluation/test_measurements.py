"""evaluate mechanism=... of the whole network: tables, figures and refusals, of one small run."""

import shutil

import pandas as pd
import pytest
from conftest import TINY

from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation import hellinger, landscape, shattering
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import train

TABLES = {
    "landscape": ["direction", "a", "b", "loss"],
    "sharpness": [
        *("direction", "length", "curvature", "curvature_low", "curvature_high"),
        *("rise", "rise_low", "rise_high", "residual"),
    ],
    "shattering": ["depth", "lag", "acf", "acf_low", "acf_high", "cosine", "cosine_low", "cosine_high"],
    "hellinger": [
        "depth",
        "channels",
        *("training_pictures", "pictures"),
        "hellinger",
        "hellinger_low",
        "hellinger_high",
        "within",
    ],
    "oscillation": ["step", "level", "features", "rms"],
    "norm_changes": ["level", "features", "readings", "least", "mean", "greatest", "change"],
}


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    small = (
        "data.size=32",
        "model.encoder=tu-test_resnet",
        "trainer.max_epochs=1",
        "model.skip=[none,concat,add,concat]",
    )
    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "gradients.every_n_steps=2")
    return RunFolder(train(compose("train", Train, [*TINY, *small, *own]))["folder"])


def test_evaluate_writes_shows_and_draws_each(run, tmp_path, capsys, monkeypatch):
    for name, value in {"SIDE": 5, "POINTS": 7, "PICTURES": 4, "MOST_PRODUCTS": 6}.items():
        monkeypatch.setattr(landscape, name, value)
    monkeypatch.setattr(shattering, "POINTS", 16)
    chosen = "mechanism=[landscape,shattering,hellinger,oscillation]"
    evaluate(options_of([f"checkpoint={run.path}", "accelerator=cpu", f"output={tmp_path / 'out'}", chosen]))
    tables = {name: pd.read_csv(tmp_path / f"out/{name}.csv") for name in TABLES}
    assert {name: [*table.columns] for name, table in tables.items()} == TABLES
    at_weights = tables["landscape"][(tables["landscape"].a == 0) & (tables["landscape"].b.fillna(0) == 0)]
    assert len(at_weights) == 4
    assert at_weights.loss.nunique() == 1, "all four cross at the weights"
    assert (tables["shattering"].query("lag == 0").acf == 1).all()
    assert tables["hellinger"].hellinger.between(0, 1).all()
    assert sorted(tables["oscillation"].step.unique()) == [0, 2, 4]
    assert (tables["norm_changes"].readings == 3).all()
    for name in ("landscape", "shattering", "hellinger", "oscillation"):
        assert (tmp_path / f"out/figures/{name}.png").stat().st_size > 5000, name
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "largest eigenvalue of the Hessian",
        "one point apart",
        "Hellinger distance",
        "norms of the features",
    ):
        assert words in shown


def test_of_many_pictures_hellinger_reads_a_seeded_sample_and_says_how_many(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hellinger, "MOST", 5)
    tables = []
    for name in ("one", "two"):
        evaluate(options_of([f"checkpoint={run.path}", "mechanism=[hellinger]", f"output={tmp_path / name}"]))
        tables.append(pd.read_csv(tmp_path / name / "hellinger.csv"))
    assert {*tables[0].training_pictures} == {*tables[0].pictures} == {5}
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("asked", ["mechanism=[shattering]", "lesion=true"])
def test_what_takes_two_pictures_is_refused_with_one(asked, run, drawn_set, tmp_path):
    lone = shutil.copytree(drawn_set, tmp_path / "lone")
    lines = (lone / "annotations/test.txt").read_text().splitlines(keepends=True)
    (lone / "annotations/test.txt").write_text(lines[0])
    options = [f"checkpoint={run.path}", "data=pets", f"data.root={lone}", asked, f"output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="split=test has one picture"):
        evaluate(options_of(options))
    assert not (tmp_path / "out").exists()


@pytest.mark.quick
def test_training_pictures_are_not_compared_with_themselves(run, tmp_path):
    options = [f"checkpoint={run.path}", "split=train", "mechanism=[hellinger]", f"output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="split=test"):
        evaluate(options_of(options))
    assert not (tmp_path / "out").exists()


def test_a_run_without_norms_is_refused_with_what_notes_them(run, tmp_path):
    lone = tmp_path / "lone.ckpt"
    lone.write_bytes(run.best.read_bytes())
    with pytest.raises(UserError, match=r"gradients\.every_n_steps=25"):
        evaluate(options_of([f"checkpoint={lone}", "mechanism=[oscillation]", f"output={tmp_path / 'out'}"]))
