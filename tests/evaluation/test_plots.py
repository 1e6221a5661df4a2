"""The figures have one look: labelled axes, legends beside the data, and one y axis where panels are compared."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from unetseg.evaluation import gradient_plots, score_plots
from unetseg.evaluation.calibration import calibration_table
from unetseg.evaluation.overlays import Sample
from unetseg.names import EXITS

DRAWS = True
BLOCKS = ("stem", "encoder1", "decoder1", "head")


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved, with their final layout."""
    saved = []

    def save(figure: Figure, path: Path) -> None:
        figure.draw_without_rendering()
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def flow_table(path: Path, steps: tuple[int, ...] = (0, 25, 50)) -> Path:
    """Write a gradient_flow.csv with every kind of record that a figure needs."""
    rows: list[tuple[int, int, str, str, str, float]] = []
    for step in steps:
        rows += [(step, 0, "block", b, m, 0.1) for b in BLOCKS for m in ("rms", "stalled", "update_ratio")]
        rows += [(step, 0, "skip", f"level{level}", "skip_share", 0.1 * level) for level in (1, 2, 3, 4)]
        rows += [(step, 0, "exit", b, f"share_{name}", 0.2) for b in ("stem", "encoder") for name in EXITS]
        rows += [(step, 0, "short", f"encoder1.{i}", m, 0.5) for i in (0, 1) for m in ("identity_share", "projected")]
        entries = ("reuse_0_1", "reuse_0_2", "reuse_1_2", "reuse_0_out", "weight_0_1", "weight_0_2", "weight_1_2")
        rows += [(step, 0, "dense", "encoder1", name, 0.3) for name in entries]
    columns = ["step", "epoch", "kind", "block", "metric", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def edge_rates(**columns: object) -> pd.DataFrame:
    rates = {"error_rate": [0.4, 0.1], "error_rate_low": [0.3, 0.0], "error_rate_high": [0.5, 0.2]}
    return pd.DataFrame({"from_px": [1, 2], "to_px": [1, np.inf], **rates, **columns})


def lesion_tables() -> dict[str, pd.DataFrame]:
    scores = {f"{name}{end}": 0.1 for name in ("iou", "boundary_iou") for end in ("", "_low", "_high")}
    shapley = [{"cut": cut, "level": level, **scores} for cut in ("zero", "mean", "shuffle") for level in (1, 2)]
    shapley[0] |= {"iou": 0.5, "iou_high": 0.6}
    edges = [edge_rates(cut="intact", levels="")]
    edges += [edge_rates(cut="mean", levels=levels) for levels in ("1", "2", "1+2")]
    return {"shapley": pd.DataFrame(shapley), "lesion_edge_distance": pd.concat(edges)}


def metrics_table(path: Path) -> Path:
    names = ("train/loss", "val/loss", "train/iou", "val/iou", "train/boundary_iou", "val/boundary_iou")
    rows = [(epoch, epoch, name, 0.5) for name in names for epoch in (0, 1)]
    pd.DataFrame(rows, columns=["step", "epoch", "name", "value"]).to_csv(path, index=False)
    return path


def draw(name: str, folder: Path, steps: tuple[int, ...] = (0, 25, 50)) -> None:
    table, path = flow_table(folder / "gradient_flow.csv", steps), folder / "figure.png"
    if name in ("gradient_flow", "gradient_routes", "gradient_short", "gradient_dense"):
        getattr(gradient_plots, name)(table, path)
    elif name == "compare_gradients":
        gradient_plots.compare_gradients({"concat": table, "none": table}, path)
    elif name == "curves":
        score_plots.curves(metrics_table(folder / "metrics.csv"), path)
    elif name == "lesions":
        score_plots.lesions(lesion_tables(), path)
    elif name == "edge_distance":
        score_plots.edge_distance(edge_rates(), path)
    elif name == "calibration":
        score_plots.calibration(calibration_table(np.array([[0, 0, 0], [10, 6, 4], [30, 27, 28]])), path)
    elif name == "path_lengths":
        lengths = pd.DataFrame(
            {"residual_branches": [0, 1], "share": [0.4, 0.6], "low": [0.3, 0.5], "high": [0.5, 0.7]}
        )
        gradient_plots.path_lengths(lengths, path)
    else:
        image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
        score_plots.predictions([Sample("a", image, mask, mask)], ["best"], ["background", "pet"], path)


LINES_AND_BARS = ("curves", "gradient_flow", "gradient_short", "compare_gradients", "edge_distance", "lesions")
NAMES = (*LINES_AND_BARS, "path_lengths", "gradient_routes", "gradient_dense", "predictions", "calibration")


@pytest.mark.parametrize("name", NAMES)
def test_no_legend_lies_on_data(figures, tmp_path, name):
    draw(name, tmp_path)
    (figure,) = figures
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()] + figure.legends
    assert bool(legends) == (name not in ("edge_distance", "path_lengths", "gradient_dense"))  # of one thing each
    for legend in legends:
        assert not any(legend.get_window_extent().overlaps(axis.bbox) for axis in figure.axes)


@pytest.mark.parametrize("name", [*LINES_AND_BARS, "path_lengths", "calibration"])
def test_every_axis_says_what_it_shows(figures, tmp_path, name):
    draw(name, tmp_path)
    axes = figures[0].axes
    shared = {axis for axis in axes if not axis.xaxis.get_tick_params()["labelbottom"]}  # the panel below has the label
    assert all(axis.get_xlabel() or axis.get_label() == "<colorbar>" for axis in axes if axis not in shared)
    assert all(axis.get_ylabel() or axis.images for axis in axes)


def test_a_single_reading_is_seen_and_has_no_step_between_whole_numbers(figures, tmp_path):
    draw("gradient_flow", tmp_path, steps=(7,))
    _, shares, moves = (axis for axis in figures[0].axes if axis.get_label() != "<colorbar>")
    assert list(moves.get_xticks()) == [7]
    assert all(line.get_marker() == "o" for line in [*shares.lines[:4], *moves.lines])


def test_shapley_values_are_drawn_on_one_axis_and_intact_shows_below_the_cuts(figures, tmp_path):
    draw("lesions", tmp_path)
    iou, boundary, where = figures[0].axes
    assert iou.get_ylim() == boundary.get_ylim()
    intact, *cuts = where.lines
    assert (intact.get_label(), intact.get_linewidth()) == ("intact", 4)
    assert [line.get_label() for line in cuts] == ["level 1 cut", "level 2 cut", "all cut"]
    assert max(line.get_linewidth() for line in cuts) < 2
    assert len({line.get_color() for line in where.lines}) == 4


def test_matplotlibs_own_settings_are_as_before(figures, tmp_path):
    before = dict(matplotlib.rcParams)
    draw("edge_distance", tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_the_confusion_matrix_names_its_classes_and_writes_its_shares(figures, tmp_path):
    table = pd.DataFrame([[90, 10], [0, 0]], ["sky", "bird"], ["sky", "bird"])
    score_plots.confusion(table, tmp_path / "c.png")
    axis = figures[0].axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["sky", "bird"]
    assert [text.get_text() for text in axis.texts] == ["0.90", "0.10"], "nothing for a class that isn't there"


def test_the_predictions_have_the_colours_of_all_classes_and_errors_below(figures, tmp_path):
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    classes = ["sky", *(f"class{number}" for number in range(1, 22))]
    score_plots.predictions([Sample("a", image, mask, mask)], ["best"], classes, tmp_path / "figure.png")
    (figure,) = figures
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*classes, "wrong class"]
    assert figure.bbox.contains(*legend.get_window_extent().min)
    assert figure.bbox.contains(*legend.get_window_extent().max)
    truth = figure.axes[1].images[0].get_array()
    assert (truth == truth[0, 0]).all()
    assert truth[0, 0].any(), "class 0 is a thing of its own, and drawn"


def test_the_reliability_diagram_has_a_bar_for_each_bin_with_pixels(figures, tmp_path):
    draw("calibration", tmp_path)
    accuracy, share = figures[0].axes
    heights = [bar.get_height() for bar in accuracy.patches]
    assert np.isnan(heights[0])
    assert heights[1:] == [0.4, pytest.approx(28 / 30)]
    assert [bar.get_height() for bar in share.patches] == [0, 0.25, 0.75]
    assert accuracy.get_title() == "" != accuracy.get_title(loc="left")
