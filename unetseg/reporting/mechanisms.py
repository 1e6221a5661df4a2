"""Sections on mechanisms: the flow of gradients, errors by distance to the edge, and the cost of a cut skip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unetseg.evaluation.gradient_plots import EXIT_COLOURS
from unetseg.evaluation.statistics import seed_interval
from unetseg.names import AUXILIARY, BOTTLENECK, EXITS
from unetseg.reporting import charts, gradient_readings, scores
from unetseg.reporting.document import Block, Figure, Section, Table
from unetseg.reporting.results import Setting, Sweep
from unetseg.reporting.sentences import SEEDS_OF_AN_INTERVAL, change, interval, join_words, number

INDICES = {"vanishing_slope": "vanishing slope", "centre_dip": "centre dip"}
FEWEST_DOTS = 8
"""With fewer runs a scatter of them shows no more than the table."""
CUT = "mean"
"""The one of lesions.CUTS in the report's table: the most like the features that the decoder was trained on."""


def gradients(sweep: Sweep) -> Section | None:
    """Return heatmaps on one scale, the skip share of each level, and the vanishing indices beside the IoU."""
    heat = {setting: table for setting in sweep.settings if (table := gradient_readings.gradient_rms(setting)).size}
    if not heat:
        return None
    everything = np.concatenate([table.to_numpy().ravel() for table in heat.values()])
    alive = everything[np.isfinite(everything)]
    low, high = (alive.min(), alive.max()) if len(alive) else (-1, 0)
    maps = [charts.heatmap(f"gradient_{i}", s.name, table, low, high) for i, (s, table) in enumerate(heat.items(), 1)]
    mean = ", the mean over the seeds" if any(len(setting.runs) > 1 for setting in heat) else ""
    caption = f"log10 of the rms of each block's gradient{mean}, all on one colour scale; grey: a gradient of 0."

    block = max(heat.values(), key=len).index[0]  # a frozen encoder's blocks have no gradient, and no rows
    first = {s.name: float(table.loc[block].median()) for s, table in heat.items() if block in table.index}
    least, greatest = min(first, key=lambda name: first[name]), max(first, key=lambda name: first[name])
    lead = f"The gradient of the {block} (rms, median over steps) is {_power_of_ten(first[least])} with {least}"
    if least != greatest:
        lead += f", the least, and {_power_of_ten(first[greatest])} with {greatest}, the greatest"
    shares = {
        (level, setting): table
        for level in gradient_readings.levels(sweep)
        for setting in sweep.settings
        if (table := gradient_readings.skip_share(setting, level)).any(axis=None)
    }
    if not shares:
        read = gradient_readings.levels(sweep)
        lead += "; no gradient came by a long skip" if read else "; the encoder's features have no skip share"
        return Section("Gradient flow", f"{lead}.", [Figure(maps, caption), *_vanishing(sweep)])
    medians = {key: float(table.mean().median()) for key, table in shares.items()}
    level, setting = max(medians, key=lambda key: medians[key])
    share = number(medians[level, setting], 2)
    lead += f"; the greatest skip share (median over steps) is {share}, {_level_name(level)} of {setting.name}"
    limits = charts.limits_of(shares.values())
    panels = [
        charts.lines(
            f"skip_share_{level}",
            "skip share",
            "step",
            {setting: table for (own, setting), table in shares.items() if own == level},
            title=_level_name(level),
            limits=limits,
            wide=True,
        )
        for level in dict.fromkeys(level for level, _ in shares)
    ]
    note = (
        "Share of the gradient with respect to a stage's features that arrived by that stage's own long skip; level 1 "
        "is the finest. The rest holds every coarser long skip: by which exit a weight's gradient came is another "
        "question, answered below where it was read."
    )
    without_share = [setting.name for setting in heat if not any(own is setting for _, own in shares)]
    if without_share:
        note += f" It is 0 throughout with {join_words(without_share)}."
    flow = Figure(panels, note, width=340, legend=charts.legend(sweep.settings))
    return Section("Gradient flow", f"{lead}.", [Figure(maps, caption), flow, *_vanishing(sweep)])


def routes(sweep: Sweep) -> Section | None:
    """Return by which exit of the encoder its gradient came: for its first block, and for all of it."""
    blocks = gradient_readings.routed_blocks(sweep)
    tables = {
        (block, setting): shares
        for block in blocks
        for setting in sweep.settings
        if (shares := gradient_readings.exit_shares(setting, block))
    }
    if not tables:
        return None
    first = blocks[0]
    skipped = {
        setting.name: (_over_seeds if len(setting.folds) > 1 else _with_interval)(
            [(1 - table.filter([BOTTLENECK, AUXILIARY]).sum(axis=1)).median() for table in shares]
        )
        for (block, setting), shares in tables.items()
        if block == first
    }
    by_setting = join_words([f"{share} with {name}" for name, share in skipped.items()])
    lead = f"Of the {first}'s gradient, the share that came by a long skip (median over the readings) is {by_setting}."
    supervised = any(AUXILIARY in table for shares in tables.values() for table in shares)
    exits = (*EXITS, AUXILIARY) if supervised else EXITS
    rows = [
        [setting.name, block, *(_over_seeds([t[name].median() for t in shares if name in t]) for name in exits)]
        for (block, setting), shares in tables.items()
    ]
    means = {}
    for (block, setting), shares in tables.items():
        if block == first:
            steps = sorted(set.intersection(*(set(table.index) for table in shares)))
            means[setting] = sum(readings.loc[steps].fillna(0) for readings in shares) / len(shares)
    stacks = [pd.DataFrame([mean.clip(upper=0).sum(axis=1), mean.clip(lower=0).sum(axis=1)]) for mean in means.values()]
    limits = charts.limits_of(stacks)
    panels = [
        charts.exits(f"exits_{i}", f"{setting.name}, {first}", mean, limits)
        for i, (setting, mean) in enumerate(means.items(), start=1)
    ]
    caption = (
        "Every path from the loss to a weight of the encoder enters it by one exit: a level's long skip, or the "
        f"bottleneck{', or the auxiliary heads' if supervised else ''}. Bars: the mean over seeds of each reading's "
        "shares, which sum to 1; a term that points against the gradient hangs below the axis."
    )
    table_caption = (
        "Median over the readings, mean over the seeds (the least to the greatest seed). These are measurements of "
        "these runs' gradients; no difference between settings is claimed from them."
    )
    columns = ["setting", "block", *(_level_name(name) for name in exits)]
    legend = charts.colours_legend("exits_legend", {name: EXIT_COLOURS[name] for name in exits})
    figure = Figure(panels, caption, legend=legend)
    return Section(
        "By which exit the gradient came", lead, [figure, Table(columns, rows, words=2, caption=table_caption)]
    )


def short_skips(sweep: Sweep) -> Section | None:
    """Return by which way the gradient came through the encoder's own skips: residual blocks, and dense ones."""
    shares = {setting: tables for setting in sweep.settings if (tables := gradient_readings.identity_shares(setting))}
    matrices = {setting: found for setting in sweep.settings if (found := gradient_readings.reuse(setting))}
    leads: list[str] = []
    blocks: list[Block] = []
    if shares:
        means = [f"{_over_readings([t.mean(axis=1) for t in tables])} with {s.name}" for s, tables in shares.items()]
        leads.append(
            "Of the gradient at a residual block's input, the share that came by the addition (mean over the blocks) "
            f"is {join_words(means)}."
        )
        blocks += _identity_shares(sweep, shares)
    if matrices:
        for_output = [f"{number(_direct(found[1]['reuse']), 2)} with {s.name}" for s, found in matrices.items()]
        leads.append(
            "Of the gradient at a dense layer's output, the share that came from no later layer of its block but from "
            f"behind it (mean over the layers of the largest block) is {join_words(for_output)}."
        )
        panels = [
            charts.reuse(f"{name}_{i}", f"{setting.name}, {block}: {title}", tables[name])
            for i, (setting, (block, tables)) in enumerate(matrices.items(), start=1)
            for name, title in (("reuse", "share of the gradient"), ("weight", "mean |w|"))
        ]
        caption = (
            "The dense block with the most layers; medians over the readings, means over the seeds. Share of the "
            "gradient: what of a layer's came from each reader; a row sums to 1. Mean |w|: of the weights that read it "
            "(Huang et al. 2017, Fig. 5), which is related and not the same. Row 0: the block's input. Column out: "
            "the block's output, brightest where it is beyond the layers' scale."
        )
        blocks.append(Figure(panels, caption))
    return Section("Short skips inside the encoder", " ".join(leads), blocks) if leads else None


def _identity_shares(sweep: Sweep, shares: dict[Setting, list[pd.DataFrame]]) -> list[Block]:
    """Return the identity share by depth, and of each stage, side by side over settings."""
    by_depth = {}
    for setting, tables in shares.items():
        medians = pd.DataFrame([table.median() for table in tables])
        by_depth[setting] = medians.set_axis(range(1, medians.shape[1] + 1), axis=1)
    panel = charts.lines("identity_share", "identity share", "residual block, in forward order", by_depth, wide=True)
    stages = sorted({block.partition(".")[0] for tables in shares.values() for block in tables[0]})
    rows = []
    for setting, tables in shares.items():
        by_stage = [table.T.groupby(lambda block: block.partition(".")[0]).mean().T for table in tables]
        rows.append(
            [
                setting.name,
                *(_over_readings([table[stage] for table in by_stage if stage in table]) for stage in stages),
            ]
        )
    caption = "Medians over the readings: the mean over seeds, in a band from the least to the greatest."
    table_caption = (
        "The mean over a stage's blocks: median over the readings, mean over the seeds (the least to the greatest of "
        "all readings). These are measurements of these runs' gradients; no difference between settings is claimed. "
        "Where a block changes the shape, what is added is a projection of its input."
    )
    return [
        Figure([panel], caption, width=340, legend=charts.legend(sweep.settings)),
        Table(["setting", *stages], rows, caption=table_caption),
    ]


def _over_readings(seeds: Sequence[pd.Series]) -> str:
    """Return 0.34 (0.30 to 0.38): median over readings and mean over seeds, and the range of all; nothing for none."""
    if not seeds:
        return ""
    ends = min(seed.min() for seed in seeds), max(seed.max() for seed in seeds)
    middle = float(np.mean([seed.median() for seed in seeds]))
    return f"{number(middle, 2)} ({number(ends[0], 2)} to {number(ends[1], 2)})"


def _direct(reuse: pd.DataFrame) -> float:
    """Return the mean share that came by the block's output, over its layers."""
    return float(reuse.drop(index="0")["out"].mean())


def _with_interval(values: Sequence[float]) -> str:
    """Return 0.79 [0.75, 0.83], Student's 95 % interval over seeds, where there are three or more; else the range."""
    if len(values) < SEEDS_OF_AN_INTERVAL:
        return _over_seeds(values)
    return f"{number(float(np.mean(values)), 2)} {interval(*seed_interval(values), 2)}"


def _over_seeds(values: Sequence[float]) -> str:
    """Return 0.79 (0.77 to 0.81), the range over seeds only where there are several; nothing for no value."""
    if not values:
        return ""
    mean = number(float(np.mean(values)), 2)
    return mean if len(values) == 1 else f"{mean} ({number(min(values), 2)} to {number(max(values), 2)})"


def _vanishing(sweep: Sweep) -> list[Block]:
    table = gradient_readings.vanishing(sweep)
    rows = [
        [name, *(change(of_setting[index].mean()) for index in INDICES), number(of_setting.iou.mean())]
        for name, of_setting in table.groupby("setting", sort=False)
    ]
    caption = (
        "Medians over the readings, the mean over seeds. Vanishing slope: by how much log10 rms rises from a block to "
        "the next; above 0, the first blocks get the smallest gradients. Centre dip: "
        "log10 of the bottleneck's rms over the geometric mean of the first and last block's."
    )
    indices = Table(["setting", *INDICES.values(), "IoU over the set"], rows, caption=caption)
    if len(table) < FEWEST_DOTS:
        return [indices]
    panels = [charts.scatter(index, title, index, table, sweep.settings) for index, title in INDICES.items()]
    dots = "Each dot: a run, its median over the readings. That an index explains the IoU is not claimed."
    return [Figure(panels, dots, width=340, legend=charts.legend(sweep.settings)), indices]


def edges(sweep: Sweep, unit: str) -> Section | None:
    """Return the error rates by distance to the mask's edge."""
    tables = {setting: table for setting in sweep.settings if (table := scores.edge_errors(setting, unit)).size}
    if not tables:
        return None
    names = next(iter(tables.values())).columns
    rows = [[s.name, *(_percent(*table[band]) for band in names)] for s, table in tables.items()]
    near, far = (join_words([f"{row[column]} ({row[0]})" for row in rows]) for column in (1, -1))
    covered = f"the intervals cover the {unit}s only, of these trained models, and "
    lead = (
        f"Wrong beside the mask's edge (distance {names[0]}), in % of the pixels: {near}; farthest from it "
        f"({names[-1]}): {far}; {covered if unit != 'fold' else ''}no difference is claimed from them."
    )
    panels = [charts.rates("edge_distance", "share of wrong pixels", "distance to the mask's edge (pixels)", tables)]
    caption = "Pixels and errors summed over images and seeds."
    caption += f" Bands: 95 % interval over {unit}s, of these models." if unit != "fold" else ""
    without_table = [setting.name for setting in sweep.settings if setting not in tables]
    blocks: list[Block] = [
        Figure(panels, caption, 340, charts.legend(sweep.settings)),
        Table(["setting", *names], rows, caption="Wrong pixels in % by their distance to the edge, in pixels."),
        *([f"Without an edge_distance.csv in each run: {join_words(without_table)}."] if without_table else []),
    ]
    return Section("Errors by distance to the edge", lead, blocks)


def lesions(sweep: Sweep) -> Section | None:
    """Return what trained models lose when their long skips are cut."""
    rows, worst = [], (-np.inf, "")
    for setting, run, evaluation, losses, shapley in scores.lesions(sweep):
        values = shapley[shapley.cut == CUT].set_index("level").rename(str)
        for levels in [*values.index, "+".join(values.index)]:
            row = losses[(losses.cut == CUT) & (losses.levels == levels)].iloc[0]
            single = levels in values.index
            cells = [_cell(row, f"{name}_loss") for name in ("iou", "boundary_iou")]
            cells += [_cell(values.loc[levels], name) if single else "" for name in ("iou", "boundary_iou")]
            rows.append([setting.name, str(run.seed), evaluation, f"level {levels}" if single else "all", *cells])
            if single:
                worst = max(worst, (row.iou_loss, f"level {levels} of {setting.name} (seed {run.seed}): {cells[0]}"))
    if not rows:
        return None
    columns = ["setting", "seed", "evaluation", "cut"]
    columns += ["IoU lost", "Boundary IoU lost", "IoU Shapley", "Boundary Shapley"]
    caption = (
        "A level's features replaced by their means over images and positions; lesion.csv has every subset of levels, "
        "and zeros and other images' features in their place. Shapley: what a level adds on average over all orders of "
        "putting them back. [95 % interval over the images: of this one trained model, and of no other training.]"
    )
    lead = f"Of the single levels cut from a trained model, the greatest loss of IoU seen is at {worst[1]}."
    return Section("Lesions", lead, [Table(columns, rows, words=4, caption=caption)])


def freeu(sweep: Sweep) -> Section | None:
    """Return how trained models score when their deep path and long skips are weighed by FreeU's factors."""
    rows, most = [], (-np.inf, "")
    for setting, run, evaluation, table in scores.freeu(sweep):
        for _, row in table[table.part != "none"].iterrows():
            cells = [_cell(row, f"{name}_difference") for name in ("iou", "boundary_iou")]
            factors = [f"{row[factor]:g}" for factor in ("b", "s")]
            rows.append([setting.name, str(run.seed), evaluation, row.part, row.levels, *factors, *cells])
            most = max(most, (row.iou_difference, f"{row.part}, levels {row.levels} of {setting.name}: {cells[0]}"))
    if not rows:
        return None
    columns = ["setting", "seed", "evaluation", "weighed", "levels", "b", "s", "IoU change", "Boundary IoU change"]
    caption = (
        "FreeU (Si et al. 2024) at test time: half the channels of the deep path (backbone) amplified by b where their "
        "mean is high, the low frequencies of the long skips multiplied with s. Changes are those of the same model "
        "on the same images. [95 % interval over the images: of this one trained model, and of no other training.]"
    )
    lead = (
        f"Of FreeU's factors the greatest change of IoU seen is {most[1]}. Factors that are chosen by these scores "
        "have to be scored on other images."
    )
    return Section("FreeU", lead, [Table(columns, rows, words=5, caption=caption)])


def _cell(row: pd.Series, name: str) -> str:
    return f"{number(row[name])} {interval(row[f'{name}_low'], row[f'{name}_high'])}"


def _percent(rate: float, low: float, high: float) -> str:
    """Return 40.2 [38.1, 42.5], or 40.2 if there is no interval."""
    return number(100 * rate, 1) + ("" if np.isnan(low) else f" {interval(100 * low, 100 * high, 1)}")


def _level_name(level: str) -> str:
    return level.replace("level", "level ")


def _power_of_ten(exponent: float) -> str:
    """Return 10^exponent as 1.5e-3."""
    if not np.isfinite(exponent):
        return "0" if exponent < 0 else number(exponent)
    digits, _, power = f"{10**exponent:.1e}".partition("e")
    return f"{digits}e{int(power)}"
