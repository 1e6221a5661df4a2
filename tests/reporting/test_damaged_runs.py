"""Run folders of strangers and of bad days: the report names what it can't use, goes on, and writes nowhere else."""

import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_report import made, sweep, undrawn, write_run  # noqa: F401 (fixtures)

from unetseg import report as door
from unetseg.errors import UserError
from unetseg.options.command_schema import Report
from unetseg.reporting import results
from unetseg.reporting.document import Code, Document, Figure, Panel, Section, Table, html, markdown


@pytest.fixture
def runs(tmp_path, undrawn) -> Path:  # noqa: F811
    """Two runs of a setting."""
    for seed in (0, 1):
        write_run(tmp_path / f"runs/seed{seed}", "concat", seed)
        summary = tmp_path / f"runs/seed{seed}/summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"test/images": 40}))
    return tmp_path / "runs"


def emptied(path: Path) -> None:
    path.write_text("")


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_at_a_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-5]))


def without_a_column(path: Path) -> None:
    path.write_text(re.sub(r"iou|epoch|pixels|value", "x", path.read_text()))


def of_words(path: Path) -> None:
    path.write_text(re.sub(r"\d+\.\d+", "word", path.read_text()))


def of_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\0" * 50)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ANY = (emptied, cut_in_half, without_a_column, of_bytes, a_pipe, a_folder)
DAMAGES = [(name, damage) for name in ("per_image.csv", "edge_distance.csv", "metrics.csv") for damage in ANY]
DAMAGES += [("per_image.csv", cut_at_a_line), ("metrics.csv", cut_at_a_line), ("per_image.csv", of_words)]
DAMAGES += [("gradient_flow.csv", emptied), ("gradient_flow.csv", of_words)]
DAMAGES += [(name, damage) for name in ("summary.json", "config.yaml") for damage in (emptied, of_bytes, a_pipe)]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda given: getattr(given, "__name__", given))
def test_a_damaged_file_takes_its_run_out_and_is_named(runs, name, damage):
    damage(runs / "seed1" / name)
    ((place, reason),) = results.read(runs).damaged
    assert place == "seed1"
    assert reason.startswith(name)
    shutil.rmtree(runs / "seed0")
    with pytest.raises(UserError, match=f"seed1 can't be used: {name}"):
        results.read(runs)


def test_the_rest_is_reported_and_says_what_is_left_out(runs, tmp_path, capsys):
    emptied(runs / "seed1/metrics.csv")
    text = made(runs, tmp_path / "out")
    assert "left out, damaged: seed1: metrics.csv can't be read" in capsys.readouterr().out
    assert "1 of 2 cells is not in this report; damaged: seed1." in text
    assert "| seed1 | metrics.csv can't be read: No columns" in text


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


CONFIGS = {
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nmodel: {skip: concat}\nseed: 0\ndata: {name: pets}",
    "itself": "model: &m {skip: concat, more: *m}\nseed: 0\ndata: {name: pets}",
    "depth": f"model: {nested(5000)}",
    "code": "!!python/object/apply:os.system ['touch ran']",
    "list": "[1, 2]",
    "dates": "model: {skip: 2024-05-01}\nseed: 2024-05-01\ndata: {name: pets}",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_is_no_plain_values_is_named(runs, kind):
    (runs / "seed1/config.yaml").write_text(CONFIGS[kind])
    assert results.read(runs).damaged[0][1].startswith("config.yaml can't be read")


SUMMARIES = [
    [],
    {"test/iou": "x"},
    {"test/iou": None},
    {"test/iou": True},
    {"flops": {}},
    {"versions": []},
    {"epochs": "1"},
]


@pytest.mark.parametrize("changes", SUMMARIES, ids=str)
def test_a_summary_of_other_kinds_is_named(runs, changes):
    path = runs / "seed1/summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes} if changes else changes))
    assert results.read(runs).damaged[0][1].startswith("summary.json")


@pytest.mark.parametrize("content", ["[]", "{", '{"cells": 1}', '{"cells": [{"name": 1}]}', '{"command": []}'])
def test_a_damaged_record_of_a_sweep_is_named(runs, content):
    (runs / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json can't be read"):
        results.read(runs)


def test_pictures_may_be_called_as_they_like(runs):
    for run in runs.iterdir():
        table = (run / "per_image.csv").read_text()
        (run / "per_image.csv").write_text(table.replace("picture_7,", "NA,").replace("picture_8,", "007,"))
    (setting,) = results.read(runs).settings
    assert {"NA", "007"} < set(setting.images)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("moment", ["write_text report.html", "write_bytes figures", "write_text report.md"])
@pytest.mark.parametrize("earlier", [False, True], ids=["first", "again"])
def test_the_same_command_goes_on_after_a_kill(runs, tmp_path, monkeypatch, moment, earlier):
    out = tmp_path / "out"
    if earlier:
        made(runs, out)
    method, _, where = moment.partition(" ")
    real = getattr(Path, method)

    def halved(self, content, *arguments, **options):
        if where in str(self):
            real(self, content[: len(content) // 2], *arguments, **options)
            raise Killed
        return real(self, content, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, halved)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a kill cleans nothing up
        with pytest.raises(Killed):
            made(runs, out)
    text = made(runs, out)
    assert set(re.findall(r"figures/([\w.]+png)", text)) <= {path.name for path in (out / "figures").iterdir()}
    assert "Behind the numbers" in (out / "report.html").read_text()


@pytest.mark.parametrize("name", ["report.md", "figures", ".report.md.tmp", ".report.html.tmp", "itself"])
def test_a_link_where_the_report_goes_leads_nowhere(runs, tmp_path, name):
    victim = tmp_path / "victim"
    out = runs / "report"
    if name == "itself":
        victim.mkdir()
        out.symlink_to(victim)
    else:
        out.mkdir()
        (out / "report.html").write_text(f'<meta name="generator" content="{door.MARK}">')
        victim.mkdir() if name == "figures" else victim.write_text("precious")
        (out / name).symlink_to(victim)
    if victim.is_dir():
        with pytest.raises(UserError, match="leads elsewhere"):
            door.report(Report(runs=str(runs), output=None, wandb=False, plan=None, pooled=False, trust=False))
        assert not any(victim.iterdir())
    else:
        door.report(Report(runs=str(runs), output=None, wandb=False, plan=None, pooled=False, trust=False))
        assert victim.read_text() == "precious"


EVIL = (
    "![p](http://127.0.0.1/p.png) [click](javascript:alert(1)) [0.1](javascript:x) <b>bold</b> <script>x</script> "
    "&lt;i&gt;\n\n# heading\n\n```\n</code></pre>\u202e\x1b[2J \udce4 | cell"
)


@pytest.mark.parametrize("start", ["", "# ", "- ", "1. ", "> ", "```\n", "    ", "---\n", "[a]: http://x "])
def test_a_strangers_names_are_text_in_both_forms(start):
    evil = start + EVIL
    blocks = [evil, Table([evil], [[evil]], caption=evil), Code([evil, "python -m unetseg.train data=pets"])]
    blocks.append(Figure([Panel("a", b"", evil, evil)], evil))
    report = Document("Title", evil, evil, [Section("Heading", evil, blocks)], {evil: "#000000"})
    text = markdown(report)
    assert not re.search(r"(?<!\\)\[(click|p|a)|(?<!\\)<(?!img src=.figures)|[\x1b\u202e\udce4]|\]\((?!figures)", text)
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Title", "## Heading"]
    lines = [line for line in text.splitlines() if line]
    assert [line for line in lines if re.match(r"\s*(```|~~~|[-+>] |\d+[.)] |---)", line)] == ["```", "```"]
    assert lines.index("```") + 2 == len(lines) - lines[::-1].index("```") - 1, "one command stands in the fence"
    page = html(report, "mark")
    assert not re.search(r"<(b|script|i)>|[\x1b\u202e\udce4]|<img(?! src=.data:)", page)
    text.encode(), page.encode()


def test_an_interval_stays_as_it_is():
    text = markdown(Document("T", "q", "f", [Section("H", "0.6 [0.61, −0.7] and [95 % interval].")], {}))
    assert "**0.6 [0.61, −0.7] and [95 % interval].**" in text


def test_a_strangers_options_end_no_report(runs, tmp_path):
    path = runs / "seed0/config.yaml"
    options = yaml.safe_load(path.read_text())
    options["data"] = {"name": "pets", "target": [], "root": {}}
    path.write_text(yaml.safe_dump(options))
    (runs / "seed0/checkpoints").mkdir()
    (runs / "seed0/checkpoints/best.ckpt").write_text("none")
    assert "Not shown: " in made(runs / "seed0", tmp_path / "out")


@pytest.mark.parametrize(
    "entry",
    [
        {"test/iou": 10**400},
        {"test/iou": float("inf")},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"epochs": 10**400},
        {"git_commit": ["a"]},
        {"parameters": float("nan")},
    ],
    ids=lambda entry: f"{next(iter(entry))}={str(next(iter(entry.values())))[:4]}",
)
def test_a_summary_with_values_that_no_run_has_takes_its_run_out(runs, tmp_path, entry):
    path = runs / "seed1/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    ((place, reason),) = results.read(runs).damaged
    assert place == "seed1"
    assert reason.startswith(f"summary.json: {next(iter(entry))}")


def test_scores_beyond_0_and_1_take_their_run_out(runs):
    (runs / "seed0/per_image.csv").write_text(
        re.sub(r"(?m)^(.*?),([\d.]+),", r"\1,5.0,", (runs / "seed0/per_image.csv").read_text())
    )
    summary = runs / "seed1/summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"test/iou": 7.5}))
    with pytest.raises(UserError, match=r"seed0 can't be used: per_image\.csv has scores(.|\n)*seed1"):
        results.read(runs)


def test_edge_counts_of_other_pictures_give_no_interval(runs):
    from unetseg.reporting import scores

    (setting,) = results.read(runs).settings
    bands = pd.read_csv(runs / "seed0/edge_distance.csv").from_px
    rows = [f"{name},{band},10,{number % 7}" for number, name in enumerate(setting.images) for band in bands]
    for seed in (0, 1):
        path = runs / f"seed{seed}/edge_distance_per_image.csv"
        path.write_text("\n".join(["name,from_px,pixels,errors", *rows]) + "\n")
    before = scores.edge_errors(setting, "image")
    assert before.loc["low"].notna().all()
    path.write_text("\n".join(["name,from_px,pixels,errors", *(f"zz_{row}" for row in rows)]) + "\n")
    after = scores.edge_errors(setting, "image")
    assert after.loc[["low", "high"]].isna().all(axis=None)
