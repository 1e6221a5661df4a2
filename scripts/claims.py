"""The book of claims: run what is missing, and write docs/claims.md and its pages.

    python scripts/claims.py WORK --pets PETS --sets SETS [--only nested full] [--seeds 0 1 2] [--jobs 2]
    python scripts/claims.py --pages                 # of the numbers that are kept
    python scripts/claims.py --plan                  # the number of trainings that are missing

PETS is a folder in the layout of Oxford-IIIT Pet, SETS one with nuclei/ and em/ as published. WORK gets a run folder
for each training; what is there is kept, and the same command goes on after a stop. With --only, readings that need
an evaluation are those of these claims. The numbers of each training go into docs/claims/cells.jsonl, from which the
pages are written. A training and its readings take about a quarter of an hour of a slow CPU's thread; each line of
cells.jsonl says how long.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from book import cells, summaries
from book.literature import CLAIMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="folder of the trainings")
    parser.add_argument("--pages", action="store_true", help="write the pages, train nothing")
    parser.add_argument("--plan", action="store_true", help="say what is missing, train nothing")
    parser.add_argument("--pets", type=Path, help="folder in the layout of Oxford-IIIT Pet")
    parser.add_argument("--sets", type=Path, help="folder with nuclei/ and em/")
    parser.add_argument("--weights", type=Path, help="ImageNet's resnet50 as .safetensors")
    parser.add_argument("--only", nargs="+", choices=[claim.name for claim in CLAIMS], help="claims")
    parser.add_argument("--benches", nargs="+", default=["pets", "nuclei"], choices=[*cells.BENCHES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=64, help="side of the resized pictures in pixels")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    own = [
        cells.Cell(bench, setting, seed, args.size)
        for seed, bench, setting in itertools.product(args.seeds, args.benches, cells.SETTINGS)
    ]
    chosen = [claim for claim in CLAIMS if not args.only or claim.name in args.only]
    if args.plan:
        lacking = {claim.name: cells.missing(claim, own, cells.kept()) for claim in chosen}
        print("".join(f"{name}: {len(of_claim)}\n" for name, of_claim in lacking.items()), end="")
        print(f"{len({*itertools.chain(*lacking.values())})} trainings in all: claims share them")
        return
    if not args.pages:
        paths = {name: path.resolve() for name in ("pets", "sets", "weights") if (path := getattr(args, name))}
        needed = {need for bench in args.benches for need in cells.BENCHES[bench].needs} - paths.keys()
        if not args.work or needed:
            parser.error(f"give {', '.join(['WORK'] * (not args.work) + [f'--{name}' for name in sorted(needed)])}")
        for claim in chosen:
            if cells.run(claim, own, paths, args.work.resolve(), args.jobs, chosen):
                summaries.write(cells.kept())
    summaries.write(cells.kept())


if __name__ == "__main__":
    main()
