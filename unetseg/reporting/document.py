"""The parts of a report, and its two forms: one self-contained HTML file, and Markdown with pictures."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import jinja2

from unetseg.names import shown

UNSEEN = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""Characters that are not allowed in a page: controls, changes of direction, bytes that are no UTF-8."""
COLUMNS = 6
"""The most pictures with captions side by side in Markdown."""


@dataclass(frozen=True)
class Table:
    """Rows of strings under column names; the first `words` columns are aligned left, the others right.

    Examples:
        >>> table = Table(["setting", "IoU"], [["concat", "0.662"]])
        >>> section = Section("Settings", "One setting is finished.", [table])
        >>> text_sections(Document("Report", "", "", [section], {}))[0][1].splitlines()[-1]
        '| concat | 0.662 |'
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    caption: str = ""

    kind = "table"


@dataclass(frozen=True)
class Panel:
    """A picture."""

    name: str
    """The name of its file without the ending."""
    content: bytes
    """Of a PNG or JPEG file."""
    alt: str
    caption: str = ""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Of a legend: the colours by what they stand for."""

    @property
    def format(self) -> str:
        return "jpeg" if self.content.startswith(b"\xff\xd8") else "png"

    @property
    def file(self) -> str:
        return f"{self.name}.{self.format}"


@dataclass(frozen=True)
class Figure:
    """Panels side by side, or one below the other where there is no room."""

    panels: Sequence[Panel]
    caption: str = ""
    width: int = 290
    """The least width of a panel in pixels of the page."""
    legend: Panel | None = None
    """What the panels' colours stand for, where they need it; HTML shows it as text."""

    kind = "figure"


@dataclass(frozen=True)
class Code:
    """Lines as they were typed."""

    lines: Sequence[str]

    kind = "code"


Block = str | Table | Figure | Code


@dataclass(frozen=True)
class Section:
    """A heading, one sentence with the finding, and its evidence: texts, tables, figures, code."""

    heading: str
    lead: str
    blocks: Sequence[Block] = ()

    @property
    def anchor(self) -> str:
        """Return the target of links to the section."""
        return self.heading.lower().replace(" ", "-")


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    question: str
    facts: str
    """Model, data and size of the sweep."""
    sections: Sequence[Section]
    colours: dict[str, str]
    """The settings' colours by their names."""


def html(report: Document, mark: str) -> str:
    """Return the report as one self-contained file; by `mark` a later call recognises a file of its own."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_show_unseen,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("report.html.jinja").render(report=report, mark=mark)


def _show_unseen(value: object) -> object:
    """Return a plain string with every character of UNSEEN made visible, and other values as they are."""
    return re.sub(UNSEEN, lambda match: shown(match[0]), value) if type(value) is str else value


def markdown(report: Document) -> str:
    """Return the report as Markdown; it refers to the files of `pictures` in figures/."""
    parts = [f"# {report.title}", _paragraph(report.question), _paragraph(report.facts)]
    for section in report.sections:
        parts += [f"## {section.heading}", *_texts(section, figures=True)]
    return "\n\n".join(part for part in parts if part) + "\n"


def text_sections(report: Document) -> list[tuple[str, str]]:
    """Return the heading and the Markdown of each section, without figures."""
    return [(section.heading, "\n\n".join(_texts(section, figures=False))) for section in report.sections]


def pictures(report: Document) -> dict[str, bytes]:
    """Return the content of every picture of the Markdown by file name."""
    figures = [block for section in report.sections for block in section.blocks if isinstance(block, Figure)]
    panels = [panel for figure in figures for panel in (figure.legend, *figure.panels) if panel]
    return {panel.file: panel.content for panel in panels}


def _texts(section: Section, figures: bool) -> list[str]:
    parts = [f"**{_escape(section.lead)}**"]
    for block in section.blocks:
        if isinstance(block, str):
            parts.append(_paragraph(block))
        elif isinstance(block, Code):
            parts += _code(block)
        elif isinstance(block, Table):
            parts += [_table(block), *_caption(block)]
        elif figures:
            parts += _figure(block)
    return parts


def _table(table: Table) -> str:
    rule = ["---" if column < table.words else "---:" for column in range(len(table.columns))]
    lines = [
        [_escape(cell) for cell in table.columns],
        rule,
        *([_escape(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(figure: Figure) -> list[str]:
    """Return panels with captions as a table, panels without in a line."""
    legend = [f"![{_escape(figure.legend.alt)}](figures/{figure.legend.file})"] if figure.legend else []
    images = [f'<img src="figures/{p.file}" width="{figure.width}" alt="{_attribute(p.alt)}">' for p in figure.panels]
    if any(panel.caption for panel in figure.panels):
        captions = [_escape(panel.caption) for panel in figure.panels]
        starts = range(0, len(images), COLUMNS)
        lines = [cells[start : start + COLUMNS] for start in starts for cells in (images, captions)]
        lines.insert(1, ["---"] * len(lines[0]))
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    else:
        body = "\n".join(images)
    return [*legend, body, *_caption(figure)]


def _caption(block: Table | Figure) -> list[str]:
    return [f"*{_escape(block.caption)}*"] if block.caption else []


def _code(code: Code) -> list[str]:
    """Return a fence with the lines; lines that might end it or are no single line follow as paragraphs."""
    plain = [line for line in code.lines if not re.search(r"[`<]|]\(|]\[", line) and shown(line) == line]
    fence = ["\n".join(["```", *plain, "```"])] if plain else []
    return [*fence, *(_paragraph(line) for line in code.lines if line not in plain)]


def _attribute(text: str) -> str:
    """Return the value of an HTML attribute inside a Markdown table."""
    return re.sub(r"[][|`*_~!\\]", lambda match: f"&#{ord(match[0])};", escape(shown(text)))


def _paragraph(text: str) -> str:
    """Return text as a paragraph that Markdown can't read as a heading, list, quotation, rule or fence."""
    return re.sub(r"^\s*(?=([-+#>=~]|\d+[.)]\s))(\d*)", r"\2\\", _escape(text).lstrip())


def _escape(text: str) -> str:
    """Escape text for Markdown: it becomes one line without links, pictures, HTML or formulas.

    The brackets of an interval, [0.1, 0.2], are not escaped.
    """
    line = re.sub(r"[\t\n\r\v\f\x85\u2028\u2029]+", " ", text)
    line = re.sub(r"([\\`*_|<>~$]|\[(?![+−-]?[\d.])|\](?=[\[(:])|(?<=\])\(|&(?=#?\w+;))", r"\\\1", shown(line))
    return re.sub(r":(?=//)|(?<=www)\.", r"\\\g<0>", line)
