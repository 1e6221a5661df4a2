"""evaluate gradient=true: the path lengths of a trained model's gradient over a data set."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY

from unetseg.data.dataset import Batch
from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation.path_lengths import measure, table
from unetseg.gradients.path_lengths import gradient_by_path_length
from unetseg.model import Segmenter
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import train
from unetseg.training.losses import make_loss


def test_every_picture_has_its_own_gradient_whatever_batch_it_is_in():
    torch.manual_seed(0)
    model, criterion = Segmenter(classes=2, encoder="resnet18", weights=None).eval(), make_loss("dice", 2).eval()
    images, masks = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 2, (3, 32, 32))
    together, indices = measure(model, [Batch(images, masks, torch.arange(3))], criterion, gradient_by_path_length)
    alone, _ = measure(model, [Batch(images[2:], masks[2:], torch.arange(1))], criterion, gradient_by_path_length)
    assert (together.shape, indices) == ((3, 9, 2), [0, 1, 2])
    np.testing.assert_array_equal(together[2:], alone)
    np.testing.assert_allclose(together[..., 1].sum(1), together[:, 0, 0])


def test_shares_are_ratios_of_sums_with_an_interval_over_pictures():
    products = np.array([[[4.0, 1.0], [4.0, 3.0]], [[12.0, 9.0], [12.0, 3.0]]])
    shares = table(products, ["", ""])
    assert shares.share.tolist() == [10 / 16, 6 / 16]
    assert shares.low.tolist() == [1 / 4, 1 / 4]
    assert shares.high.tolist() == [3 / 4, 3 / 4]


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "trainer.max_epochs=1")
    return lambda *more: RunFolder(train(compose("train", Train, [*TINY, *own, *more]))["folder"])


def scored(run, output):
    return evaluate(options_of([f"checkpoint={run.path}", "accelerator=cpu", f"output={output}", "gradient=true"]))


def test_evaluate_writes_shows_and_draws_the_shares(run, tmp_path, capsys, figures):
    scored(run("name=a"), tmp_path / "out")
    shares = pd.read_csv(tmp_path / "out/path_lengths.csv")
    assert list(shares.columns) == ["residual_branches", "share", "low", "high"]
    assert shares.residual_branches.tolist() == list(range(5)), "a branch in each of four blocks"
    assert shares.share.sum() == pytest.approx(1)
    assert (shares.low <= shares.high).all()
    assert (tmp_path / "out/figures/path_lengths.png").stat().st_size > 5_000
    assert "by the branches on its way" in " ".join(capsys.readouterr().out.split())


def test_a_model_without_short_skips_is_refused_before_the_test(run, tmp_path):
    plain = run("name=b", "model.encoder=resnet18", "model.short_skips=false", "model.weights=null")
    with pytest.raises(UserError, match="has no residual blocks"):
        scored(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
