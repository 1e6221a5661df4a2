"""Train a U-Net with the long skips of your choice.

python -m unetseg.train                                             Oxford-IIIT Pet, downloaded when absent
python -m unetseg.train data=synthetic model.skip=none              pictures generated here, no download at all
python -m unetseg.train -m model.skip=concat,add,none seed=0,1,2    a Hydra multirun: nine runs, one after the other
python -m unetseg.train resume=runs/NAME                            go on with a run that was stopped
python -m unetseg.train --help                                      every option
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unetseg import cli, launch, preflight
from unetseg.config import Train
from unetseg.runs import RunFolder, one_word, overrides_of, run_folder_of, variant, write_json


def train(options: Train) -> dict[str, Any]:
    """Train, test the best checkpoint, fill the run folder; return the summary."""
    import lightning as L

    from unetseg import build, callbacks, checkpointing, figures, loggers, summary

    L.seed_everything(options.seed, workers=True, verbose=False)
    data = build.make_data(options.data, options.seed, skip_unreadable=options.guards.unreadable_image == "skip")
    module = build.make_module(options)
    run = RunFolder.resumed(options) if options.resume else RunFolder.create(options)
    start = checkpointing.rewind(run) if options.resume else None
    sinks = build.make_loggers(options, run)
    record, cost = callbacks.TestRecord(run), callbacks.Cost()
    guard, watchers = build.make_watchers(options, run)
    best, last = checkpointing.make_checkpointing(run)
    continuation = checkpointing.Continuation(run, options.checkpoint)
    with ExitStack() as stack:
        stack.enter_context(checkpointing.explaining_full_disks(run))
        stack.callback(run.release)
        stack.callback(loggers.finish, sinks)
        ours = [continuation, *watchers, record, cost, best, last]
        trainer = build.make_trainer(options.trainer, sinks, ours, run.path)
        shared = build.share_out(options, trainer, data, module)
        trainer.fit(module, data, ckpt_path=start)
        trainer.test(module, data, ckpt_path=best.best_model_path or None, verbose=False)
        content = {
            **record.over_the_set(),
            **summary.cost(module.model, options.data.size),
            **cost.measured(),
            **guard.counted(),
            **shared,
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
        if options.wandb.log_model:
            loggers.log_model(sinks, run.best)
    return content


def main() -> None:
    """Run from the command line."""
    summaries = cli.run(
        "train",
        Train,
        train,
        preflight=preflight.train,
        preflight_sweep=preflight.one_device,
        inherit=options_of_the_run,
    )
    if summaries and launch.is_first():
        from unetseg import summary

        summary.show(summaries)
        compare(summaries)


def options_of_the_run(overrides: list[str]) -> list[str]:
    """Return the options that a resumed run began with, as overrides."""
    given = cli.given(overrides)
    run = run_folder_of(given["resume"]) if "resume" in given else None
    return overrides_of(run) if run else []


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
