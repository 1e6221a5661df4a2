"""The tables that a call ends with."""

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


def test_names_in_tables_are_text_and_no_markup(capsys):
    summary._print_table("scores", [{"group": "[/b]\x1b[2J", "IoU": "0.5"}])
    text = capsys.readouterr().out
    assert "[/b]\\x1b[2J" in text
