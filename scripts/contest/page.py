"""The page on the contest, docs/contest.md: its table and its figure, from the scores that run.py keeps.

python scripts/contest/page.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from run import OF_ANOTHER, SCORES, kept
from scipy import stats

from unetseg.evaluation.statistics import LEVEL, compare, holm
from unetseg.evaluation.style import COLOURS, INK, styled

ROOT = Path(__file__).parents[2]
PAGE, FIGURE = ROOT / "docs/contest.md", ROOT / "docs/images/contest.png"
RECIPES = {
    "ours": "unetseg, defaults",
    "example": "smp's example",
    "tuned": "smp.Unet, tuned",
    "two_rates": "smp.Unet, tuned,\nour two rates",
}
"""The contest's recipes, and how they are called in the figure; the others are variants of ours."""
BY_PICTURE = {"iou": "IoU per picture − ours", "boundary_iou": "Boundary IoU per picture − ours"}
MINUS = "\N{MINUS SIGN}"
METRICS = {"iou": "IoU", "iou_per_image": "IoU per picture", "boundary_iou": "Boundary IoU"}
Scores = dict[tuple[str, str], dict[str, list[Any]]]
"""Of each set and recipe, and of each metric, a score a seed; the seeds; and a seed's scores by picture."""

Key = tuple[str, str, str]
"""Set, recipe and metric."""


def scores(size: int = 128, precision: str = "bf16-mixed") -> Scores:
    """Return the scores of the runs of one size and format."""
    found: Scores = {}
    for (name, recipe, _, own_size, _, own_precision), line in sorted(kept().items()):
        if (own_size, own_precision) == (size, precision):
            values = found.setdefault((name, recipe), {key: [] for key in ("seed", *SCORES, "pictures")})
            for key in values:
                values[key].append(line[key])
    return found


def table(found: Scores, recipes: set[str]) -> str:
    """Return the scores as a table in Markdown: means over seeds, and differences from ours with Welch's interval.

    Where both are of the same trainings the interval is that of the paired differences. A difference that is shown
    after Holm's correction over the table's is bold.
    """
    rows = {own: values for own, values in sorted(found.items()) if own[1] in recipes}
    tests = {}
    for (name, recipe), values in rows.items():
        ours = found.get((name, "ours"), {})
        is_paired = OF_ANOTHER.get(recipe) == "ours" and values["seed"] == ours.get("seed")
        for key in SCORES:
            own, base = values[key], ours.get(key, [])
            if recipe != "ours" and min(len(own), len(base)) > 1:
                test = stats.ttest_rel(own, base) if is_paired else stats.ttest_ind(own, base, equal_var=False)
                tests[name, recipe, key] = (np.mean(own) - np.mean(base), *test.confidence_interval(), test.pvalue)
    told = differences(tests)
    lines = ["| set | recipe | seeds | IoU | per picture | Boundary IoU |", "| --- | --- | ---: | --- | --- | --- |"]
    for (name, recipe), values in rows.items():
        cells = []
        for key in SCORES:
            own = told.get((name, recipe, key))
            cells.append(f"{np.mean(values[key]):.3f}" + (f" ({own})" if own else ""))
        lines.append(f"| {name} | {recipe} | {len(values['iou'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def further_pictures(found: Scores) -> str:
    """Return the recipes' differences from ours by picture, as a table in Markdown.

    Their intervals are over seeds and pictures. Bold: shown after Holm's correction over the table.
    """
    tests, sizes = {}, {}
    for (name, recipe), values in sorted(found.items()):
        ours = found.get((name, "ours"), {})
        shared = sorted({*values["seed"]} & {*ours.get("seed", [])})
        if recipe in RECIPES and recipe != "ours" and len(shared) > 1:
            for key in BY_PICTURE:
                own, base = ([of["pictures"][of["seed"].index(seed)][key] for seed in shared] for of in (values, ours))
                test = compare(own, base)
                tests[name, recipe, key] = (test.difference, test.low, test.high, test.p)
                sizes[name, recipe] = f"{test.seeds} | {test.units}"
    told = differences(tests)
    lines = [
        f"| set | recipe | seeds | pictures | {' | '.join(BY_PICTURE.values())} |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    for (name, recipe), size in sizes.items():
        row = " | ".join(told[name, recipe, key] for key in BY_PICTURE)
        lines.append(f"| {name} | {recipe} | {size} | {row} |")
    return "\n".join(lines)


def differences(tests: dict[Key, tuple[float, float, float, float]]) -> dict[Key, str]:
    """Return texts of differences, each with its interval's ends and p value; bold: shown after Holm's correction."""
    told = {}
    for (own, (difference, low, high, _)), p in zip(tests.items(), holm([t[3] for t in tests.values()]), strict=True):
        mark = "**" if p < 1 - LEVEL else ""
        told[own] = f"{mark}{difference:+.3f} [{low:+.3f}, {high:+.3f}]{mark}".replace("-", MINUS)
    return told


@styled
def draw(found: Scores, path: Path) -> None:
    """Draw the contest's recipes: a dot a seed, and from three on their mean with its 95 % interval."""
    names = [name for name in ("pets", "camvid", "nuclei") if (name, "ours") in found]
    recipes = {recipe: label for recipe, label in RECIPES.items() if any(own == recipe for _, own in found)}
    size = (2.4 * len(names), 1.4 + 0.7 * len(recipes))
    figure, axes = plt.subplots(len(METRICS), len(names), figsize=size, squeeze=False, sharey=True)
    for row, (key, label) in zip(axes, METRICS.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            for place, (recipe, colour) in enumerate(zip(recipes, COLOURS, strict=False)):
                values = found.get((name, recipe), {}).get(key, [])
                axis.scatter(values, [-place] * len(values), s=9, color=colour, alpha=0.5, linewidth=0)
                if len(values) > 2:  # of two the interval is wider than the scale
                    mean, half = np.mean(values), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
                    axis.errorbar(mean, -place - 0.25, xerr=half, fmt="o", color=colour, capsize=2)
                elif not values:
                    axis.annotate("not run yet", (0.02, -place), xycoords=("axes fraction", "data"), color=INK)
            axis.set_yticks([-place for place in range(len(recipes))], list(recipes.values()))
            axis.set_ylim(-len(recipes) + 0.4, 0.5)
            axis.set_xlabel(label)
            if key == "iou":
                axis.set_title(name)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    found = scores()
    text = PAGE.read_text()
    variants = {recipe for _, recipe in found} - {*RECIPES}
    parts = {
        "recipes": table(found, {*RECIPES}),
        "pictures": further_pictures(found),
        "variants": table(found, variants),
    }
    for part, rows in parts.items():
        told = f"<!-- {part} -->\n\n{rows}\n\n<!-- end -->"
        text = re.sub(rf"<!-- {part} -->.*?<!-- end -->", lambda _, told=told: told, text, flags=re.DOTALL)
    PAGE.write_text(text)
    draw(found, FIGURE)
    print(f"wrote {PAGE} and {FIGURE}")


if __name__ == "__main__":
    main()
