"""Report an ablation: one HTML file that reads without a network, and the same in Markdown.

python -m unetseg.report runs=DIR                   DIR/report/: report.html and report.md
python -m unetseg.report runs=DIR output=FOLDER     elsewhere; a report that lies there is replaced
python -m unetseg.report runs=DIR wandb=true        as a W&B Report as well
python -m unetseg.report runs=DIR plan=0.02         and what would show a difference of 0.02

In Python: page = unetseg.report(runs="DIR")
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from unetseg.errors import UserError
from unetseg.files import drafted, write_text
from unetseg.names import shown
from unetseg.options import command
from unetseg.options.call import CallableModule, Option, interruptible, overrides_of
from unetseg.options.command_schema import Report
from unetseg.options.output import check_writable, explain_write_errors, say

if TYPE_CHECKING:
    from unetseg.reporting import document

MARK = "unetseg.report"
"""A report.html with this word is ours, and may be replaced."""


def call(*overrides: str, **options: Option) -> Path:
    """Report the runs below a folder, and return the path of report.html: what `unetseg.report(...)` does.

    Args:
        overrides: options as on the command line.
        options: runs (a folder with runs below it), output, plan, pooled, wandb, trust.

    Raises:
        UserError: an option is wrong; the text says what is accepted and what to try.

    Examples:
        unetseg.report(runs="runs/demo")  # runs/demo/report/report.html
    """
    given = overrides_of(overrides, options, "runs=FOLDER")
    with interruptible("report", given):
        return report(command.options_of("report", Report, given))


def report(options: Report) -> Path:
    """Write the report of the runs below a folder; return the path of report.html."""
    output = Path(options.output) if options.output else Path(options.runs) / "report"
    check_output(output)
    check_writable(output)
    from unetseg.reporting import document, results, sections

    runs = results.read(Path(options.runs))
    page = sections.report(runs, plan=options.plan, pooled=options.pooled, trust=options.trust)
    with explain_write_errors(output):
        path = write(page, output)
    damaged = [f"left out, damaged: {place}: {reason}" for place, reason in runs.damaged]
    say("\n".join([*map(shown, damaged), shown(path)]))
    if options.wandb:
        from unetseg.runs import wandb_report

        run_options = runs.runs[0].options
        address = wandb_report.publish(
            project=run_options["wandb"]["project"],
            entity=run_options["wandb"]["entity"],
            title=f"{page.title}: {page.facts}",
            sweep_output=run_options["output"],
            sections=document.text_sections(page),
        )
        say(address)
    return path


def check_output(output: Path) -> None:
    """Raise a UserError unless the folder is new, empty, or holds an earlier report, finished or not."""
    if output.is_dir() and not output.is_symlink() and not (output / "figures").is_symlink():
        page = output / "report.html"
        no_page_yet = {path.name for path in output.iterdir()} <= {f".{page.name}.tmp"}
        if no_page_yet or (page.is_file() and f'content="{MARK}"' in page.read_text(errors="replace")):
            return
    if os.path.lexists(output):
        raise UserError(
            f"output={shown(output)} exists and holds no report, or leads elsewhere",
            accepted="a new or empty folder, or one with a report of this command, which is replaced; no links",
            advice="another output=...",
        )


def write(contents: document.Document, output: Path) -> Path:
    """Write report.html, report.md and its pictures in figures/; remove the pictures of an earlier report.

    The folder is marked as a report's before anything else is written, so that the same command works after a stop.
    """
    from unetseg.reporting import document

    figures = output / "figures"
    text = output / "report.md"
    page = output / "report.html"
    output.mkdir(parents=True, exist_ok=True)
    if not page.exists():
        write_text(page, f'<meta name="generator" content="{MARK}"><p>This report is not finished.</p>\n')
    figures.mkdir(exist_ok=True)
    earlier = re.findall(r"figures/([\w.-]+\.(?:png|jpeg))", text.read_text(errors="replace")) if text.is_file() else []
    pictures = document.pictures(contents)
    for name, content in pictures.items():
        with drafted(figures / name) as draft:
            draft.write_bytes(content)
    write_text(text, document.markdown(contents))
    for name in set(earlier) - pictures.keys():
        (figures / name).unlink(missing_ok=True)
    write_text(page, document.html(contents, MARK))
    return page


def main() -> None:
    for page in command.run("report", Report, report, about=__doc__):
        say(f"next: open {shown(page)} in a browser")


sys.modules[__name__].__class__ = CallableModule

if __name__ == "__main__":
    main()
