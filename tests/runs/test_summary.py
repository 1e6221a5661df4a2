"""The tables that a call ends with."""

from types import SimpleNamespace

import pandas as pd
import pytest

from unetseg.runs import summary
from unetseg.runs.summary import show


def summaries(*runs):
    scores = {f"test/{name}": 0.5 for name in ("iou", "iou_per_image", "dice", "boundary_iou")}
    rest = {"encoder": "resnet18", "parameters": 1e6, "images_per_second": 10.0, "seconds": 60.0, "folder": "runs/a"}
    return [{"variant": variant, "seed": seed, **scores, **rest} for variant, seed in runs]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([("concat", 0), ("add", 0), ("none", 0)], True),
        ([("concat", 0), ("concat", 1), ("add", 0), ("add", 1)], False),
        ([("concat", 0)], False),
        ([("concat", 0), ("concat", 1)], False),
    ],
)
def test_a_table_of_settings_with_one_seed_says_that_it_decides_nothing(runs, said, capsys):
    show(summaries(*runs))
    assert ("one seed decides nothing" in capsys.readouterr().out) == said


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setattr(summary, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setenv("COLUMNS", "80")


def test_one_run_is_a_list_of_names_and_values(terminal, capsys):
    show(summaries(("none-concat-add-concat backward matched", 0)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "on the test split"
    assert "  skip       none-concat-add-concat backward matched" in lines
    assert "  boundary   0.500" in lines
    assert "  time       1:00" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("variant", ["concat", "none-concat-add-concat", "none-concat-add-concat backward matched"])
def test_a_table_of_runs_has_the_columns_that_fit_and_cuts_nothing(variant, terminal, capsys):
    show(summaries((variant, 0), (variant, 1)))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for whole in (variant, "seed", "IoU", "0.500"):
        assert whole in text


def test_a_long_name_of_a_group_leaves_the_scores_whole(terminal, capsys):
    scores = {"iou": 0.5, "iou_per_image": 0.5, "dice": 0.5, "boundary_iou": 0.5, "images": 3}
    groups = pd.DataFrame([{"group": "a" * 90, **scores}, {"group": "b", **scores}])
    whole = {f"test/{name}": value for name, value in scores.items()}
    summary.show_groups(groups, {**whole, "split": "test", "folder": "runs/a"})
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("0.500") == 12
    assert max(map(len, text.splitlines())) <= 80


def test_the_scores_that_cuts_cost_fit_a_terminal(terminal, capsys):
    names = [f"{name}{part}" for name in ("iou_loss", "boundary_iou_loss") for part in ("", "_low", "_high")]
    worth = [f"{name}{part}" for name in ("iou", "boundary_iou") for part in ("", "_low", "_high")]
    lesion = pd.DataFrame(
        [{"cut": "zero", "levels": levels, **dict.fromkeys(names, -0.5)} for levels in ("1", "2", "1+2")]
    )
    shapley = pd.DataFrame([{"cut": "zero", "level": level, **dict.fromkeys(worth, -0.5)} for level in (1, 2)])
    summary.show_lesions({"lesion": lesion, "shapley": shapley})
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("-0.500 [-0.500, -0.500]") == 2 * (3 + 2)
    assert "boundary Shapley" in text


def test_names_in_tables_are_text_and_no_markup(capsys):
    summary._print_table("scores", [{"group": "[/b]\x1b[2J", "IoU": "0.5"}])
    text = capsys.readouterr().out
    assert "[/b]\\x1b[2J" in text
