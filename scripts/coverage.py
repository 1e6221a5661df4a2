"""Count how often the intervals of `unetseg.evaluation.statistics` hold the truth, and what they show.

python scripts/coverage.py coverage       the interval over seeds, units, shapes: half a minute on one core
python scripts/coverage.py choice         what else it might have been: seconds
python scripts/coverage.py pooled         one variance over seeds for all settings: seconds
python scripts/coverage.py groups         pictures of one patient: seconds
python scripts/coverage.py folds          cross-validation, whose trainings share pictures: seconds
python scripts/coverage.py one            one seed: seconds
python scripts/coverage.py smallest       the smallest difference, its own interval, and the planner: a minute or two

Each design is a made-up ablation whose truth is known, of which many sweeps are drawn (--sweeps, 4,000: a rate of 95 %
is then known to +-0.7 points). Prints the table of docs/statistics.md as Markdown.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from unetseg.evaluation.statistics import (
    Components,
    Spread,
    components,
    group_means,
    pooled_seeds,
    seeds_needed,
    spread_of,
)

ALPHA = 0.05
SIX = ALPHA / 6
"""Holm's level for the first of six comparisons: three settings, two metrics."""
SHIFT = 0.03
"""The difference whose power is asked for."""
COLLAPSE = 0.3
"""What a collapsed run loses."""
BATCH = 500
"""Sweeps drawn at once."""


def batches(sweeps: int) -> Iterator[int]:
    """Yield the sizes of batches that make `sweeps`."""
    yield from [BATCH] * (sweeps // BATCH) + [sweeps % BATCH] * (sweeps % BATCH > 0)


@dataclass(frozen=True)
class Design:
    """An ablation: the difference of two settings has these deviations by seed, unit and rest."""

    seeds: int
    units: int = 174
    of_seeds: float = 0.015
    of_units: float = 0.1
    of_rest: float = 0.1
    shape: str = "normal"
    """normal | heavy (t_3) | skewed (the units' effects lognormal, skewness 6) | collapse (one run in ten loses 0.3, of
    either setting) | collapse of one (of one of the two alone)."""
    ratio: float = 1.0
    """How much more the last setting's trainings spread than the others'."""

    @property
    def truth(self) -> float:
        """Return the true difference of `differences`."""
        return -0.1 * COLLAPSE if self.shape == "collapse of one" else 0.0

    def settings(self, number: int, sweeps: int, generator: np.random.Generator) -> np.ndarray:
        """Return scores of settings without a difference, RxKxSxN: any two differ as the design says."""
        units = self._draw((sweeps, number, 1, self.units), generator, skewed=self.shape == "skewed")
        seeds = self._draw((sweeps, number, self.seeds, 1), generator)
        seeds[:, -1] *= self.ratio
        rest = self._draw((sweeps, number, self.seeds, self.units), generator)
        scores = (self.of_seeds * seeds + self.of_units * units + self.of_rest * rest) / np.sqrt(2)
        if self.shape == "collapse":
            scores -= self._collapsed((sweeps, number), generator)
        return scores

    def differences(self, sweeps: int, generator: np.random.Generator) -> np.ndarray:
        """Return differences of two settings, RxSxN, whose skewness, unlike that of two equal ones, doesn't cancel."""
        found = np.sqrt(2) * replace(self, shape=self.shape.split()[0].replace("collapse", "normal")).settings(
            1, sweeps, generator
        )
        if self.shape.startswith("collapse"):
            found -= self._collapsed((sweeps, 1), generator)
        if self.shape == "collapse":
            found += self._collapsed((sweeps, 1), generator)
        return found[:, 0]

    def _collapsed(self, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        return COLLAPSE * (generator.random((*shape, self.seeds, 1)) < 0.1)

    def _draw(self, shape: tuple[int, ...], generator: np.random.Generator, skewed: bool = False) -> np.ndarray:
        if self.shape == "heavy":
            return generator.standard_t(3, shape) / np.sqrt(3)
        values = generator.standard_normal(shape)
        return (np.exp(values) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e) if skewed else values


def share(flags: list[np.ndarray]) -> str:
    """Return how often something is true: 95.1%."""
    joined = np.concatenate(flags)
    return f"{joined.mean():.1%}" if len(joined) else "–"


def holds(half: np.ndarray, means: np.ndarray, truth: float) -> np.ndarray:
    """Return whether intervals of these halves around the means hold the truth."""
    return np.abs(means - truth) <= half


def alarms(settings: np.ndarray) -> np.ndarray:
    """Return for RxKxSxN scores without a difference whether any pair has a Holm-corrected p below 5 %."""
    pairs = list(itertools.combinations(range(settings.shape[1]), 2))
    found = np.zeros(len(settings), dtype=bool)
    for one, other in pairs:
        differences = settings[:, one] - settings[:, other]
        half = spread_of(differences).half_width(ALPHA / len(pairs))
        found |= ~holds(half, differences.mean((-2, -1)), 0)
    return found


def coverage(sweeps: int, seed: int) -> None:
    """Print the table of coverage, false alarms and power."""
    designs = [
        *(Design(seeds) for seeds in (2, 3, 5, 10)),
        *(Design(seeds, of_seeds=0.03, of_units=0.05, of_rest=0.05) for seeds in (2, 3, 5, 10)),
        *(Design(seeds, of_seeds=0.005, of_units=0.15, of_rest=0.05) for seeds in (2, 3, 10)),
        *(Design(seeds, of_seeds=0.0) for seeds in (2, 3, 10)),
        *(Design(3, of_units=0.0), Design(3, of_rest=0.0)),
        *(Design(3, units, of_units=0.05, of_rest=0.05) for units in (8, 20, 50, 400)),
        *(Design(seeds, shape="heavy") for seeds in (2, 3, 10)),
        Design(3, of_seeds=0.03, of_units=0.05, of_rest=0.05, shape="heavy"),
        *(Design(seeds, shape="skewed") for seeds in (2, 3, 10)),
        *(Design(3, units, of_seeds=0.005, of_units=0.15, of_rest=0.05, shape="skewed") for units in (20, 50, 174)),
        *(Design(seeds, ratio=3) for seeds in (2, 3, 10)),
        *(Design(seeds, shape="collapse") for seeds in (2, 3, 10)),
        *(Design(seeds, shape="collapse of one") for seeds in (2, 3, 10)),
    ]
    head("seeds", "units", "sd seeds", "sd units", "sd rest", "shape", "covers", "false alarms", f"shows {SHIFT:g}")
    for design in designs:
        generator = np.random.default_rng(seed)
        covered, false, power = [], [], []
        for size in batches(sweeps):
            differences = design.differences(size, generator)
            means, spread = differences.mean((-2, -1)), spread_of(differences)
            covered.append(holds(spread.half_width(ALPHA), means, design.truth))
            power.append(~holds(spread.half_width(SIX), means + SHIFT, 0))
            if design.shape != "collapse of one":
                false.append(alarms(design.settings(3, size, generator)))
        shape = f"{design.shape}{', one setting x 3' if design.ratio > 1 else ''}"
        deviations = (design.of_seeds, design.of_units, design.of_rest)
        false_alarms = share(false) if false else "–"
        row(design.seeds, design.units, *deviations, shape, share(covered), false_alarms, share(power))


Half = Callable[[np.ndarray, Spread, float], np.ndarray]


def cochran(differences: np.ndarray, spread: Spread, level: float) -> np.ndarray:
    """Return the half that is used, without its floor."""
    return replace(spread, floor=np.zeros_like(spread.floor)).half_width(level)


def mean_of_tails(differences: np.ndarray, spread: Spread, level: float, floor: bool = False) -> np.ndarray:
    """Return the half whose tail is the mean of both t's tails, weighted by the parts; by bisection."""
    total = spread.seeds + spread.units
    weight = spread.seeds / total
    low, high = np.zeros_like(total), np.full_like(total, 2000.0)
    for _ in range(50):
        middle = (low + high) / 2
        tails = weight * stdtr(spread.seeds_freedom, -middle) + (1 - weight) * stdtr(spread.units_freedom, -middle)
        low, high = np.where(2 * tails > level, middle, low), np.where(2 * tails > level, high, middle)
    return np.maximum(high * np.sqrt(total), floor * over_units(differences, spread, level))


def root_of_squares(differences: np.ndarray, spread: Spread, level: float) -> np.ndarray:
    """Return the half of Zou and Donner 2008: each part's own half, squared and summed; with the floor."""
    of_seeds, of_units = (-stdtrit(freedom, level / 2) for freedom in (spread.seeds_freedom, spread.units_freedom))
    both = np.sqrt(of_seeds**2 * spread.seeds + of_units**2 * spread.units)
    return np.maximum(both, of_units * np.sqrt(spread.floor))


def over_units(differences: np.ndarray, spread: Spread, level: float) -> np.ndarray:
    """Return the half of the paired t test over units."""
    return -stdtrit(spread.units_freedom, level / 2) * np.sqrt(spread.floor)


CANDIDATES: dict[str, Half] = {
    "used": lambda differences, spread, level: spread.half_width(level),
    "without floor": cochran,
    "mean of tails": mean_of_tails,
    "mean of tails, floor": lambda *given: mean_of_tails(*given, floor=True),
    "root of squares, floor": root_of_squares,
    "units alone": over_units,
}


def choice(sweeps: int, seed: int) -> None:
    """Print coverage of all sweeps, of those in which the floor counts, and power."""
    designs = [
        *(Design(seeds) for seeds in (2, 3, 5)),
        *(Design(seeds, of_seeds=0.005) for seeds in (2, 3, 5)),
        *(Design(seeds, of_seeds=0.03, of_units=0.05, of_rest=0.05) for seeds in (2, 3)),
        Design(3, of_seeds=0.0),
    ]
    head("seeds", "sd seeds", "sd units", "floor counts", *CANDIDATES)
    for design in designs:
        generator = np.random.default_rng(seed)
        counts: dict[str, list[list[np.ndarray]]] = {name: [[], [], []] for name in CANDIDATES}
        narrow = []
        for size in batches(sweeps):
            differences = design.differences(size, generator)
            means, spread = differences.mean((-2, -1)), spread_of(differences)
            narrow.append(cochran(differences, spread, ALPHA) < over_units(differences, spread, ALPHA))
            for name, half in CANDIDATES.items():
                covered = holds(half(differences, spread, ALPHA), means, 0)
                shown = ~holds(half(differences, spread, SIX), means + SHIFT, 0)
                for place, flags in zip(counts[name], (covered, covered[narrow[-1]], shown), strict=True):
                    place.append(flags)
        cells = [", ".join(share(flags) for flags in counts[name]) for name in CANDIDATES]
        row(design.seeds, design.of_seeds, design.of_units, share(narrow), *cells)


def pooled(sweeps: int, seed: int) -> None:
    """Print coverage and power of one pair of K settings, with its own variance over seeds and with that of all."""
    small = {"of_units": 0.05, "of_rest": 0.05}
    designs = [
        *((settings, Design(seeds, **small)) for settings in (3, 5) for seeds in (2, 3, 5)),
        *((5, Design(3, shape=shape, **small)) for shape in ("heavy", "collapse")),
        *((settings, Design(3, ratio=3, **small)) for settings in (3, 5)),
    ]
    head("settings", "seeds", "shape", "own covers", f"own shows {SHIFT:g}", "pooled covers", f"pooled shows {SHIFT:g}")
    for number, design in designs:
        generator = np.random.default_rng(seed)
        level = ALPHA / (number * (number - 1))  # of the first of all pairs in two metrics
        counts: list[list[np.ndarray]] = [[], [], [], []]
        for size in batches(min(sweeps, 2000)):
            scores = design.settings(number, size, generator)
            differences = scores[:, -1] - scores[:, 0]
            means, own = differences.mean((-2, -1)), spread_of(differences)
            found = [pooled_seeds(sweep) for sweep in scores]
            shared = replace(own, seeds=np.array([v for v, _ in found]) / design.seeds, seeds_freedom=found[0][1])
            for place, spread in enumerate((own, shared)):
                counts[2 * place].append(holds(spread.half_width(ALPHA), means, 0))
                counts[2 * place + 1].append(~holds(spread.half_width(level), means + SHIFT, 0))
        shape = f"{design.shape}{', one setting x 3' if design.ratio > 1 else ''}"
        row(number, design.seeds, shape, *map(share, counts))


def groups(sweeps: int, seed: int) -> None:
    """Print the coverage of the truth over groups: with images as units, and with the groups' means."""
    designs = [
        ("20 of 40 each", [40] * 20, 0.04),
        ("20 of 40 each", [40] * 20, 0.0),
        ("8 of 20 each", [20] * 8, 0.04),
        ("40 of 5 each", [5] * 40, 0.04),
        ("4 of 50 and 20 of 1", [50] * 4 + [1] * 20, 0.04),
        ("3 of 60 each", [60] * 3, 0.04),
    ]
    head("seeds", "groups", "sd groups", "images cover", "groups cover", "half of images", "half of groups")
    for seeds in (3, 5):
        for name, sizes, of_groups in designs:
            generator = np.random.default_rng(seed)
            member = np.repeat(np.arange(len(sizes)), sizes)
            design = Design(seeds, len(member), 0.005)
            counts: list[list[np.ndarray]] = [[], []]
            halves: list[list[np.ndarray]] = [[], []]
            for size in batches(min(sweeps, 2000)):
                differences = design.differences(size, generator)
                differences += of_groups * generator.standard_normal((size, 1, len(sizes)))[..., member]
                for place, of_unit in enumerate((differences, group_means(differences, member.tolist()))):
                    halves[place].append(spread_of(of_unit).half_width(ALPHA))
                    counts[place].append(holds(halves[place][-1], of_unit.mean((-2, -1)), 0))
            widths = [f"{np.median(np.concatenate(half)):.3f}" for half in halves]
            row(seeds, name, of_groups, *map(share, counts), *widths)


@dataclass(frozen=True)
class Folds:
    """A cross-validation of two settings; the difference has these deviations by seed, training, fold, unit, rest."""

    seeds: int
    folds: int = 5
    each: int = 35
    """Units a fold."""
    of_seeds: float = 0.0
    """Of a seed in all folds alike."""
    of_trainings: float = 0.015
    """Of a seed in one fold."""
    of_folds: float = 0.01
    """Of a fold's training set, whatever the seed."""
    of_units: float = 0.1
    of_rest: float = 0.1
    shared: bool = True
    """Whether what a training set does is the sum of what its pictures do: then two folds, which share K - 2 of K - 1
    parts of theirs, are as much alike. Otherwise folds are independent of each other."""

    def differences(self, sweeps: int, generator: np.random.Generator) -> np.ndarray:
        """Return differences of two equal settings, RxSxKxN with N units a fold."""
        normal = generator.standard_normal
        of_parts = normal((sweeps, 1, self.folds, 1))
        if self.shared:  # every part but the fold's own is in its training set
            of_parts = (of_parts.sum(2, keepdims=True) - of_parts) / np.sqrt(self.folds - 1)
        return (
            self.of_seeds * normal((sweeps, self.seeds, 1, 1))
            + self.of_trainings * normal((sweeps, self.seeds, self.folds, 1))
            + self.of_folds * of_parts
            + self.of_units * normal((sweeps, 1, self.folds, self.each))
            + self.of_rest * normal((sweeps, self.seeds, self.folds, self.each))
        )


def folds(sweeps: int, seed: int) -> None:
    """Print coverage, median half width and power of the interval over folds, and the coverage of what it might be."""
    noisy = {"of_trainings": 0.03, "of_units": 0.05, "of_rest": 0.05}
    designs = [
        *(Folds(seeds, of_folds=0.0) for seeds in (1, 2, 3)),
        *(Folds(seeds, of_folds=of_folds, shared=shared)
          for shared in (False, True) for of_folds in (0.01, 0.02) for seeds in (1, 2, 3)),
        *(Folds(seeds, of_folds=0.02, **noisy) for seeds in (1, 2, 3)),
        *(Folds(seeds, of_seeds=0.015, of_trainings=0.0) for seeds in (1, 2, 3)),
        Folds(1, of_seeds=0.03, of_trainings=0.0, of_folds=0.0, of_units=0.05, of_rest=0.05),
        *(Folds(3, folds, each) for folds, each in ((2, 87), (3, 58), (5, 8), (10, 17))),
        Folds(3, 10, 17, of_folds=0.02),
    ]  # fmt: skip
    candidates = ("used", "not widened", "without folds")
    deviations = ("sd seeds", "sd trainings", "sd folds", "sd units")
    head(
        "seeds", "folds", "units each", *deviations, "sets share", "covers", "half", f"shows {SHIFT:g}", *candidates[1:]
    )
    for design in designs:
        generator = np.random.default_rng(seed)
        counts: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
        halves, power = [], []
        for size in batches(sweeps):
            differences = design.differences(size, generator)
            means, by_fold = differences.mean((1, 2, 3)), differences.mean(-1)
            spread = spread_of(by_fold, folds=True)
            in_one = differences.reshape(size, design.seeds, -1)
            widths = (spread, spread_of(by_fold), spread_of(in_one))
            for name, of_candidate in zip(candidates, widths, strict=True):
                counts[name].append(holds(of_candidate.half_width(ALPHA), means, 0))
            halves.append(spread.half_width(ALPHA))
            power.append(~holds(spread.half_width(SIX), means + SHIFT, 0))
        covers, *others = (share(counts[name]) for name in candidates)
        found = (design.of_seeds, design.of_trainings, design.of_folds, design.of_units)
        half, shown = f"{np.median(np.concatenate(halves)):.3f}", share(power) if design.seeds > 1 else "–"
        sets = "yes" if design.shared and design.of_folds else "no"
        row(design.seeds, design.folds, design.each, *found, sets, covers, half, shown, *others)


def one(sweeps: int, seed: int) -> None:
    """Print how often the t test over units says that a setting differs from itself trained with another seed."""
    head("sd seeds", "sd units", "sd rest", "'differs' at 5 %", "of six, after Holm", "interval holds these two models")
    for of_seeds, of_units in ((0.0, 0.1), (0.005, 0.1), (0.015, 0.1), (0.015, 0.05), (0.03, 0.05)):
        design, generator = Design(1, 174, of_seeds, of_units, of_units), np.random.default_rng(seed)
        false, after, models = [], [], []
        for size in batches(sweeps):
            fixed = of_seeds * generator.standard_normal(size)
            differences = replace(design, of_seeds=0.0).differences(size, generator)
            means, spread = differences.mean((-2, -1)), spread_of(differences)
            false.append(~holds(spread.half_width(ALPHA), means + fixed, 0))
            after.append(~holds(spread.half_width(SIX), means + fixed, 0))
            models.append(holds(spread.half_width(ALPHA), means, 0))
        row(of_seeds, of_units, of_units, *map(share, (false, after, models)))


def smallest(sweeps: int, seed: int) -> None:
    """Print the power at the smallest difference, how often its interval holds it, and what planned sweeps show."""
    designs = [
        *(Design(seeds) for seeds in (2, 3, 5, 10)),
        *(Design(seeds, of_seeds=0.03, of_units=0.05, of_rest=0.05) for seeds in (2, 3, 5, 10)),
        *(Design(seeds, of_seeds=0.005, of_units=0.15, of_rest=0.05) for seeds in (2, 3, 10)),
    ]
    head("seeds", "sd seeds", "sd units", "smallest", "power there", "estimates (middle 95 %)", "interval holds it",
         f"seeds for {SHIFT:g}", "power there", "seeds by pilots (middle 80 %)")  # fmt: skip
    for design in designs:
        generator = np.random.default_rng(seed)
        parts = Components(design.of_seeds**2, design.of_units**2, design.of_rest**2)
        true = parts.spread(design.seeds, design.units).smallest(SIX).value
        power, found = [], []
        for size in batches(sweeps):
            differences = design.differences(size, generator)
            power.append(~holds(spread_of(differences).half_width(SIX), differences.mean((-2, -1)) + true, 0))
            if len(found) < 2 * BATCH:
                found += list(differences)
        estimates = [spread_of(one).smallest(SIX) for one in found]
        ends = np.quantile([estimate.value for estimate in estimates], (0.025, 0.975))
        held = [np.array([estimate.low <= true <= estimate.high]) for estimate in estimates]
        planned = seeds_needed(parts, design.units, SHIFT, SIX)
        pilots = [seeds_needed(components(one), design.units, SHIFT, SIX) or 101 for one in found]
        reached = "–"
        if planned:
            drawn = [replace(design, seeds=planned).differences(size, generator) for size in batches(min(sweeps, 1000))]
            halves = [(spread_of(d).half_width(SIX), d.mean((-2, -1)) + SHIFT) for d in drawn]
            reached = share([~holds(half, means, 0) for half, means in halves])
        low, high = (f"{n:.0f}" if n < 101 else "> 100" for n in np.quantile(pilots, (0.1, 0.9)))
        span = f"{ends[0]:.3f} to {ends[1]:.3f}"
        row(design.seeds, design.of_seeds, design.of_units, f"{true:.3f}", share(power), span, share(held),
            planned or "> 100", reached, f"{low} to {high}")  # fmt: skip


def head(*names: str) -> None:
    """Print the head of a table."""
    row(*names)
    row(*["---:"] * len(names))


def row(*cells: object) -> None:
    """Print a row."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


TABLES = {table.__name__: table for table in (coverage, choice, pooled, groups, folds, one, smallest)}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--sweeps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    TABLES[arguments.table](arguments.sweeps, arguments.seed)


if __name__ == "__main__":
    main()
