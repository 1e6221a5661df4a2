"""A sweep as a W&B Report: sections of text, then panels over the scalars and flat options that wandb_run.py sends."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from unetseg.errors import UserError

TIMEOUT = 3.0
"""Seconds that the server has to answer at all."""
API_TIMEOUT = 10
"""Seconds that the server has to answer whose key it is; wandb's own 19 are long for a user who waits for an error."""
STEP = "trainer/global_step"
"""The x axis of curves: W&B's own step counts calls of log(), not steps of the training."""

GRIDS = {
    "Test scores by variant": {"Test IoU": "test/iou", "Test Boundary IoU": "test/boundary_iou"},
    "Learning curves": {"Validation IoU": "val/iou", "Validation Boundary IoU": "val/boundary_iou"},
    "Share of the gradient that arrives by the long skip": {
        f"Skip share, level {level}": f"gradient/skip_share/level{level}" for level in (1, 2, 3, 4)
    },
}
"""Panels below each heading: title and scalar."""


def publish(*, project: str, entity: str | None, title: str, sweep_output: str, sections: list[tuple[str, str]]) -> str:
    """Make a W&B Report of a sweep; return its URL.

    Args:
        project: W&B project that the sweep's runs were logged to.
        entity: its user or team; None: the key's own.
        title: title of the report; W&B takes 128 characters, further words are cut.
        sweep_output: the runs' `output`, by which they differ from the project's other runs.
        sections: heading and Markdown text of each section; a table is a Markdown table.

    Raises:
        UserError: no key, no wandb-workspaces, a server that can't be reached or refuses, or no such project there.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # the caller prints where the report is
    try:
        import wandb
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise UserError(
            f"a W&B report can't be made: {error}",
            accepted="unetseg with its extra `report`",
            advice="pip install 'unetseg[report]'",
        ) from None
    with _explain_server_errors():
        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                "a W&B report needs a key",
                accepted=(
                    "WANDB_API_KEY in the environment, or `wandb login` once, while WANDB_MODE is unset or online"
                ),
                advice="wandb login",
            )
        _check_reachable(wandb.setup().settings.base_url)
        api = wandb.Api(timeout=API_TIMEOUT)
        owner = entity or api.settings["entity"] or api.default_entity or ""
        if project not in {known.name for known in api.projects(owner)}:
            raise UserError(
                f"W&B has no project {owner}/{project} to report on",
                accepted="the project that the sweep's runs were logged to",
                advice="`wandb sync` of the runs that were logged offline, or another project or entity",
            )
    title = textwrap.shorten(title, 128, placeholder=" ...")
    blocks: list[Any] = [block for heading, text in sections for block in (wr.H2(heading), wr.MarkdownBlock(text))]
    blocks += _panels(owner, project, sweep_output)
    report = wr.Report(project=project, entity=owner, title=title, blocks=blocks, width="fluid")
    with _explain_server_errors():
        host = report.save().url.partition(f"/{project}/reports/")[0]
    words = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")  # "/" or "?" of a title would break the address
    return f"{host}/{project}/reports/{words}--{report.id}"


@contextmanager
def _explain_server_errors() -> Iterator[None]:
    """Turn an error of the server into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the client raises errors that have no public class
        raise UserError(
            f"W&B did not take the report: {str(error).strip()}",
            accepted="a server that can be reached, with a key that may write reports there",
            advice="`wandb login --relogin`; WANDB_BASE_URL=... if the server is not W&B's own",
        ) from None


def _check_reachable(server: str) -> None:
    """Raise an OSError with the reason where no server answers; the client's own error is only a timeout."""
    try:
        urlopen(Request(server, method="HEAD"), timeout=TIMEOUT).close()
    except OSError as error:
        if not isinstance(error, HTTPError):  # an HTTPError is an answer
            raise OSError(f"{server} can't be reached ({getattr(error, 'reason', error)})") from None


def _panels(entity: str, project: str, sweep_output: str) -> list[Any]:
    """Return grids of panels over the sweep's runs, with headings: a bar or a line for each variant."""
    import wandb_workspaces.reports.v2 as wr

    def panel(title: str, scalar: str) -> Any:
        # the mean over the seeds, and their range: no distribution is assumed of a handful of runs
        shared: dict[str, Any] = {"title": title, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        shared["layout"] = wr.Layout(w=12, h=8)  # half the width; the grid places its panels
        if scalar.startswith("test/"):
            return wr.BarPlot(metrics=[scalar], **shared)
        return wr.LinePlot(x=STEP, y=[scalar], title_x="training step", **shared)

    blocks: list[Any] = []
    for heading, scalars in GRIDS.items():
        runs = wr.Runset(entity, project, "This sweep", filters=_sweep_filter(sweep_output), groupby=["config.variant"])
        panels = [panel(title, scalar) for title, scalar in scalars.items()]
        blocks += [wr.H2(heading), wr.PanelGrid(runsets=[runs], panels=panels)]
    return blocks


def _sweep_filter(sweep_output: str) -> str:
    """Return the filter of a sweep's runs.

    wandb-workspaces rewrites `=`, `<` and `>` before it parses the text, also inside a quoted value.
    """
    literal = re.sub("[=<>]", lambda match: rf"\x{ord(match[0]):x}", repr(sweep_output))
    return f'Config("output") == {literal}'
