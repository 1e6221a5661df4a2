"""The real W&B client and wandb-workspaces against a server of our own: what is logged, and the report over it.

The client remembers server and key until its process ends, so all that goes online runs in a process of its own.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from conftest import TINY, forked
from wandb_server import ENTITY, KEY, Server

from unetseg.errors import UserError
from unetseg.options.compose import compose
from unetseg.options.schema import Train
from unetseg.runs import wandb_report, wandb_run
from unetseg.runs.folder import RunFolder

TABLE = "| skip | IoU |\n| --- | --- |\n| concat | 0.9 |"
REPORT = {
    "project": "skips",
    "entity": None,
    "title": "Which skips? concat/none",
    "sweep_output": "runs/a",
    "sections": [["Settings", TABLE], ["What is seen", "*Nothing* yet."]],
}


def surroundings(folder: Path, server: str, key: str | None = KEY) -> dict[str, str]:
    """Return an environment with a home, and W&B's folders, of its own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name != "NETRC"}
    ours |= {f"WANDB_{kind}_DIR": str(folder / "wandb") for kind in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    ours |= {"WANDB_BASE_URL": server, "WANDB_SILENT": "true", "HOME": str(folder), "NETRC": str(folder / "netrc")}
    ours |= {"MPLCONFIGDIR": matplotlib.get_cachedir()}  # in a new home its list of fonts would be made anew
    ours |= {} if key is None else {"WANDB_API_KEY": key}
    return ours


def publish(folder: Path, server: str, key: str | None = KEY, **changed: object) -> subprocess.CompletedProcess[str]:
    environment = surroundings(folder, server, key)
    return forked("test_wandb_report", json.dumps(REPORT | changed), folder=folder, environment=environment)


def main() -> None:
    """Publish the report of the arguments, in a process of its own."""
    try:
        print(wandb_report.publish(**json.loads(sys.argv[1])))
    except UserError as error:
        sys.exit(f"UserError: {error}")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, drawn):
    """A server to which a sweep of two trainings of a few steps was logged, and the sweep's folder."""
    folder = tmp_path_factory.mktemp("sweep")
    output = str(folder / "skips=all <2>")
    options = [*TINY, f"data.root={drawn}", f'output="{output}"', "trainer.max_epochs=1", "gradients.every_n_steps=2"]
    options += ["logger=wandb", "wandb.mode=online", "wandb.project=skips", "--multirun", "model.skip=concat,none"]
    with Server() as server:
        done = forked("unetseg.train", *options, folder=folder, environment=surroundings(folder, server.url))
        assert done.returncode == 0, done.stderr
        yield server, output


def test_a_training_logs_its_scalars_and_flat_options(sweep):
    server, output = sweep
    runs = {run.config["variant"]: run for run in server.runs.values()}
    assert runs.keys() == {"concat", "none"}
    for arrived in runs.values():
        assert arrived.complete
        assert arrived.config["output"] == output
        assert arrived.config["data_size"] == 64
        assert len(arrived.values("val/iou")) == len(arrived.values("val/boundary_iou")) == 1
        assert 0 < arrived.summary["test/iou"] < 1
        assert any(file.startswith("media/images/val/predictions") for file in arrived.files)
    assert all(0 < share < 1 for share in runs["concat"].values("gradient/skip_share/level1"))
    assert set(runs["none"].values("gradient/skip_share/level1")) == {0}


def test_the_report_has_the_sections_and_panels_over_the_sweeps_runs(sweep, tmp_path):
    server, output = sweep
    done = publish(tmp_path, server.url, sweep_output=output)
    assert done.returncode == 0, done.stderr
    report = server.reports[-1]
    assert report["displayName"] == REPORT["title"]
    assert (report["entityName"], report["projectName"]) == (ENTITY, "skips")
    assert done.stdout.strip() == f"{server.url}/{ENTITY}/skips/reports/Which-skips-concat-none--VmlldzoxMjM="
    blocks = json.loads(report["spec"])["blocks"]

    assert [block["content"] for block in blocks if block["type"] == "markdown-block"] == [TABLE, "*Nothing* yet."]
    headings = ["".join(part["text"] for part in block["children"]) for block in blocks if block["type"] == "heading"]
    assert headings[:2] == ["Settings", "What is seen"]

    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    for grid in grids:
        (runs,) = grid["runSets"]
        assert runs["project"]["name"] == "skips"
        assert runs["grouping"] == [{"section": "config", "name": "variant.value"}]
        (only,) = runs["filters"]["filters"]
        assert only["key"] == {"section": "config", "name": "output"}
        assert (only["op"], only["value"], only["disabled"]) == ("=", output, False)

        corners = {(panel["layout"]["x"], panel["layout"]["y"]) for panel in grid["panelBankSectionConfig"]["panels"]}
        assert corners in ({(0, 0), (12, 0)}, {(0, 0), (12, 0), (0, 8), (12, 8)}), "panels two by two"

    panels = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
    shown = {metric: panel for panel in panels for metric in panel["config"]["metrics"]}
    curves = ["val/iou", "val/boundary_iou", *(f"gradient/skip_share/level{level}" for level in (1, 2, 3, 4))]
    assert {name: panel["viewType"] for name, panel in shown.items()} == {
        **dict.fromkeys(curves, "Run History Line Plot"),
        **dict.fromkeys(["test/iou", "test/boundary_iou"], "Bar Chart"),
    }
    assert {shown[curve]["config"]["xAxis"] for curve in curves} == {"trainer/global_step"}
    assert {panel["config"]["groupAgg"] for panel in panels} == {"mean"}
    for arrived in server.runs.values():
        assert all(arrived.values(name) for name in [*curves, "trainer/global_step"]), "a panel of nothing"
        assert {"test/iou", "test/boundary_iou"} <= arrived.summary.keys()


def test_an_offline_run_arrives_by_wandb_sync(tmp_path):
    own = ["data=synthetic", "model.skip=add", f"output={tmp_path}", "name=alone", "wandb.mode=offline"]
    options = compose("train", Train, own)
    logger = wandb_run.wandb_logger(options, RunFolder.create(options))
    logger.log_metrics({"val/iou": 0.25, "epoch": 0}, step=5)
    wandb_run.log_summary(logger, {"test/iou": 0.75}, pd.DataFrame({"class": ["sky"], "iou": [0.75]}))
    wandb_run.finish([logger])
    (logged,) = tmp_path.glob("alone/wandb/offline-run-*")
    with Server() as server:
        command = [Path(sys.executable).with_name("wandb"), "sync", logged]
        ours = surroundings(tmp_path, server.url)
        done = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (arrived,) = server.runs.values()
    assert arrived.complete
    assert arrived.name == "alone"
    assert (arrived.config["variant"], arrived.config["output"]) == ("add", str(tmp_path))
    assert (arrived.values("val/iou"), arrived.values("trainer/global_step")) == ([0.25], [5])
    assert arrived.summary["test/iou"] == 0.75


def test_without_a_key_nothing_is_contacted(tmp_path):
    with Server() as server:
        done = publish(tmp_path, server.url, key=None)
    assert "UserError: a W&B report needs a key\n  accepted: WANDB_API_KEY" in done.stderr
    assert "try: wandb login" in done.stderr
    assert server.requests == 0


def test_without_wandb_workspaces_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"wandb_workspaces(.|\n)*pip install 'unetseg\[report\]'"):
        wandb_report.publish(**REPORT)


def test_a_project_that_the_runs_were_not_logged_to_is_named(tmp_path):
    with Server() as server:
        done = publish(tmp_path, server.url)
    assert f"UserError: W&B has no project {ENTITY}/skips to report on" in done.stderr
    assert "wandb sync" in done.stderr
    assert not server.reports


@pytest.mark.parametrize("operation", ["Viewer", "upsertView"])
def test_the_servers_reason_to_refuse_is_told(operation, tmp_path):
    with Server(refused=operation) as server:
        server.project("skips")
        done = publish(tmp_path, server.url)
    assert "UserError: W&B did not take the report:" in done.stderr
    assert "permission denied" in done.stderr


def test_an_unreachable_server_is_told_when_it_had_its_seconds_to_answer(tmp_path):
    with socket.socket() as unanswered:
        unanswered.bind(("127.0.0.1", 0))
        unanswered.listen()  # connections are made, and nobody ever answers
        done = publish(tmp_path, f"http://127.0.0.1:{unanswered.getsockname()[1]}")
    assert "UserError: W&B did not take the report: http://127.0.0.1" in done.stderr
    assert "can't be reached (timed out)" in done.stderr
    assert wandb_report.TIMEOUT < 15
