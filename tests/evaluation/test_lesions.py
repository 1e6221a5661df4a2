"""Lesions: what is cut, by what, and that a level's worth is counted right."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from unetseg.data.dataset import Batch
from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation.lesions import CUTS, DERANGEMENTS, cuts_of, levels_to_cut, measure, shapley, tables
from unetseg.evaluation.metrics import image_counts
from unetseg.model import Segmenter
from unetseg.model.segmenter import class_map
from unetseg.names import IGNORE
from unetseg.options.compose import compose

MIXED = ["none", "concat", "add", "attention"]


def batches(sizes=(3, 3, 1), seed=0):
    """Return batches of random pictures and masks; the last has one picture."""
    generator = torch.Generator().manual_seed(seed)
    found, first = [], 0
    for size in sizes:
        images = torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8, generator=generator)
        masks = torch.randint(0, 2, (size, 64, 64), dtype=torch.uint8, generator=generator)
        masks[:, :4] = IGNORE
        found.append(Batch(images, masks, torch.arange(first, first + size)))
        first += size
    return found


def segmenter(skip="concat", **options):
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder="resnet18", weights=None, skip=skip, **options).eval()


def masks_of(model, images):
    with torch.inference_mode():
        return class_map(model(images))


def counted(model, data, predict):
    """Return the counts of `predict(images)` on all pictures, NxCx6."""
    return torch.cat([image_counts(predict(batch.images), batch.masks, 2) for batch in data]).double()


@pytest.mark.parametrize(("skip", "flow", "levels"), [
    ("concat", "both", [1, 2, 3, 4]), ("add", "forward", [1, 2, 3, 4]), ("attention", "backward", []),
    ("none", "both", []), ("placebo", "both", []), (MIXED, "both", [2, 3, 4]),
    ("concat", ["both", "backward", "forward", "both"], [1, 3, 4])])  # fmt: skip
def test_only_levels_that_carry_features_are_cut(skip, flow, levels):
    assert levels_to_cut(segmenter(skip, skip_flow=flow)) == levels


def test_all_cut_by_zero_in_an_add_model_is_the_none_model_with_its_weights():
    model, none = segmenter("add"), segmenter("none")
    none.load_state_dict({k: v for k, v in model.state_dict().items() if "projection" not in k})
    found = measure(model, batches(), 2)
    assert torch.equal(found.counts[CUTS.index("zero"), 0], counted(none, batches(), lambda x: masks_of(none, x)))
    assert not torch.equal(found.counts[0, 0], found.counts[0, -1])


def test_a_product_has_no_lesion_by_zeros_which_would_cut_the_deep_path_too():
    model = segmenter(["concat", "multiply", "none", "none"])
    found = measure(model, batches(), 2)
    assert (found.levels, found.cuts) == ([1, 2], ("mean", "shuffle"))
    assert found.counts.shape[:2] == found.edges.shape[:2] == (2, 4)
    written = tables(found, groups=[""] * 7)
    assert set(written["lesion"].cut) == {"intact", "mean", "shuffle"}
    assert list(written["shapley"].cut) == ["mean", "mean", "shuffle", "shuffle"]


def test_a_stem_skip_that_multiplies_has_none_either_where_level_1_has_no_features():
    skip = ["multiply", "concat", "concat", "concat"]
    model = Segmenter(classes=2, encoder="tu-test_convnext", weights=None, skip=skip, stem_skip=True)
    assert (levels_to_cut(model), cuts_of(model)) == ([0, 2, 3, 4], ("mean", "shuffle"))


@pytest.mark.quick
def test_nothing_cut_is_the_model_itself():
    model = segmenter(MIXED)
    found = measure(model, batches(), 2)
    for cut in range(len(CUTS)):
        assert torch.equal(found.counts[cut, -1], counted(model, batches(), lambda x: masks_of(model, x)))


def test_every_subset_and_cut_is_what_a_slow_loop_finds():
    """The reference decodes picture after picture, with hooks that replace a fusion's skip."""
    model, data = segmenter(MIXED), batches()
    found = measure(model, data, 2)
    images, masks = (torch.cat([getattr(batch, name) for batch in data]) for name in ("images", "masks"))
    with torch.inference_mode():
        features = model.net.encoder(model.normalise(images))
    levels = levels_to_cut(model)
    instead = {
        "zero": [{level: torch.zeros_like(features[level]) for level in levels}],
        "mean": [{level: features[level].mean((0, 2, 3), keepdim=True).expand_as(features[level]) for level in levels}],
        "shuffle": [{level: features[level].roll(shift, 0) for level in levels} for shift in (1, 2, 3, 4)],
    }
    assert len(instead["shuffle"]) == DERANGEMENTS
    for (cut, kind), kept in itertools.product(enumerate(CUTS), range(8)):
        gone = [level for bit, level in enumerate(levels) if not kept & 2**bit]
        references = []
        for stand_in in instead[kind]:
            counts = []
            for row in range(len(images)):
                handles = [
                    model.net.fusions[level - 1].register_forward_pre_hook(
                        lambda fusion, inputs, s=stand_in[level][row : row + 1]: (inputs[0], s)
                    )
                    for level in gone
                ]
                counts.append(image_counts(masks_of(model, images[row : row + 1]), masks[row : row + 1], 2))
                for handle in handles:
                    handle.remove()
            references.append(torch.cat(counts).double())
        # a logit beside 0 may fall on either side when a batch is computed in another order
        assert (sum(references) / len(references) - found.counts[cut, kept]).abs().max() <= 3, (kind, gone)


def test_of_two_pictures_each_gets_the_other_ones_features_and_never_its_own():
    model, data = segmenter(), batches(sizes=(2,))
    swapped = torch.cat([data[0].images[1:], data[0].images[:1]])
    with torch.inference_mode():
        own, other = (model.net.encoder(model.normalise(images)) for images in (data[0].images, swapped))
        predicted = class_map(model.net.decode([own[0], *other[1:5], own[5]]))
    expected = image_counts(predicted, data[0].masks, 2)
    assert (measure(model, data, 2).counts[CUTS.index("shuffle"), 0] - expected).abs().max() <= 3


def test_the_encoder_runs_once_a_batch_for_all_subsets():
    model = segmenter()
    calls = []
    model.net.encoder.register_forward_hook(lambda *_: calls.append(1))
    measure(model, batches(), 2)
    assert len(calls) == 2 * 3  # three batches: one pass for the means, one for all 46 lesions


def test_shapley_by_hand():
    # two levels: alone 1 adds 0.2 and 2 adds 0.1, together 0.5: the rest, 0.2, is shared
    np.testing.assert_allclose(shapley(np.array([0.3, 0.5, 0.4, 0.8])), [0.3, 0.2])


def test_shapley_is_the_mean_over_all_orders_and_sums_to_all_minus_none():
    values = np.random.default_rng(0).random((5, 16))
    orders = list(itertools.permutations(range(4)))
    reference = np.zeros((5, 4))
    for order in orders:
        kept = 0
        for level in order:
            reference[:, level] += (values[:, kept | 1 << level] - values[:, kept]) / len(orders)
            kept |= 1 << level
    np.testing.assert_allclose(shapley(values), reference, atol=1e-12)
    np.testing.assert_allclose(shapley(values).sum(-1), values[:, -1] - values[:, 0], atol=1e-12)


def test_the_tables_add_up():
    found = tables(measure(segmenter(), batches(), 2), [""] * 7)
    lesion, worth, edges = found["lesion"], found["shapley"], found["lesion_edge_distance"]
    assert len(lesion) == 1 + 3 * 15
    assert lesion.iloc[0].cut == "intact"
    for cut, rows in worth.groupby("cut"):
        for name in ("iou", "boundary_iou"):
            none = lesion[(lesion.cut == cut) & (lesion.levels == "1+2+3+4")][name].item()
            assert rows[name].sum() == pytest.approx(lesion.iloc[0][name] - none, abs=1e-6)
            assert (rows[f"{name}_low"] <= rows[name]).all()
            assert (rows[name] <= rows[f"{name}_high"]).all()
    pixels = edges.groupby(["cut", "levels"]).pixels.sum()
    assert (pixels == 7 * 60 * 64).all()
    known = edges[edges.pixels > 0]
    assert ((known.error_rate_low <= known.error_rate) & (known.error_rate <= known.error_rate_high)).all()


def test_intervals_are_over_groups_where_there_are_several():
    found = measure(segmenter(), batches(), 2)
    assert found.indices == list(range(7))
    alone, grouped, one = (tables(found, groups) for groups in ([*"abcdefg"], [*"aaabbbb"], ["a"] * 7))
    for name in ("iou_loss_low", "iou_loss_high"):
        assert not np.allclose(alone["lesion"][name], grouped["lesion"][name])
        np.testing.assert_array_equal(alone["lesion"][name], one["lesion"][name])
    np.testing.assert_array_equal(alone["lesion"].iou_loss, grouped["lesion"].iou_loss)


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    from conftest import TINY

    from unetseg.options.schema import Train
    from unetseg.runs.folder import RunFolder
    from unetseg.train import train

    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "trainer.max_epochs=1")
    return lambda *more: RunFolder(train(compose("train", Train, [*TINY, *own, *more]))["folder"])


def scored(run, tmp_path):
    overrides = [f"checkpoint={run.path}", "accelerator=cpu", f"output={tmp_path}/out", "lesion=true"]
    return evaluate(options_of(overrides))


def test_evaluate_writes_shows_and_draws_what_the_long_skips_contribute(run, tmp_path, capsys, figures):
    content = scored(run("name=a"), tmp_path)
    lesion = pd.read_csv(tmp_path / "out/lesion.csv", keep_default_na=False)
    assert lesion.iloc[0].iou == pytest.approx(content["test/iou"], abs=2e-3)  # batches of another order
    assert set(lesion.cut) == {"intact", *CUTS}
    assert len(pd.read_csv(tmp_path / "out/shapley.csv")) == 12
    assert len(pd.read_csv(tmp_path / "out/lesion_edge_distance.csv")) == 46 * 7
    assert (tmp_path / "out/figures/lesion.png").stat().st_size > 10_000
    assert "what this model loses" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/summary.json").read_text())["test/iou"] == content["test/iou"]


def test_a_model_without_features_in_its_skips_is_refused_before_the_test(run, tmp_path):
    with pytest.raises(UserError, match=r"no long skip .* carries features"):
        scored(run("name=b", "model.skip=none"), tmp_path)
    assert not (tmp_path / "out").exists()
