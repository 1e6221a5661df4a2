"""Gradient flow in a training run: read on the chosen steps, before clipping, and without changing anything."""

import pandas as pd
import pytest
import torch
from conftest import TINY, draw_blank

from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs.folder import RunFolder
from unetseg.train import train


def readings(run):
    return pd.read_csv(run.gradient_flow)


def rms_of_the_first_step(run):
    table = readings(run)
    return table[(table.step == 0) & (table.metric == "rms")].set_index("block").value


@pytest.fixture
def steps(tiny):
    """Return a function that trains two epochs of five steps with a reading on every second."""
    return lambda *overrides: tiny("gradients.every_n_steps=2", *overrides)


def test_every_nth_step_is_read_logged_and_drawn(steps, figures):
    run = steps()
    table = readings(run)
    assert list(table.columns) == ["step", "epoch", "kind", "block", "metric", "value"]
    assert sorted(table.step.unique()) == [0, 2, 4, 6, 8]
    assert dict(zip(table.step, table.epoch, strict=True)) == {0: 0, 2: 0, 4: 0, 6: 1, 8: 1}
    assert set(table.kind) == {"skip", "block", "net", "exit", "short", "features"}
    norms = table[table.kind == "features"]
    assert set(norms.block) == {"level1", "level2", "level3", "level4"}
    assert set(norms.metric) == {"deep_rms", "skip_rms"}
    assert len(norms) == 5 * 4 * 2
    assert (norms.value > 0).all()
    assert set(table[table.kind == "exit"].step) == {0}, "the routes have an interval of their own"
    logged = pd.read_csv(run.metrics)
    share = logged[logged.name == "gradient/skip_share/level1"]
    assert list(share.step) == [0, 2, 4, 6, 8]
    assert {"gradient/rms/stem", "gradient/update_ratio/head", "gradient/vanishing_slope"} <= set(logged.name)
    assert (run.figures / "gradient_flow.png").stat().st_size > 10_000


def test_readings_leave_the_weights_bit_identical(steps, tiny):
    read, unread = (torch.load(run.last, weights_only=True)["state_dict"] for run in (steps("name=a"), tiny("name=b")))
    assert all(torch.equal(read[key], unread[key]) for key in unread)


@pytest.fixture(scope="module")
def with_routes(drawn, tmp_path_factory, blank_figures):
    """A run of ten steps that reads the routes on every third, with its figures."""
    blank_figures.undo()
    own = [f"data.root={drawn}", f"output={tmp_path_factory.mktemp('routes')}", "gradients.every_n_steps=4"]
    options = compose("train", Train, [*TINY, *own, "gradients.routes_every_n_steps=3"])
    run = RunFolder(train(options)["folder"])
    draw_blank(blank_figures)
    return run


@pytest.mark.quick
def test_the_routes_are_read_at_their_own_interval_logged_and_drawn(with_routes):
    run, table = with_routes, readings(with_routes)
    assert sorted(table.step.unique()) == [0, 3, 4, 6, 8, 9]
    exits = table[table.kind == "exit"]
    assert sorted(exits.step.unique()) == [0, 3, 6, 9]
    shares = exits[exits.metric.str.startswith("share_")].groupby(["step", "block"]).value.sum()
    assert shares.tolist() == pytest.approx([1] * 4 * 6, abs=1e-6)
    falls = exits[(exits.block == "encoder") & exits.metric.str.startswith("fall_")]
    assert (falls.groupby("step").value.sum() > 0).all(), "a step goes down, to first order"
    logged = set(pd.read_csv(run.metrics).name)
    assert {"gradient/share_level1/stem", "gradient/share_bottleneck/encoder", "gradient/fall_level2/encoder"} <= logged
    assert (run.figures / "gradient_routes.png").stat().st_size > 10_000


def test_short_skips_are_read_with_the_routes_logged_and_drawn(with_routes):
    run = with_routes
    short = readings(run).query("kind == 'short'")
    assert sorted(short.step.unique()) == [0, 3, 6, 9]
    shares = short[short.metric.isin(["identity_share", "residual_share"])].groupby(["step", "block"]).value.sum()
    assert shares.tolist() == pytest.approx([1] * 4 * 4, abs=1e-6)
    assert "gradient/identity_share/encoder1.0" in set(pd.read_csv(run.metrics).name)
    assert (run.figures / "gradient_short.png").stat().st_size > 10_000
    assert not (run.figures / "gradient_dense.png").exists()


def test_the_reuse_in_a_densenet_is_read_and_drawn_and_not_logged(tiny, figures):
    run = tiny("model.encoder=densenet121", "trainer.max_epochs=1")
    dense = readings(run).query("kind == 'dense'")
    reuse = dense[dense.metric.str.startswith("reuse_1_")].groupby("block").value.sum()
    assert reuse.to_dict() == pytest.approx({f"encoder{stage}": 1 for stage in (1, 2, 3, 4)})
    assert "reuse" not in run.metrics.read_text()
    assert (run.figures / "gradient_dense.png").stat().st_size > 10_000
    assert not (run.figures / "gradient_short.png").exists()


def test_without_routes_there_is_no_exit_and_no_figure_of_them(tiny):
    run = tiny("gradients.every_n_steps=2", "gradients.routes=none", "trainer.max_epochs=1")
    assert set(readings(run).kind) == {"skip", "block", "net", "features"}
    assert [figure.name for figure in run.figures.glob("gradient_*.png")] == ["gradient_flow.png"]


def test_zero_switches_the_probes_off(tiny):
    run = tiny("gradients.every_n_steps=0", "trainer.max_epochs=1")
    assert not run.gradient_flow.exists()
    assert "gradient" not in run.metrics.read_text()


def test_gradients_are_read_before_clipping(steps):
    free = steps("name=a", "trainer.max_epochs=1")
    clipped = steps("name=b", "trainer.max_epochs=1", "trainer.gradient_clip_val=1e-6")
    pd.testing.assert_series_equal(rms_of_the_first_step(free), rms_of_the_first_step(clipped))


def test_accumulated_micro_batches_count_as_one_step(steps):
    run = steps("trainer.accumulate_grad_batches=2")
    table = readings(run)
    assert sorted(table.step.unique()) == [0, 2, 4]
    assert (table[table.metric == "update_ratio"].value > 0).all()


def test_a_cut_skip_is_seen_as_a_share_of_zero(steps):
    table = readings(steps("model.skip=[none,concat,add,concat]", "trainer.max_epochs=1"))
    shares = table[table.metric == "skip_share"].groupby("block").value
    assert (shares.min() == 0)["level1"]
    assert (shares.max() == 0)["level1"]
    assert (shares.max() > 0)[["level2", "level3", "level4"]].all()


def test_without_long_skips_normalisation_and_good_weights_the_early_blocks_starve():
    """The textbook case of experiment=vanishing, one step of it."""
    from unetseg.gradients import GradientFlow
    from unetseg.model import Segmenter
    from unetseg.training.losses import make_loss

    found = {}
    for skip in ("concat", "none"):
        torch.manual_seed(0)
        plain = {"short_skips": False, "normalisation": "none", "initialisation": "glorot"}
        model = Segmenter(classes=2, encoder="resnet101", weights=None, skip=skip, **plain)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        with GradientFlow(model) as flow:
            make_loss("bce", 2)(model(images), images[:, 0] // 128).backward()
            optimizer.step()
        found[skip] = {(r.block, r.metric): r.value for r in flow.read()}
    assert found["none"]["stem", "rms"] < 1e-10 * found["concat"]["stem", "rms"]
    assert found["none"]["stem", "stalled"] > 0.99
    assert found["concat"]["stem", "stalled"] < 0.01


def test_an_encoder_without_features_of_stride_2_is_read_at_the_levels_that_it_has(steps, figures):
    run = steps("model.encoder=tu-test_convnext", "model.auxiliary=true")
    table = readings(run)
    assert set(table[table.kind == "skip"].block) == {"level2", "level3", "level4"}
    exits = table[(table.kind == "exit") & (table.block == "encoder") & table.metric.str.startswith("share_")]
    assert set(exits.metric) == {
        f"share_{exit_}" for exit_ in ("level2", "level3", "level4", "auxiliary", "bottleneck")
    }
    assert exits.value.sum() == pytest.approx(1)
    assert (run.figures / "gradient_flow.png").stat().st_size > 10_000


def test_an_encoder_whose_features_are_copies_has_no_skip_shares_and_it_is_said_once(steps, capsys, figures):
    run = steps("model.encoder=tu-test_mambaout", "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    assert capsys.readouterr().out.count("no skip shares are read: features of TimmUniversalEncoder are copies") == 1
    assert set(readings(run).kind) == {"block", "net", "exit", "features"}
    assert (run.figures / "gradient_flow.png").stat().st_size > 10_000
