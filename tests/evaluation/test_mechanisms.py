"""Mechanisms: what meets at the fusions, against cases whose answer is known and slow references."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from test_lesions import MIXED, batches, segmenter

from unetseg.errors import UserError
from unetseg.evaluate import evaluate, options_of
from unetseg.evaluation.mechanisms import (
    BANDS,
    band_powers,
    blocks_of,
    cka,
    effective_rank,
    measure,
    rank,
    refusal,
    reuse,
    similarity,
    spectra,
)
from unetseg.model import Segmenter
from unetseg.names import AT_FUSIONS

GROUPS = [""] * 7


def covariance(*features):
    """Return the joint covariance of NxD features."""
    return torch.cov(torch.cat(features, 1).T, correction=0)


def drawn(channels, samples=400, seed=0):
    return torch.randn(samples, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_cka_of_rotated_and_scaled_features_is_1():
    x = drawn(6)
    rotation, _ = torch.linalg.qr(drawn(6, samples=6, seed=1))
    assert cka(covariance(x, 3 * x @ rotation + 5), 6) == pytest.approx(1, abs=1e-12)


def test_the_cka_of_independent_features_is_near_0_and_of_constant_ones_not_a_number():
    assert cka(covariance(drawn(3, 50_000), drawn(4, 50_000, seed=1)), 3) < 1e-3
    assert np.isnan(cka(covariance(drawn(3), torch.ones(400, 2, dtype=torch.float64)), 3))


def test_cka_is_that_of_the_gram_matrices():
    """As Kornblith et al. define it: HSIC of the two, over the root of both with themselves."""
    x, y = drawn(5, 30), drawn(3, 30, seed=1) + drawn(5, 30)[:, :3]
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    k, m = (centre @ own @ own.T @ centre for own in (x, y))
    wanted = (k * m).sum() / (k.norm() * m.norm())
    assert cka(covariance(x, y), 5) == pytest.approx(float(wanted), rel=1e-10)


def test_the_effective_rank_is_the_number_of_equal_directions_and_1_for_one():
    assert effective_rank(torch.eye(7, dtype=torch.float64)) == pytest.approx(7)
    direction = drawn(5, samples=1)[0]
    assert effective_rank(torch.outer(direction, direction)) == pytest.approx(1, abs=1e-5)
    x = drawn(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    singular = torch.linalg.svdvals(x - x.mean(0))
    shares = singular / singular.sum()
    assert effective_rank(covariance(x)) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-10)
    assert np.isnan(effective_rank(torch.zeros(3, 3, dtype=torch.float64)))


@pytest.mark.parametrize(("row", "column"), [(0, 3), (5, 0), (6, 2), (8, 8), (1, 0)])
def test_a_wave_has_its_power_in_the_band_of_its_frequency(row, column):
    height, width = 16, 24
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wave = torch.cos(2 * torch.pi * (row * y / height + column * x / width)).double()
    powers = band_powers(torch.stack([wave, 2 * wave]) + 7)
    radius = np.hypot(row / height, column / width)
    band = BANDS if radius > 0.5 else min(int(radius * 2 * BANDS), BANDS - 1)
    assert powers[band] == pytest.approx(float(5 * (wave - wave.mean()).square().sum()), rel=1e-9)
    assert powers.sum() == pytest.approx(float(powers[band]), rel=1e-9)


def test_white_noise_has_power_by_the_number_of_frequencies():
    noise = torch.randn(4000, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    powers = band_powers(noise)
    assert powers.sum() == pytest.approx(float((noise - noise.mean((1, 2), keepdim=True)).square().sum()))
    frequencies = np.fft.fftfreq(16)
    counts = np.zeros(BANDS + 1)
    for r, c in itertools.product(frequencies, frequencies):
        radius = np.hypot(r, c)
        if radius:
            counts[BANDS if radius > 0.5 else min(int(radius * 2 * BANDS), BANDS - 1)] += 1
    assert np.allclose(powers / powers.sum(), counts / counts.sum(), rtol=0.05)


def test_pictures_of_a_group_are_in_one_block():
    assert blocks_of(GROUPS) == [0, 1, 2, 3, 4, 5, 6]
    groups = [f"breed{number % 13}" for number in range(39)]
    blocks = blocks_of(groups)
    assert len({*zip(groups, blocks, strict=True)}) == 13
    assert {*blocks} == {*range(10)}
    assert blocks_of(["all"] * 3) == [0, 1, 2], "one group is no group"


def features_at(model, level):
    """Return what meets at a level of all pictures, found by decoding picture after picture: NxDxHxW and NxSxHxW."""
    seen = []
    handle = model.net.fusions[level - 1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.inference_mode():
        for batch in batches():
            for image in batch.images:
                model(image[None])
    handle.remove()
    return [torch.cat([inputs[part] for inputs in seen]).double() for part in (0, 1)]


@pytest.mark.parametrize("skip", ["concat", "none", MIXED], ids=str)
def test_the_sums_give_what_all_features_at_once_give(skip):
    model = segmenter(skip)
    sums = measure(model, batches(), GROUPS)
    assert list(sums) == [1, 2, 3, 4]
    similar, ranks, bands = similarity(sums).set_index("level"), rank(sums), spectra(sums)
    for level in (1, 4):
        deep, own = features_at(model, level)
        flat = [part.movedim(1, -1).flatten(0, 2) for part in (deep, own)]
        assert similar.cka[level] == pytest.approx(cka(covariance(*flat), flat[0].shape[1]), rel=1e-6)
        left = [(part - part.mean(0)).movedim(1, -1).flatten(0, 2) for part in (deep, own)]
        assert similar.cka_at_places[level] == pytest.approx(cka(covariance(*left), flat[0].shape[1]), rel=1e-5)
        found = ranks[ranks.level == level]
        assert found.effective_rank.tolist() == pytest.approx(
            [effective_rank(covariance(part)) for part in flat], rel=1e-4
        )
        assert found.channels.tolist() == [part.shape[1] for part in flat]
        distinct = [len(torch.unique(part.round(decimals=9), dim=0)) for part in flat]
        assert found.at_most.tolist() == [min(part.shape[1], n) for part, n in zip(flat, distinct, strict=True)]
        assert found.dead.tolist() == [int((part.std(0) < 1e-6 * part.std(0).max()).sum()) for part in flat]
        for name, part in (("deep", deep), ("skip", own)):
            power = sum(band_powers(picture) for picture in part)
            rows = bands[(bands.level == level) & (bands.features == name)]
            assert rows.share.sum() == pytest.approx(1)
            there = (rows["from"] * 2 * BANDS).astype(int).tolist()
            assert rows.share.tolist() == pytest.approx((power / power.sum())[there].tolist(), rel=1e-6)
            assert len(rows) == (BANDS + 1 if level == 1 else 4), (
                "4x4 features have lengths of 0.25, 0.35, 0.5 and more"
            )


def test_the_interval_is_the_jackknife_over_pictures():
    model = segmenter()
    sums = measure(model, batches(), GROUPS)
    deep, own = features_at(model, 2)
    flat = [part.movedim(1, -1).flatten(1, 2) for part in (deep, own)]
    without = [
        cka(covariance(*(part[[i for i in range(7) if i != left]].flatten(0, 1) for part in flat)), flat[0].shape[2])
        for left in range(7)
    ]
    spread = np.sqrt(6 / 7 * np.square(np.array(without) - np.mean(without)).sum())
    row = similarity(sums).set_index("level").loc[2]
    assert row.cka_high - row.cka == pytest.approx(2.446912 * spread, rel=1e-4)  # t of 6 degrees of freedom
    assert row.cka - row.cka_low == pytest.approx(row.cka_high - row.cka)


def test_reuse_tells_the_weights_over_both_columns_where_there_are_both():
    model = segmenter(MIXED)  # none, concat, add, attention
    sums = measure(model, batches(), GROUPS)
    table = reuse(model, sums).set_index("features")
    assert {*table.level} == {2}
    block = model.net.decoder.blocks[2]
    deep, own = features_at(model, 2)
    columns = block.conv1[0].weight.detach().abs().double().mean((0, 2, 3))
    width = deep.shape[1]
    assert table.weight.to_dict() == pytest.approx(
        {"deep": float(columns[:width].mean()), "skip": float(columns[width:].mean())}
    )
    read = columns * torch.cat([deep, own], 1).square().mean((0, 2, 3)).sqrt()
    assert table.contribution["skip"] == pytest.approx(float(read[width:].sum() / read.sum()), rel=1e-6)
    assert table.contribution.sum() == pytest.approx(1)


@pytest.mark.parametrize(("options", "share_of"), [
    ({"skip_scale": 1e-6}, lambda share: share < 1e-4), ({"skip_flow": "backward"}, lambda share: share == 0),
    ({"skip": "shuffled"}, lambda share: 0.05 < share < 0.95),
], ids=["scaled", "backward", "shuffled"])  # fmt: skip
def test_reuse_is_of_what_the_columns_read(options, share_of):
    """A skip that is scaled down or withheld is not read, however large the encoder's features are."""
    model = Segmenter(classes=2, encoder="tu-test_resnet", weights=None, **options).eval()
    table = reuse(model, measure(model, batches((2,)), GROUPS)).set_index("features")
    assert len(table) == 8
    assert all(share_of(share) for share in table.contribution["skip"])


def test_reuse_of_scse_is_of_the_reweighed_features():
    model = Segmenter(classes=2, encoder="tu-test_resnet", weights=None, skip="scse").eval()
    seen, (batch, *_) = {}, batches((2,))
    conv = model.net.decoder.blocks[2].conv1
    with conv.register_forward_pre_hook(lambda _, inputs: seen.update(read=inputs[0].detach())):
        model(batch.images)
    table = reuse(model, measure(model, [batch], GROUPS)).set_index("level").loc[2].set_index("features")
    read = conv[0].weight.detach().abs().mean((0, 2, 3)) * seen["read"].square().mean((0, 2, 3)).sqrt()
    width = model.net.encoder.out_channels[2]
    assert table.contribution["skip"] == pytest.approx(float(read[-width:].sum() / read.sum()), rel=1e-5)


def test_a_level_without_features_is_left_out():
    model = Segmenter(classes=2, encoder="mit_b0", weights=None).eval()
    assert list(measure(model, batches((2,)), GROUPS)) == [2, 3, 4]


@pytest.mark.parametrize("skip", ["nested", "full", "channel", "permuted"])
def test_decoders_of_all_levels_have_no_place_where_two_meet(skip):
    assert "no block merges" in refusal(segmenter(skip))
    assert refusal(segmenter("attention")) == ""


def test_weights_of_both_are_not_asked_for_where_no_level_has_them():
    assert "no level has weights" in refusal(segmenter("attention"), ["reuse"])
    assert refusal(segmenter("attention"), ["reuse", "rank"]) == ""
    assert refusal(segmenter(["none", "concat", "add", "add"]), ["reuse"]) == ""


def test_evaluate_writes_a_table_and_a_figure_of_each(tiny, capsys, figures):
    run = tiny("trainer.max_epochs=1", "gradients.every_n_steps=0")
    evaluate(options_of([f"checkpoint={run.path}", f"mechanism=[{','.join(AT_FUSIONS)}]"]))
    folder = run.path / "evaluation/synthetic_test"
    for name in AT_FUSIONS:
        assert len(pd.read_csv(folder / f"{name}.csv")) >= 4, name
        assert (folder / f"figures/{name}.png").stat().st_size > 4000, name
    assert "similarity of what meets" in capsys.readouterr().out


def test_an_unknown_mechanism_is_refused_with_the_nearest_first(tiny):
    run = tiny("trainer.max_epochs=1", "gradients.every_n_steps=0")
    with pytest.raises(UserError, match="accepted: similarity"):
        options_of([f"checkpoint={run.path}", "mechanism=[similar]"])
