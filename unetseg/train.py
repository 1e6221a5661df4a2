"""Train a U-Net with the long skips of your choice.

python -m unetseg.train                                             Oxford-IIIT Pet, downloaded when absent
python -m unetseg.train data=synthetic model.skip=none              pictures generated here, no download at all
python -m unetseg.train -m model.skip=concat,add,none seed=0,1,2    a Hydra multirun: nine runs, one after the other
python -m unetseg.train --help                                      every option
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unetseg import cli, preflight
from unetseg.config import Train
from unetseg.runs import RunFolder, one_word, variant, write_json


def train(options: Train) -> dict[str, Any]:
    """Train, test the best checkpoint, fill the run folder; return the summary."""
    import lightning as L

    from unetseg import build, callbacks, figures, loggers, summary

    L.seed_everything(options.seed, workers=True, verbose=False)
    data = build.make_data(options.data, options.seed)
    module = build.make_module(options)
    run = RunFolder.create(options)
    sinks = build.make_loggers(options, run)
    record, cost, best = callbacks.TestRecord(run), callbacks.Cost(), build.make_checkpointing(run)
    watchers = build.make_watchers(options, run)
    try:
        trainer = build.make_trainer(options.trainer, sinks, [*watchers, record, cost, best], run.path)
        trainer.fit(module, data)
        trainer.test(module, data, ckpt_path=best.best_model_path or None, verbose=False)
        content = {
            **record.over_the_set(),
            **summary.cost(module.model, options.data.size),
            **cost.measured(),
            "variant": variant(options.model),
            "skip": one_word(options.model.skip),
            "skip_flow": one_word(options.model.skip_flow),
            **{name: getattr(options.model, name) for name in ("encoder", "short_skips", "match_parameters")},
            "data": options.data.name,
            "size": options.data.size,
            "epochs": trainer.current_epoch,
            "val/iou": None if best.best_model_score is None else best.best_model_score.item(),
            "precision": str(trainer.precision),
            "seed": options.seed,
            "folder": str(run.path),
            **summary.provenance(),
        }
        if trainer.is_global_zero:
            write_json(run.summary, content)
            figures.curves(run.metrics, run.figures / "curves.png")
        loggers.log_summary(sinks, content)
    finally:
        loggers.finish(sinks)
    return content


def main() -> None:
    """Run from the command line."""
    summaries = cli.run("train", Train, train, preflight=preflight.train)
    if summaries and int(os.environ.get("LOCAL_RANK", 0)) == 0:  # one of the processes of a run speaks
        from unetseg import summary

        summary.show(summaries)
        compare(summaries)


def compare(summaries: list[dict[str, Any]]) -> None:
    """Draw the gradient flow of several runs into one figure beside their folders."""
    from unetseg import figures

    alone = len({s["variant"] for s in summaries}) == len(summaries)
    runs = {s["variant"] if alone else Path(s["folder"]).name: RunFolder(s["folder"]) for s in summaries}
    tables = {label: run.gradient_flow for label, run in runs.items() if run.gradient_flow.exists()}
    if len(tables) > 1:
        last = Path(summaries[-1]["folder"])
        path = last.with_name(f"{last.name}.gradients.png")
        figures.compare_gradients(tables, path)
        print(f"gradient flow side by side: {path}")


if __name__ == "__main__":
    main()
