"""The report of a search by hand-made trials: which is the best, what sets it apart, what is still to come."""

import pandas as pd
import pytest

from unetseg.reporting import search
from unetseg.reporting.document import Code, Table

SPACE = {"optimizer.lr": "tag(log, interval(1e-4, 1e-2))", "model.skip": "choice(concat, add)"}


@pytest.fixture
def trials() -> pd.DataFrame:
    rows = [
        (0, "trial_000", "finished", 0.61, 4, "0.00123456", "concat"),
        (1, "trial_001", "pruned", 0.90, 2, "0.01", "add"),  # better than all until it ended, and not the best
        (2, "trial_002", "finished", 0.72, 4, "0.002", "add"),
        (3, "trial_003", "failed", float("nan"), 0, "0.0099", "add"),
    ]
    return pd.DataFrame(rows, columns=["trial", "folder", "state", "val/iou", "validations", *SPACE])


def test_the_best_is_a_finished_trial_and_an_unfinished_one_comes_after(trials):
    section = search.best(trials, {"space": SPACE, "trials": 4})
    assert section.lead == "trial_002 has the best validation IoU, 0.7200."
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["trial_002", "trial_000", "trial_001", "trial_003"]
    assert table.rows[1] == ["trial_000", "0.6100", "finished", "4", "0.001235", "concat"]
    assert table.rows[3][1] == "–"


def test_what_is_still_to_come_is_told_and_a_failed_trial_counts_as_such(trials):
    blocks = search.best(trials, {"space": SPACE, "trials": 10}).blocks
    assert "7 trials of 10 are still to come; the same command goes on." in blocks
    assert not any("still to come" in str(block) for block in search.best(trials, {"space": SPACE, "trials": 3}).blocks)


def test_the_command_for_the_test_is_shown(trials):
    command = "python -m unetseg.ablate seed=1,2,3"
    blocks = search.best(trials, {"space": SPACE, "trials": 4, "next": command}).blocks
    assert [block.lines for block in blocks if isinstance(block, Code)] == [[command]]


def test_options_are_ordered_by_their_importance_and_none_is_made_up(trials):
    shares = {"optimizer.lr": 0.254, "model.skip": 0.746}
    section = search.options(trials, {"space": SPACE, "trials": 4, "importance": shares})
    assert section.lead == "Most of what sets the best trials apart is model.skip, by estimate."
    table = section.blocks[-1]
    assert isinstance(table, Table)
    assert table.rows == [["model.skip", "0.75"], ["optimizer.lr", "0.25"]]
    without = search.options(trials, {"space": SPACE, "trials": 4})
    assert without.lead.startswith("Which option matters most is not estimated")
    assert not any(isinstance(block, Table) for block in without.blocks)


def test_the_history_says_when_the_best_finished_trial_came(trials):
    assert search.history(trials).lead == "The best came as number 2 of 2 finished trials."
