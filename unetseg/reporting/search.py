"""The report of a search: its trials by validation IoU. No test score is in it, so that none can choose."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from unetseg.names import counted, view_text
from unetseg.reporting import charts
from unetseg.reporting.document import Block, Code, Document, Figure, Section, Table
from unetseg.reporting.provenance import common, provenance
from unetseg.reporting.results import Sweep
from unetseg.reporting.sentences import join_words, number
from unetseg.runs.tables import TRIAL_STATES

BEST = 10
"""The most trials in the table of the best."""
MARKS = "Filled: finished. Hollow: pruned, with its best val/iou until then."


def report(sweep: Sweep, *, plan: float | None = None) -> Document:
    """Return the report of a search.

    Args:
        sweep: the finished trials, with the table of all.
        plan: a difference for which the number of seeds needed is asked.
    """
    trials, search = sweep.trials, sweep.record["search"]
    no_plan = Section("Plan", "There is no plan of a search: its trials have one seed each.")
    sections = [
        best(trials, search),
        history(trials),
        options(trials, search),
        *([] if plan is None else [no_plan]),
        provenance(sweep),
    ]
    counts = trials.state.value_counts()
    states = join_words([f"{counts[state]} {state}" for state in TRIAL_STATES if state in counts])
    views = sorted({view_text(run.options["data"]) for run in sweep.runs})
    facts = (
        f"U-Net with {common(sweep, 'model.encoder')} on {common(sweep, 'data.name')}, {' or '.join(views)}, "
        f"{common(sweep, 'trainer.max_epochs')} epochs; {counted(len(trials), 'trial')}: {states}"
    )
    asked = f"Which values of {join_words([*search['space']])} have the best validation IoU?"
    return Document("Options: a search", asked, facts, sections, {})


def ranked(trials: pd.DataFrame) -> pd.DataFrame:
    """Return trials by their validation IoU, the best first: those that are finished, then those that are not."""
    order = trials.state.map(TRIAL_STATES.index)
    return trials.assign(order=order).sort_values(["order", "val/iou"], ascending=[True, False], kind="stable")


def best(trials: pd.DataFrame, search: dict[str, Any]) -> Section:
    """Return the best trials, and what would say how good their options are."""
    first, top = ranked(trials).iloc[0], ranked(trials).head(BEST)
    closed = trials.state.isin(("finished", "pruned")).sum()
    keys = [*search["space"]]
    rows = [
        [
            str(row.folder),
            number(row["val/iou"], 4),
            str(row.state),
            str(row.validations),
            *(_short(row[k]) for k in keys),
        ]
        for _, row in top.iterrows()
    ]
    caption = (
        "IoU: of the last validation of a trial whose last weights are its model, else of its best; of one that is not "
        "finished the best so far. Those come last, whatever they had reached."
    )
    columns = ["trial", "validation IoU", "state", "validations", *keys]
    blocks: list[Block] = [Table(columns, rows, caption=caption)]
    blocks.append(
        f"The best of {counted(int(closed), 'trial')} is an optimistic estimate: it was chosen for its score on the "
        "validation pictures, which is partly chance, and one seed decides nothing. The search looked at no test "
        "picture's score, and none is shown here."
    )
    if search.get("next"):
        blocks += ["What the options are worth, the test split says, with seeds that the search did not use:"]
        blocks += [Code([search["next"]])]
    left = search["trials"] - int(closed)
    if left > 0:
        blocks.append(f"{counted(left, 'trial')} of {search['trials']} are still to come; the same command goes on.")
    lead = f"{first.folder} has the best validation IoU, {number(first['val/iou'], 4)}."
    return Section("Best trials", lead, blocks)


def history(trials: pd.DataFrame) -> Section:
    """Return the validation IoU by trial, and the best so far."""
    finished = trials[trials.state == "finished"]
    place = int(finished["val/iou"].argmax()) + 1
    lead = f"The best came as number {place} of {counted(len(finished), 'finished trial')}."
    panel = charts.search_history("search_history", trials)
    return Section("History", lead, [Figure([panel], f"{MARKS} Line: the best finished so far.", width=340)])


def options(trials: pd.DataFrame, search: dict[str, Any]) -> Section:
    """Return the validation IoU over each option, and how much the options matter."""
    panels = [
        charts.over_option(
            f"option_{position}", key, trials[[key, "val/iou", "state"]], log=bool(re.search(r"tag\(\s*log\b", text))
        )
        for position, (key, text) in enumerate(search["space"].items())
    ]
    blocks: list[Block] = [Figure(panels, f"Each dot: a trial. {MARKS}")]
    importance = search.get("importance") or {}
    if importance:
        shares = sorted(importance.items(), key=lambda entry: -entry[1])
        caption = (
            "Importance: by PED-ANOVA (Watanabe, Bansal and Hutter 2023), how far an option sets the best tenth of the "
            "trials apart from the others; the shares add up to 1. With few trials it is a rough guide."
        )
        blocks.append(
            Table(["option", "importance"], [[key, number(share, 2)] for key, share in shares], caption=caption)
        )
        lead = f"Most of what sets the best trials apart is {shares[0][0]}, by estimate."
    else:
        lead = "Which option matters most is not estimated: it takes ten finished trials and two options."
    return Section("Options", lead, blocks)


def _short(value: str) -> str:
    """Return a value as in trials.csv with four digits where it is a number with more."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?|-?\d+e[-+]?\d+", value) else value
