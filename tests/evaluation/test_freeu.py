"""FreeU's factors: by hand, at 1 nothing, and what an evaluation writes of them."""

import cmath
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from unetseg.data.dataset import Batch
from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation.freeu import Variant, amplified, applied, filtered, measure, refusal, table, variants
from unetseg.evaluation.metrics import image_counts, scores
from unetseg.model import Segmenter
from unetseg.model.segmenter import class_map


def segmenter(skip="concat", **options) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(classes=2, encoder="resnet18", weights=None, skip=skip, **options).eval()


def batches() -> list[Batch]:
    """Return two batches of three random pictures and masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 2, (6, 64, 64), dtype=torch.uint8, generator=generator)
    return [Batch(images[i : i + 3], masks[i : i + 3], torch.arange(i, i + 3)) for i in (0, 3)]


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (2, 1)], ids=str)
def test_low_frequencies_are_multiplied_in_the_fourier_domain(size):
    """A slow discrete Fourier transform; frequencies -1 and 0 of each axis are low, as in the authors' code."""
    height, width = size
    features = torch.randn(1, 2, height, width, dtype=torch.float64)
    expected = torch.zeros_like(features)
    positions = list(itertools.product(range(height), range(width)))
    low = [{0, (n - 1)} if n > 1 else {0} for n in size]
    for channel in range(2):
        values = {(y, x): float(features[0, channel, y, x]) for y, x in positions}
        spectrum = {}
        for v, u in positions:
            waves = (values[y, x] * cmath.exp(-2j * math.pi * (v * y / height + u * x / width)) for y, x in positions)
            spectrum[v, u] = sum(waves) * (0.3 if v in low[0] and u in low[1] else 1)
        for y, x in positions:
            waves = (spectrum[v, u] * cmath.exp(2j * math.pi * (v * y / height + u * x / width)) for v, u in positions)
            expected[0, channel, y, x] = sum(waves).real / (height * width)
    torch.testing.assert_close(filtered(features, 0.3), expected, rtol=1e-12, atol=1e-12)


def test_half_the_channels_are_amplified_where_their_mean_is_high():
    features = torch.tensor([[[[1.0, 5.0]], [[3.0, 5.0]], [[2.0, 8.0]]]])  # means 2 and 6: structure 0 and 1
    assert amplified(features, 1.5).flatten().tolist() == [1, 7.5, 3, 5, 2, 8]
    flat = torch.ones(2, 4, 3, 3)
    assert torch.equal(amplified(flat, 1.5), flat), "equal means have no structure"


def test_at_1_the_features_are_the_same_tensor():
    features = torch.randn(1, 4, 8, 8)
    assert amplified(features, 1) is features
    assert filtered(features, 1) is features


def test_each_part_is_measured_at_each_level_at_the_papers_two_and_at_all():
    found = [(v.part, v.levels, v.b, v.s) for v in variants([1, 2, 3, 4], 1.2, 0.9)]
    sets = [(1,), (2,), (3,), (4,), (3, 4), (1, 2, 3, 4)]
    factors = [("backbone", 1.2, 1), ("skip", 1, 0.9), ("both", 1.2, 0.9)]
    assert found == [("none", (), 1, 1), *((part, chosen, b, s) for part, b, s in factors for chosen in sets)]
    assert {v.part for v in variants([2], 1, 0.5)} == {"none", "skip"}


def test_a_variant_changes_what_the_fusion_of_its_level_gets():
    model = segmenter()
    features = model.net.encoder(torch.randn(1, 3, 64, 64))
    deep = features[-1]
    with torch.inference_mode():
        for level, block in zip((4, 3, 2, 1, 0), model.net.decoder.blocks, strict=True):
            deep, skip = F.interpolate(deep, size=features[level].shape[-2:], mode="nearest"), features[level]
            if level in (3, 4):
                deep, skip = amplified(deep, 1.4), filtered(skip, 0.5)
            joined = torch.cat([deep, skip], 1) if level else deep
            deep = block.conv2(block.conv1(joined))
        expected = model.net.segmentation_head(deep)
        with applied(model, Variant("both", (3, 4), 1.4, 0.5)):
            weighed = model.net.decode(features)
        plain = model.net.decode(features)
    torch.testing.assert_close(weighed, expected)
    assert not torch.equal(weighed, plain)
    assert not any(fusion._forward_pre_hooks for fusion in model.net.fusions), "the model is as it was"


def test_a_learned_scale_is_that_of_the_untouched_features():
    """S multiplies what is merged: the means, which the scale is learned from, are not changed before it."""
    model = Segmenter(classes=2, encoder="tu-test_resnet", weights=None, skip_scale="learned").eval()
    fusion, merged = model.net.fusion_of[1], []
    width = model.net.encoder.out_channels[1]
    torch.nn.init.normal_(fusion.scale.excite.weight)
    torch.nn.init.normal_(fusion.scale.squeeze.weight)
    features = model.net.encoder(torch.randn(1, 3, 64, 64))
    with torch.inference_mode(), fusion.register_forward_hook(lambda *found: merged.append(found[2][:, -width:])):
        for variant in (Variant("none", ()), Variant("skip", (1,), 1.0, 0.2)):
            with applied(model, variant):
                model.net.decode(features)
    torch.testing.assert_close(merged[1], filtered(merged[0], 0.2))


def test_the_first_row_is_the_untouched_network_and_the_others_are_differences_from_it():
    model, data = segmenter(), batches()
    chosen = variants([1, 2, 3, 4], 1.4, 0.2)
    counts, indices = measure(model, data, 2, chosen)
    with torch.inference_mode():
        own = torch.cat([image_counts(class_map(model(batch.images)), batch.masks, 2) for batch in data]).double()
    assert indices == list(range(6))
    assert torch.equal(counts[0], own)
    found = table(counts, chosen, [""] * 6)
    assert found.iloc[0][["iou_difference", "iou_difference_low", "iou_difference_high"]].tolist() == [0, 0, 0]
    for name in ("iou", "boundary_iou"):
        whole = scores(counts.sum(1))[name].numpy()
        np.testing.assert_allclose(found[name], whole)
        np.testing.assert_allclose(found[f"{name}_difference"], whole - whole[0])
        assert (found[f"{name}_difference_low"] <= found[f"{name}_difference"]).all()
        assert (found[f"{name}_difference"] <= found[f"{name}_difference_high"]).all()
    grouped = table(counts, chosen, [*"aabbcc"])
    assert not np.allclose(grouped.iou_difference_low, found.iou_difference_low)


@pytest.mark.parametrize(("skip", "reason"), [
    ("none", "no long skip carries features"), ("placebo", "no long skip carries features"),
    ("nested", "no block merges"), ("full", "no block merges"), ("permuted", "no block merges"), ("concat", ""),
    (["none", "none", "none", "add"], ""),
])  # fmt: skip
def test_a_model_without_a_place_for_the_factors_is_refused(skip, reason):
    told = refusal(segmenter(skip))
    assert reason in told
    assert bool(told) == bool(reason)


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory):
    from conftest import TINY

    from unetseg.options.compose import compose
    from unetseg.options.schema import Train
    from unetseg.train import train

    own = (f"data.root={drawn}", f"output={tmp_path_factory.mktemp('runs')}", "trainer.max_epochs=1", "name=a")
    return train(compose("train", Train, [*TINY, *own]))["folder"]


def test_evaluate_writes_and_shows_what_the_factors_change(run, tmp_path, capsys):
    overrides = [f"checkpoint={run}", "accelerator=cpu", f"output={tmp_path}/out", "freeu=[1.2,0.9]"]
    content = evaluate(options_of(overrides))
    found = pd.read_csv(tmp_path / "out/freeu.csv", dtype={"levels": str}, keep_default_na=False)
    assert len(found) == 19
    assert found.iloc[0].iou == pytest.approx(content["test/iou"], abs=2e-3)
    assert found[found.part == "both"].levels.tolist() == ["1", "2", "3", "4", "3+4", "1+2+3+4"]
    assert "what FreeU changes" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["[1,1]", "[1.2]", "[1.2,-0.1]", "1.2", "[.nan,1]"])
def test_factors_that_change_nothing_or_are_no_pair_are_refused(run, given):
    with pytest.raises(UserError, match="freeu"):
        options_of([f"checkpoint={run}", f"freeu={given}"])
