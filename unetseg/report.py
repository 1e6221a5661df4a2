"""Report an ablation: one HTML file that reads without a network, and the same in Markdown.

python -m unetseg.report runs=DIR                   DIR/report/report.html and report.md, from the runs below DIR
python -m unetseg.report runs=DIR output=FOLDER     elsewhere; a report that lies there is replaced
python -m unetseg.report runs=DIR wandb=true        as a W&B Report as well
python -m unetseg.report runs=DIR plan=0.02         and how many seeds and images would show a difference of 0.02
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from unetseg.errors import UserError
from unetseg.options import command
from unetseg.options.schema import Report

if TYPE_CHECKING:
    from unetseg.reporting import document

MARK = "unetseg.report"
"""Stands in every report.html that is ours, and so may be replaced."""


def report(options: Report) -> Path:
    """Write the report of the runs below a folder; return the path of report.html."""
    output = Path(options.output) if options.output else Path(options.runs) / "report"
    check_output(output)
    from unetseg.reporting import document, results, sections

    runs = results.read(Path(options.runs))
    made = sections.report(runs, plan=options.plan, pooled=options.pooled)
    path = write(made, output)
    print(path)
    if options.wandb:
        from unetseg.runs import wandb_report

        of_run = runs.runs[0].options
        address = wandb_report.publish(
            project=of_run["wandb"]["project"],
            entity=of_run["wandb"]["entity"],
            title=f"{made.title}: {made.facts}",
            sweep_output=of_run["output"],
            sections=document.without_pictures(made),
        )
        print(address)
    return path


def check_output(output: Path) -> None:
    """Raise a UserError unless the folder is new, empty, or holds an earlier report."""
    if output.is_dir():
        page = output / "report.html"
        if not any(output.iterdir()) or (page.is_file() and f'content="{MARK}"' in page.read_text(errors="replace")):
            return
    if output.exists():
        raise UserError(
            f"output={output} exists and holds no report",
            accepted=("a new or empty folder, or one with a report of this command, which is replaced"),
            advice="another output=...",
        )


def write(made: document.Document, output: Path) -> Path:
    """Write report.html, report.md and its pictures in figures/; take away the pictures of an earlier report."""
    from unetseg.reporting import document

    figures, text, page = output / "figures", output / "report.md", output / "report.html"
    figures.mkdir(parents=True, exist_ok=True)
    if text.is_file():
        for name in re.findall(r"figures/([\w.-]+\.png)", text.read_text(errors="replace")):
            (figures / name).unlink(missing_ok=True)
    for name, content in document.pictures(made).items():
        (figures / name).write_bytes(content)
    text.write_text(document.markdown(made))
    page.write_text(document.html(made, MARK))
    return page


def main() -> None:
    """Run from the command line."""
    command.run("report", Report, report)


if __name__ == "__main__":
    main()
