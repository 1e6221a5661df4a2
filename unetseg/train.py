"""Train a U-Net with the long skips of your choice.

python -m unetseg.train                                    Oxford-IIIT Pet, downloaded when absent
python -m unetseg.train data=synthetic model.skip=none     pictures drawn here, no download at all
python -m unetseg.train data=folder data.root=FOLDER       your own pictures and masks
python -m unetseg.train -m model.skip=concat,add,none seed=0,1,2     nine runs, one after the other
python -m unetseg.train resume=runs/NAME                   continue a run that was stopped
python -m unetseg.train dry_run=true                       look at data and plan, train nothing

In Python: run = unetseg.train("model.skip=none", data="synthetic")
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetseg import launch
from unetseg.errors import UserError
from unetseg.files import free_path, write_json
from unetseg.names import one_word, view_text
from unetseg.options import command, recorded
from unetseg.options.call import CallableModule, Option, interruptible, overrides_of, stop_at_once
from unetseg.options.compose import values_of
from unetseg.options.schema import Train
from unetseg.options.settings import own_classes, trust_of, variant
from unetseg.runs.folder import RunFolder, options_of
from unetseg.training import preflight

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.callbacks import Callback

    from unetseg.data.datamodule import SegmentationData
    from unetseg.runs.run import Run
    from unetseg.training.module import SegmentationModule

ORIGIN = {"last": "the weights of the last step", "best": "those of the best val/iou"}
"""Of each checkpoint of a run."""


def call(*overrides: str, callbacks: Sequence[Callback | str] = (), **options: Option) -> Run:
    """Train a network, test it, and return the run: what `unetseg.train(...)` does.

    Ctrl-C, or a notebook's stop button, finishes the step and writes last.ckpt, then raises KeyboardInterrupt;
    `unetseg.train(resume=FOLDER)` goes on. Twice: at once.

    Args:
        overrides: options as on the command line, such as "model.skip=none" or "trainer.max_epochs=5".
        callbacks: Lightning's, called before unetseg's own; also as text, "package.module:Class".
        options: those without a dot: data, experiment, loss, logger, seed, name, output, resume, ...

    Raises:
        UserError: an option is wrong; the text says what is accepted and what to try.
        Halt: the run can't go on, such as on a full disk; the text says what to do.

    Examples:
        run = unetseg.train("model.skip=none", data="synthetic", seed=0)
        run.summary["test/iou"]  # about 0.65
    """
    from unetseg.runs.run import Run

    named = [callback for callback in callbacks if isinstance(callback, str)]
    made = [callback for callback in callbacks if not isinstance(callback, str)]
    given = overrides_of(overrides, {**options, **({"callbacks": named} if named else {})}, "data=synthetic")
    with interruptible("train", given):
        checked = command.options_of(
            "train", Train, given, preflight=preflight.in_this_process, inherit=options_of_resumed_run
        )
        for option in ("dry_run", "find_lr"):
            if getattr(checked, option):
                raise UserError(
                    f"{option}=true makes no run, which a call from Python would return",
                    accepted=f"{option}=false",
                    advice=f"python -m unetseg.train with the same options and {option}=true",
                )
        return Run(train(checked, made, stop_at_once)["folder"])


def train(
    options: Train, callbacks: Sequence[Callback] = (), at_once: Callable[[], None] = launch.die_of_ctrl_c
) -> dict[str, Any]:
    """Train, test the chosen checkpoint and fill the run folder.

    Args:
        options: of the run.
        callbacks: Lightning's, called before unetseg's own.
        at_once: ends the run at a second Ctrl-C.

    Returns:
        The summary, as in summary.json.
    """
    if launch.is_first():
        print(plan(options), flush=True)  # before what takes seconds to import
    from unetseg.training.surroundings import kept

    with kept():
        return _train(options, callbacks, at_once)


def look(options: Train) -> None:
    """Do what a training does before its first step, and say what it would train: `dry_run=true`.

    Nothing is written but a page of augmented pictures. Data that must be downloaded or drawn are, as for a training.
    """
    if launch.is_first():
        print(plan(options), flush=True)
    from unetseg.training.surroundings import kept

    with kept():
        from unetseg.training import build, lengths

        data, module, planned, _ = _prepare(options)
        _check(options, planned, data)
        if launch.is_first():
            print(lengths.describe(planned, data))
            folder = RunFolder.planned(options)
            print(build.describe_start(planned, module, folder))
            if options.data.augment not in (False, "none"):
                print(f"augmented pictures: {build.write_augmented(data, folder)}")
            print("dry_run=true: nothing was trained, and no run folder made")


def find_lr(options: Train) -> None:
    """Try learning rates from the first step on, draw the loss over them and suggest one: `find_lr=true`."""
    if launch.is_first():
        print(plan(options), flush=True)
    from unetseg.training.surroundings import kept

    with kept():
        from unetseg.evaluation import score_plots
        from unetseg.training import build, lr_finder

        data, module, planned, batch = _prepare(options)
        _check(options, planned, data)
        scale = build.lr_scale(options, batch["devices"] * batch["batch_size"])
        folder = RunFolder.planned(options)
        trial = lr_finder.try_rates(options.trainer, module, data)
        suggestion = lr_finder.suggest(trial.lrs, trial.losses)
        if launch.is_first():
            figure = free_path(folder.with_name(f"{folder.name}_find_lr.png"))
            figure.parent.mkdir(parents=True, exist_ok=True)
            score_plots.learning_rates(trial.lrs, lr_finder.running_mean(trial.losses), suggestion, figure)
            found = "no rate lowered the loss beyond its noise; larger batches have less of it"
            if suggestion:
                found = f"the loss fell fastest at optimizer.lr={suggestion / scale:.1e}"
            print(f"find_lr=true: {found}; {figure}")


def _prepare(options: Train) -> tuple[SegmentationData, SegmentationModule, Trainer, dict[str, Any]]:
    """Return the data, the module, a trainer that knows the devices, and the summary's entries on the batch.

    All are made before there is a run folder, so that arguments and sizes that are refused leave none.
    """
    import lightning as L

    from unetseg.data.sources import make_data
    from unetseg.training import build
    from unetseg.training.optimization import can_fuse

    L.seed_everything(options.seed, workers=True, verbose=False)
    skip_unreadable = options.guards.unreadable_image == "skip"
    # a picture alone in a batch can neither be normalised nor get another one's features
    needs_several = options.model.normalisation == "batch" or "shuffled" in options.model.skip
    data = make_data(
        options.data.model_dump(),
        options.seed,
        skip_unreadable=skip_unreadable,
        batch_normalisation=needs_several,
        trust=True,  # what the options name has been checked
    )
    module = build.make_module(options, data.measured_view(), build.measured_class_weights(options, data))
    planned = build.make_trainer(build.trainer_arguments(options), [], [], Path(options.output))
    if planned.precision == "64-true":
        module.double()  # Lightning does so, but after it has restored a run's weights and begun their average
    device, clips = planned.strategy.root_device, bool(planned.gradient_clip_val)
    module.optimization.check(device, fused=can_fuse(device, str(planned.precision), clips=clips))
    return data, module, planned, build.set_batch_size_and_learning_rate(options, planned, data, module)


def _check(options: Train, planned: Trainer, data: SegmentationData) -> None:
    """Print a table of the data; raise a UserError where they can't be trained on."""
    from unetseg.training import lengths

    preflight.data(data)
    lengths.check_limits(planned, data)
    lengths.check_partners(options, planned, data)
    lengths.check_lengths(options, planned, data)


def _train(options: Train, callbacks: Sequence[Callback], at_once: Callable[[], None]) -> dict[str, Any]:
    from unetseg.evaluation import score_plots
    from unetseg.evaluation.cost import cost
    from unetseg.evaluation.record import TestRecord
    from unetseg.runs import pictures, wandb_run
    from unetseg.runs.summary import provenance
    from unetseg.training import build, failures, restored, resume
    from unetseg.training.callbacks import Cost

    data, module, planned, batch = _prepare(options)
    own_callbacks = [*callbacks, *build.make_own_callbacks(options)]
    restored.check_callbacks(own_callbacks)
    make_folder = RunFolder.resume if options.resume else RunFolder.create
    run = make_folder(options, lambda: _check(options, planned, data))
    with ExitStack() as stack:
        stack.callback(run.release)
        if launch.is_first():
            print(build.describe_start(planned, module, run.path), flush=True)
        start = resume.rewind(run, own_classes(options.model_dump())) if options.resume else None
        loggers = build.make_loggers(options, run)
        record, speed = TestRecord(run), Cost()
        guard, watchers = build.make_watchers(options, run)
        best, last = resume.make_checkpointing(run)
        continuation = resume.Continuation(run, options.checkpoint, at_once)
        stack.enter_context(failures.explain_system_errors(run))
        stack.enter_context(failures.explain_damaged_checkpoint(run))
        stack.callback(wandb_run.finish, loggers)
        stack.enter_context(continuation.handle_signals())
        first = [*own_callbacks, *build.make_steering(options)]
        all_callbacks = [*first, continuation, *watchers, record, speed, best, last]
        arguments = options.trainer | {"precision": planned.precision}
        trainer = build.make_trainer(arguments, loggers, all_callbacks, run.path)
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
        run.record_changes()  # where no step was left
        ended_early = trainer.should_stop and trainer.global_step < trainer.estimated_stepping_batches
        chosen = last if options.chooses_last(ended_early=ended_early) else best
        tested = chosen if chosen.best_model_path else last
        if trainer.is_global_zero:
            if tested is not chosen:
                print("there is no best.ckpt, as no validation has run since: the last weights are tested")
            else:
                print(f"testing {tested.filename}.ckpt, {ORIGIN[str(tested.filename)]}")
        trainer.test(module, data, ckpt_path=tested.best_model_path or None, verbose=False, weights_only=True)
        encoder = module.get_submodule("model.net.encoder")
        frozen = sum(p.numel() for p in encoder.parameters()) if options.model.freeze_encoder else 0
        heads = (("auxiliary", module.auxiliary), ("deep_supervision", module.deep_supervision))
        summary = {
            **record.set_scores(),
            **cost(module.model, data.view.side, data.view.channels),
            "frozen_parameters": frozen,
            **{f"{name}_parameters": sum(p.numel() for p in own.parameters()) if own else 0 for name, own in heads},
            **speed.measurements(),
            **guard.counts(),
            **batch,
            "variant": variant(options.model.model_dump()),
            "skip": one_word(options.model.skip),
            "skip_flow": one_word(options.model.skip_flow),
            "skip_gradient": one_word(options.model.skip_gradient),
            "skip_scale": one_word(options.model.skip_scale),
            **options.model.model_dump(
                include={
                    *("encoder", "decoder", "short_skips", "match_parameters", "stem_skip"),
                    *("auxiliary", "deep_supervision"),
                }
            ),
            "data": options.data.name,
            "size": data.view.side,
            "epochs": trainer.current_epoch,
            "checkpoint": f"{tested.filename}.ckpt" if tested.best_model_path else None,
            "val/iou": None if best.best_model_score is None else best.best_model_score.item(),
            "precision": str(trainer.precision),
            "seed": options.seed,
            "folder": str(run.path),
            **provenance(),
        }
        if trainer.is_global_zero:
            write_json(run.summary, summary)
            score_plots.curves(run.metrics, run.figures / "curves.png")
        pictures.log_summary(loggers, summary, record.per_class)
        if options.wandb.log_model and tested.best_model_path:
            wandb_run.log_model(loggers, tested.best_model_path)
    return summary


def plan(options: Train) -> str:
    """Return what a run is going to do, in a line."""
    data, length = options.data, options.trainer.get("max_epochs")
    epochs = f"{length} epochs" if length and length > 0 else "no fixed number of epochs"
    verb, setting = "resuming" if options.resume else "training", variant(options.model.model_dump())
    verb = f"a look at {verb}" if options.dry_run else verb
    where = f"data={data.name}, {view_text(data.model_dump())}, batches of {data.batch_size}, {epochs}"
    return f"{verb} {options.model.encoder}, skip {setting}, seed {options.seed}: {where}"


def _do(options: Train) -> dict[str, Any] | None:
    if not (options.find_lr or options.dry_run):
        return train(options)
    (find_lr if options.find_lr else look)(options)
    return None


def main() -> None:
    results = command.run(
        "train",
        Train,
        _do,
        preflight=preflight.train,
        preflight_sweep=preflight.one_device,
        inherit=options_of_resumed_run,
        about=__doc__,
    )
    summaries = [summary for summary in results if summary is not None]
    if summaries and launch.is_first():
        from unetseg.runs.summary import show

        show(summaries)
        compare(summaries)
        print(f"next: {next_steps(summaries)}")


def options_of_resumed_run(overrides: list[str]) -> Train | None:
    """Return the options of the run that is resumed, changed by the overrides; None where no run is resumed."""
    folder = values_of(overrides).get("resume")
    run = RunFolder(folder) if folder else None
    return options_of(run, overrides) if run and run.config.is_file() else None


def next_steps(summaries: list[dict[str, Any]]) -> str:
    """Return what shows more of what came out of these runs."""
    folders = [Path(summary["folder"]) for summary in summaries]
    trust = max(trust_of(recorded.read_training(RunFolder(folder).config)) for folder in folders)
    if len(folders) > 1:
        return f"python -m unetseg.report runs={shlex.quote(str(folders[0].parent))}{trust}"
    evaluate = f"python -m unetseg.evaluate checkpoint={shlex.quote(str(folders[0]))}{trust}"
    return f"the pictures in {folders[0] / 'figures'}\n      {evaluate}"


def compare(summaries: list[dict[str, Any]]) -> None:
    """Draw the gradient flow of several runs into one figure beside their folders."""
    from unetseg.evaluation import gradient_plots

    different = len({s["variant"] for s in summaries}) == len(summaries)
    runs = {s["variant"] if different else Path(s["folder"]).name: RunFolder(s["folder"]) for s in summaries}
    tables = {label: run.gradient_flow for label, run in runs.items() if run.gradient_flow.exists()}
    if len(tables) > 1:
        last = Path(summaries[-1]["folder"])
        path = last.with_name(f"{last.name}.gradients.png")
        gradient_plots.compare_gradients(tables, path)
        print(f"gradient flow side by side: {path}")


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    main()
