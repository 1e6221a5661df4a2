"""What a command has written into its folder, read for Python: a run, an evaluation, a sweep.

They read, and change nothing. In a notebook each shows itself as a small table.
"""

from __future__ import annotations

import base64
import html
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from unetseg.errors import UserError, first_line
from unetseg.files import read_json
from unetseg.names import counted
from unetseg.options import recorded
from unetseg.options.settings import axes_of, flat, setting_name
from unetseg.runs.folder import RunFolder
from unetseg.runs.tables import read_csv, read_gradient_flow, read_metrics, read_per_class, read_per_image

if TYPE_CHECKING:
    from unetseg.model.segmenter import Segmenter

SCORES = {
    "IoU": "test/iou",
    "IoU per image": "test/iou_per_image",
    "Dice": "test/dice",
    "Boundary IoU": "test/boundary_iou",
}
"""The scores of a summary that are shown, by their titles."""
SCORES_OF_AN_IMAGE = ("group", "iou", "dice", "boundary_iou", "hd95", "nsd")
"""Columns of per_image.csv, beside the name."""


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    """Raise a UserError where a table can't be read."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # pandas' own are ValueErrors
        raise UserError(f"{path} can't be read: {first_line(error)}") from None


class Results:
    """A folder with the results of a test. Tables are read once; an object made anew reads them anew.

    Args:
        folder: its path.
    """

    MARK = "summary.json"
    """The file that such a folder has."""
    KIND = "a folder of results"

    def __init__(self, folder: str | os.PathLike[str]):
        self._files = RunFolder(Path(os.path.expanduser(folder)))
        if not (self.folder / self.MARK).is_file():
            raise UserError(
                f"{self.folder} is not {self.KIND}",
                accepted=f"a folder with a {self.MARK}",
                advice=", ".join(str(path.parent) for path in sorted(self.folder.glob(f"*/{self.MARK}"))[:3]),
            )

    @property
    def folder(self) -> Path:
        """Return the path of the folder."""
        return self._files.path

    def __fspath__(self) -> str:
        """Return the path of the folder, so that `unetseg.evaluate(checkpoint=run)` and `unetseg.load(run)` work."""
        return str(self.folder)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return summary.json: scores ("test/iou" in 0..1), costs, versions; empty until the run is finished.

        Raises:
            UserError: the file is damaged.
        """
        path = self._files.summary
        if not os.path.lexists(path):
            return {}
        try:
            return read_json(path)
        except ValueError as error:
            raise UserError(f"{path} {error}") from None

    @cached_property
    def per_image(self) -> pd.DataFrame:
        """Return per_image.csv: a row for each test image, by its name: group, iou, dice, boundary_iou, nsd in 0..1.

        hd95 is in pixels. It has no rows until the run is finished.
        """
        if not self._files.per_image.exists():
            return pd.DataFrame(columns=SCORES_OF_AN_IMAGE, index=pd.Index([], name="name"))
        with _named_if_damaged(self._files.per_image):
            return read_per_image(self._files)

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """Return per_class.csv: a row for each class, by its name; without rows until the run is finished."""
        with _named_if_damaged(self._files.per_class):
            return read_per_class(self._files)

    @property
    def figures(self) -> dict[str, Path]:
        """Return the paths of the figures by their names: predictions, curves, gradient_flow, ..."""
        return {path.stem: path for path in sorted(self._files.figures.glob("*.png"))}

    def facts(self) -> dict[str, str]:
        """Return what is shown of it: texts by their titles."""
        scores = {title: self.summary.get(key) for title, key in SCORES.items()}
        return {title: f"{score:.4f}" for title, score in scores.items() if isinstance(score, float)}

    def __repr__(self) -> str:
        facts = "".join(f", {title} {text}" for title, text in self.facts().items())
        return f"<{type(self).__name__} {self.folder}{facts}>"

    def _repr_html_(self) -> str:
        return _html(str(self.folder), self.facts(), self.figures.get("predictions"))


class Run(Results):
    """A training: what lies in its folder.

    Attributes:
        folder: its path.
        summary, config: summary.json and config.yaml, as dicts.
        metrics, per_image, per_class, gradient_flow: the tables, as DataFrames.
        figures: paths of the figures by their names.

    Args:
        folder: path of the run folder, of a finished run or another.

    Raises:
        UserError: the folder is none of a run.

    Examples:
        run = unetseg.Run("runs/NAME")
        run.metrics.query("name == 'val/iou'").value.max()  # 0.913
    """

    MARK = "config.yaml"
    KIND = "a run folder"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return config.yaml: every option of the run, in sections; a later version's own have their defaults.

        Raises:
            UserError: the file is damaged, or not that of a training.
        """
        return recorded.read_training(self._files.config)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Return metrics.csv: step, epoch, name, value, a row for each logged number."""
        with _named_if_damaged(self._files.metrics):
            return read_metrics(self._files)

    @cached_property
    def gradient_flow(self) -> pd.DataFrame:
        """Return gradient_flow.csv: step, epoch, kind, block, metric, value."""
        with _named_if_damaged(self._files.gradient_flow):
            return read_gradient_flow(self._files)

    def model(self, *, trust: bool = False) -> Segmenter:
        """Return the network of the tested checkpoint, in eval mode on the CPU: Bx3xHxW float32 -> BxKxHxW logits.

        With `trust` the classes of your own that it names are imported.

        `unetseg.load(run.folder)` takes pictures as they come and returns masks.
        """
        from unetseg.model import checkpoint

        return checkpoint.load(self.folder, trust=trust)[0]

    def facts(self) -> dict[str, str]:
        """Return what is shown of it: its setting, seed and scores."""
        model = self.config["model"]
        setting = " ".join(setting_name(self.config, ()))
        state = {} if self.summary else {"state": "not finished"}
        return {
            "skip": setting,
            "encoder": model["encoder"],
            "seed": str(self.config["seed"]),
            **state,
        } | super().facts()


class Evaluation(Results):
    """The results of `unetseg.evaluate`: as a run's, and tables of groups, lesions and shifts where there are some."""

    @cached_property
    def per_group(self) -> pd.DataFrame:
        """Return the scores of each group (breed, patient, ...); without rows where all images are of one group."""
        return self._table("per_group.csv")

    @cached_property
    def lesion(self) -> pd.DataFrame:
        """Return the scores that are lost without long skips; without rows unless it was asked for (lesion=true)."""
        return self._table("lesion.csv")

    @cached_property
    def shapley(self) -> pd.DataFrame:
        """Return each level's Shapley value, as `lesion` otherwise."""
        return self._table("shapley.csv")

    @cached_property
    def shift(self) -> pd.DataFrame:
        """Return the scores under each shift; without rows unless it was asked for (shift=true)."""
        return self._table("shift.csv")

    @cached_property
    def freeu(self) -> pd.DataFrame:
        """Return how FreeU's factors change the scores; without rows unless it was asked for (freeu=[b,s])."""
        return self._table("freeu.csv")

    def mechanism(self, name: str) -> pd.DataFrame:
        """Return the table of a mechanism: similarity, landscape, sharpness, ...; without rows unless asked for."""
        return self._table(f"{name}.csv")

    def _table(self, name: str) -> pd.DataFrame:
        path = self.folder / name
        with _named_if_damaged(path):
            return read_csv(path) if path.exists() else pd.DataFrame()


class Sweep:
    """The finished runs below a folder, such as those of `unetseg.ablate`.

    Attributes:
        folder: its path.
        runs: those whose files can be read, in the order of their folders.
        damaged: what is wrong with each of the others, by its folder relative to the sweep's.
        table: a row for each of the runs.

    Args:
        folder: its path.

    Raises:
        UserError: there is no such folder.

    Examples:
        unetseg.Sweep("runs/demo").table.groupby("setting").IoU.mean()
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(os.path.expanduser(folder))
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder", accepted="a folder with runs below it")

    def __fspath__(self) -> str:
        """Return the path of the folder, so that `unetseg.report(runs=sweep)` works."""
        return str(self.folder)

    @property
    def runs(self) -> list[Run]:
        """Return the finished runs, by the names of their folders, without the damaged ones."""
        return [run for run, problem in self._finished if not problem]

    @property
    def damaged(self) -> dict[str, str]:
        """Return what is wrong with each run whose summary.json or config.yaml is damaged, by its folder's name."""
        return {self._place(run): problem for run, problem in self._finished if problem}

    def _place(self, run: Run) -> str:
        """Return a run's folder as its table names it: relative to the sweep's."""
        return run.folder.relative_to(self.folder).as_posix()

    @cached_property
    def _finished(self) -> list[tuple[Run, str]]:
        """Return each finished run, and what is wrong with it."""
        folders = sorted(path.parent for path in self.folder.rglob("summary.json"))
        runs = [Run(folder) for folder in folders if (folder / "config.yaml").is_file()]
        return [(run, _damage(run)) for run in runs]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Return a row for each run, by the name of its folder: setting, seed, fold if there are any, scores in 0..1.

        A damaged run is left out, and a warning names it.
        """
        for problem in self.damaged.values():
            warnings.warn(f"left out, damaged: {problem}", stacklevel=3)  # 2 is cached_property
        return self._table()

    def _table(self) -> pd.DataFrame:
        axes = axes_of([run.config for run in self.runs], ("name", "output", "resume", "jobs", "sweep.", "data.fold"))
        folds = any(flat(run.config).get("data.folds") for run in self.runs)
        rows = {
            self._place(run): {
                "setting": " ".join(setting_name(run.config, [axis for axis in axes if axis in flat(run.config)])),
                "seed": run.config["seed"],
                **({"fold": flat(run.config).get("data.fold")} if folds else {}),
                **{title: run.summary.get(key) for title, key in SCORES.items()},
            }
            for run in self.runs
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        damaged = f", {len(self.damaged)} damaged" if self.damaged else ""
        return f"<Sweep {self.folder}, {counted(len(self.runs), 'run')}{damaged}>"

    def _repr_html_(self) -> str:
        damaged = "".join(f"<p>left out, damaged: {html.escape(problem)}</p>" for problem in self.damaged.values())
        return f"<p>{html.escape(str(self.folder))}</p>{self._table().to_html()}{damaged}"


def _damage(run: Run) -> str:
    """Return what is wrong with a run's summary.json or config.yaml; an empty text if nothing is."""
    try:
        run.facts()
        setting_name(run.config, [])
        score = run.summary.get("test/iou")
        if type(run.config.get("seed")) is not int:
            return f"{run.folder}/config.yaml has no seed"
        if isinstance(score, bool) or not isinstance(score, int | float) or score < 0 or score > 1:
            return f"{run.folder}/summary.json has no test/iou in 0..1"
    except UserError as error:
        return str(error).partition("\n")[0]
    except (TypeError, AttributeError, LookupError, ValueError):  # options of other kinds
        return f"{run.folder}/config.yaml is not a run's"
    return ""


def _html(title: str, facts: Mapping[str, str], figure: Path | None) -> str:
    """Return a table of facts and a picture as HTML that needs no other file."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in facts)
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in facts.values())
    picture = ""
    if figure is not None:
        with suppress(OSError):  # a damaged figure is left out
            content = base64.b64encode(_preview(figure)).decode()
            picture = f'<img alt="{html.escape(figure.stem)}" src="data:image/jpeg;base64,{content}">'
    return f"<p>{html.escape(title)}</p><table><tr>{heads}</tr><tr>{cells}</tr></table>{picture}"


def _preview(figure: Path) -> bytes:
    """Return a figure as a JPEG of at most 700 pixels a side: a notebook keeps every picture that it has shown."""
    from PIL import Image

    content = io.BytesIO()
    with Image.open(figure) as image:
        image.thumbnail((700, 700))
        image.convert("RGB").save(content, "JPEG", quality=85)
    return content.getvalue()
