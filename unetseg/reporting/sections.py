"""The report of a sweep: its question and answer, and the sections on the settings' results."""

from __future__ import annotations

import pandas as pd

from unetseg.names import counted, view_text
from unetseg.reporting import charts, comparisons, scores, search, sentences
from unetseg.reporting.comparisons import METRICS, Pair
from unetseg.reporting.document import Block, Document, Figure, Section, Table
from unetseg.reporting.mechanisms import edges, freeu, gradients, lesions, routes, short_skips
from unetseg.reporting.provenance import common, provenance
from unetseg.reporting.results import Sweep
from unetseg.reporting.sentences import interval, number, p_value
from unetseg.reporting.shifts import shifts

COSTS = (
    ("parameters", "parameters (M)", 1e6, 2, ""),
    ("flops", "GFLOPs", 1e9, 2, "FLOPs: a forward pass of one picture, a multiplication with its addition as two."),
    ("activation_memory", "activations (MiB)", 2**20, 1, "Activations: what that pass keeps for the backward pass."),
    ("images_per_second", "images/s", 1, 1, "Images/s: while training, at the machine's load of the time."),
)
"""The costs of a summary that are shown: entry, title, unit, digits, note."""

GALLERY = 36
"""The most images in the gallery: a page of some 0.6 MB more."""


def report(sweep: Sweep, *, plan: float | None = None, pooled: bool = False, trust: bool = False) -> Document:
    """Return the whole report, of a search its own.

    Args:
        sweep: the runs to report.
        plan: a difference for which the number of seeds needed is planned; None leaves the section out.
        pooled: take the seeds' variance as the same for all settings.
        trust: import the classes of somebody's own that the runs name, whose predictions are shown.
    """
    if "search" in sweep.record:
        return search.report(sweep, plan=plan)
    unit = comparisons.unit(sweep)
    differences, left_out = comparisons.pairs(sweep.settings, unit, pooled=pooled)
    sections = [
        question(sweep, differences, unit),
        settings(sweep, unit),
        paired_differences(sweep, differences, left_out, unit, pooled),
        planning(sweep, differences, unit, plan) if plan is not None else None,
        classes(sweep),
        curves(sweep),
        gradients(sweep),
        routes(sweep),
        short_skips(sweep),
        edges(sweep, unit),
        lesions(sweep),
        shifts(sweep, pooled=pooled),
        freeu(sweep),
        examples(sweep, trust=trust),
        provenance(sweep),
    ]
    names = sentences.join_words([setting.name for setting in sweep.settings])
    asked = (
        f"Do {names} differ in how well they segment?" if len(sweep.settings) > 1 else f"How well does {names} segment?"
    )
    views = sorted({view_text(run.options["data"]) for run in sweep.runs})
    facts = (
        f"U-Net with {common(sweep, 'model.encoder')} on {common(sweep, 'data.name')}, {' or '.join(views)}, "
        f"{common(sweep, 'trainer.max_epochs')} epochs; {counted(len(sweep.settings), 'setting')}, "
        f"{counted(len(sweep.runs), 'run')}"
    )
    if len(views) > 1:
        facts += ". Their scores are not of the same pixels: squares and whole pictures of other sizes differ"
    colours = {setting.name: setting.colour for setting in sweep.settings}
    return Document("Long skips: an ablation", asked, facts, [section for section in sections if section], colours)


def titles(unit: str) -> dict[str, str]:
    """Return the metrics' names with their unit."""
    return {metric: f"{title} per {unit}" for metric, title in METRICS.items()}


def question(sweep: Sweep, differences: dict[str, list[Pair]], unit: str) -> Section:
    """Return the answer that the paired differences give to the report's question."""
    base, names = sweep.settings[0], [setting.name for setting in sweep.settings]
    notes = [sentences.seeds(sweep, differences["iou"], unit), *sentences.folds(sweep, differences["iou"], unit)]
    notes += [sentences.groups_unused(comparisons.groups_unused(sweep, unit)), sentences.absent(sweep)]
    if len(names) == 1:
        return Section("Answer", sentences.best(sweep), [note for note in notes if note])
    lead, *answers = [sentences.compare_with_base(base, differences[m], title) for m, title in titles(unit).items()]
    cells: dict[str, list[str]] = {}
    for pairs in differences.values():
        for pair in pairs:
            if pair.base is base:
                cells.setdefault(pair.other.name, []).append(sentences.describe_pair(pair, unit))
    caption = f"Mean difference from {base.name} on the same {unit}s [95 % interval]."
    table = Table(["setting", *titles(unit).values()], [[name, *row] for name, row in cells.items()], caption=caption)
    return Section("Answer", lead, [*answers, *([table] if cells else []), *(note for note in notes if note)])


def settings(sweep: Sweep, unit: str) -> Section:
    """Return the table of settings."""
    costs = [cost for cost in COSTS if any(cost[0] in run.summary for run in sweep.runs)]
    folds = unit == "fold"
    rows = []
    for setting in sweep.settings:
        over_set = [run.summary["test/iou"] for run in setting.runs]
        span = f" ({number(min(over_set))} to {number(max(over_set))})" if len(over_set) > 1 else ""
        means = [comparisons.mean_with_interval(setting, metric, unit) for metric in METRICS]
        rows.append(
            [
                setting.name,
                number(setting.mean("test/iou")) + span,
                *("–" if m is None else f"{number(m.difference)} {interval(m.low, m.high)}" for m in means),
                *(number(setting.mean(name) / scale, digits) for name, _, scale, digits, _ in costs),
                ", ".join(map(str, setting.seeds)),
                *([", ".join(map(str, setting.folds))] if folds else []),
            ]
        )
    over = "seeds and folds" if folds else "seeds"
    caption = (
        f"IoU over the set: pixels summed over all test images; the mean over {over} (their range). Per {unit}: the "
        f"mean over seeds and {unit}s [95 % interval; of one seed over the {unit}s only]"
        f"{', of the folds whose seeds are complete.' if folds else '.'}"
    )
    columns = ["setting", "IoU over the set", *titles(unit).values(), *(cost[1] for cost in costs), "seeds"]
    columns += ["folds"] if folds else []
    caption = " ".join([caption, *(cost[4] for cost in costs if cost[4])])
    return Section("Settings", sentences.best(sweep), [Table(columns, rows, caption=caption)])


def paired_differences(
    sweep: Sweep, differences: dict[str, list[Pair]], left_out: list[str], unit: str, pooled: bool
) -> Section | None:
    """Return the paired differences as tables and forest plots."""
    if len(sweep.settings) == 1:
        return None
    if not differences["iou"]:
        return Section("Paired differences", "No two settings can be compared image by image.", left_out)
    grouped = any(pair.grouped for pairs in differences.values() for pair in pairs)
    columns = ["difference", "mean", "95 % interval", "p (Holm)", "smallest", "seeds", f"{unit}s", "shown"]
    columns += ["as if images were independent"] if grouped else []
    tables, panels = [], []
    for metric, title in titles(unit).items():
        rows = []
        for pair in differences[metric]:
            result = pair.result
            tests = [p_value(pair.p), sentences.estimate(pair)] if not pair.one_seed else ["–", "–"]
            shown = "one seed" if pair.one_seed else "yes" if pair.shown else "no"
            estimated = sentences.mean_and_interval(result)
            row = [pair.name, *estimated, *tests, str(result.seeds), str(result.units), shown]
            rows.append([*row, *([" ".join(sentences.mean_and_interval(pair.by_image))] if grouped else [])])
        tables.append(Table(columns, rows, caption=f"{title}, on the same {unit}s and seeds."))
        panels.append(charts.forest(f"differences_{metric}", title, differences[metric]))
    caption = (
        "Dots: mean difference, filled where one was shown. Lines: 95 % interval. Grey: smaller than the smallest "
        f"difference that could have been shown with these seeds and {unit}s, an estimate."
    )
    note = (
        f'p is corrected over all pairs and metrics of this section. "Smallest": the least difference that these seeds '
        f"and {unit}s could have shown four times in five at the level that Holm's correction leaves, an estimate with "
        f"its own 95 % interval. With one seed the intervals cover the {unit}s only."
    )
    shared = sentences.pooling(comparisons.pooled_variance(sweep.settings, "iou", unit) is not None)
    lead = sentences.differences({title: differences[metric] for metric, title in titles(unit).items()})
    notes = [note, *([shared] if pooled else []), *sentences.units(differences, unit), *left_out]
    notes += [sentences.seeds(sweep, differences["iou"], unit), *sentences.folds(sweep, differences["iou"], unit)]
    blocks: list[Block] = [Figure(panels, caption, width=340), *tables, *notes]
    return Section("Paired differences", lead, blocks)


def planning(sweep: Sweep, differences: dict[str, list[Pair]], unit: str, difference: float) -> Section:
    """Return how many seeds and units would show a difference."""
    if unit == "fold":
        return Section("Plan", "There is no plan over folds: of so few their spread is hardly known. Plan on one fold.")
    plans = comparisons.plans(differences, unit)
    if not plans:
        lead = "A plan needs two settings with two seeds each: one seed says nothing of how far trainings spread."
        return Section("Plan", lead)
    now = sorted({pair.result.seeds for pairs in differences.values() for pair in pairs if not pair.one_seed})
    rows, parts, panels = [], [], []
    for plan in plans:
        title = titles(unit)[plan.metric]
        needed, units_help = plan.seeds(difference, 1), plan.units_help(difference)
        parts.append(sentences.describe_plan(title, needed, f"{plan.units} {unit}s", now, units_help=units_help))
        for times in comparisons.TIMES:
            value, low, high = ("> 100" if n is None else str(n) for n in plan.seeds(difference, times))
            rows.append([title, str(times * plan.units), value, f"{low} to {high}"])
        panels.append(charts.plan(f"plan_{plan.metric}", title, plan, difference, unit))
    lead = f"To show a difference of {difference:g} four times in five takes {'; '.join(parts)}."
    caption = (
        f"Seeds needed by the spread seen so far, the mean over all pairs, at the level that Holm asks of the first of "
        f"{round(0.05 / plans[0].level)} comparisons; their range follows from the 95 % interval of the variance over "
        f"seeds. The spread over {unit}s is taken as it was seen."
    )
    table = Table(["metric", f"{unit}s", "seeds", "range"], rows, caption=caption)
    note = (
        f"Lines: the smallest difference that so many seeds could show, for each number of test {unit}s. Band: the "
        f"range for the {unit}s as they are. Dotted: the difference asked for."
    )
    return Section("Plan", lead, [Figure(panels, note, width=340), table])


def classes(sweep: Sweep) -> Section | None:
    """Return the IoU of each class."""
    tables = scores.class_iou(sweep)
    if not tables:
        return None
    pixels = sweep.runs[0].per_class.pixels
    shares = 100 * pixels / max(pixels.sum(), 1)
    rows = [
        [name, number(share, 2), *(sentences.mean_over_seeds(table[name]) for table in tables.values())]
        for name, share in shares.items()
    ]
    lead = sentences.classes(pd.concat(tables.values()).mean())
    caption = (
        "IoU of each class over all test pixels: the mean over seeds "
        f"[95 % interval over the seeds, where there are {sentences.SEEDS_OF_AN_INTERVAL} or more]. The intervals are "
        "not corrected for the number of classes, and no difference between settings is read from them."
    )
    columns = ["class", "% of the pixels", *(setting.name for setting in tables)]
    return Section("Classes", lead, [Table(columns, rows, caption=caption)])


def curves(sweep: Sweep) -> Section | None:
    """Return the learning curves."""
    titles = {"val/iou": "validation IoU", "val/boundary_iou": "validation Boundary IoU", "train/loss": "training loss"}
    tables = {name: {s: t for s in sweep.settings if (t := scores.curve(s, name)).size} for name in titles}
    if not tables["val/iou"]:
        return None
    ends = {setting: scores.ends(setting, "val/iou") for setting in tables["val/iou"]}
    last = {setting: sum(value for value, _ in of_runs) / len(of_runs) for setting, of_runs in ends.items()}
    each = [best for of_runs in ends.values() for _, best in of_runs]
    lead = sentences.learning(last, sum(each), len(each))
    panels = [
        charts.lines(name.replace("/", "_"), titles[name], "epoch", shown) for name, shown in tables.items() if shown
    ]
    over = "seeds and folds" if any(len(setting.folds) > 1 for setting in last) else "seeds"
    band = f"the mean over {over}, in a band from the least to the greatest" if len(each) > len(last) else "one seed"
    legend = charts.legend(sweep.settings)
    return Section("Learning curves", lead, [Figure(panels, f"Each line: a setting, {band}.", legend=legend)])


def examples(sweep: Sweep, *, trust: bool = False) -> Section:
    """Return the best, median and worst test images with the predictions of every setting."""
    title = "Best, median and worst images"
    ranked = scores.ranked_images(sweep)
    if not ranked:
        return Section(title, "Not shown: the settings have no images with scores in common.")
    first_runs = [setting.runs[0] for setting in sweep.settings]
    if len({run.fold for run in first_runs}) > 1:
        return Section(title, "Not shown: the settings begin with different folds.")
    absent = [f"{run.place}/checkpoints/{run.tested.name}" for run in first_runs if not run.tested.is_file()]
    if absent:
        return Section(title, f"Not shown: not there any more: {', '.join(absent)}.")
    from unetseg.reporting import examples as example_figures  # imports torch

    worst = scores.worst_first(sweep)
    try:
        *rows, gallery = example_figures.examples(sweep, ranked, worst[:GALLERY], trust=trust)
    except example_figures.MissingInput as reason:
        return Section(title, f"Not shown: {reason}.")
    lead = (
        f"By the mean IoU over all settings and seeds, the test images reach from {number(ranked[-1].iou)} to "
        f"{number(ranked[0].iou)}; these are single images, and no difference between settings is read from them."
    )
    note = (
        "Each setting with the tested checkpoint of its first seed, predicted anew in float32, and the IoU that the "
        "run recorded. White: the outline of the truth."
    )
    order = (
        f"{len(gallery.panels)} of {len(worst)} scored test images by their mean IoU over all settings and seeds, "
        f"the worst first, with the prediction of {sweep.settings[0].name}, seed {first_runs[0].seed}:"
    )
    return Section(title, lead, [*rows, note, order, gallery])
