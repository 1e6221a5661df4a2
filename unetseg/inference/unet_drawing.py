"""A U-Net with its levels as an inline SVG, in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

WIDTH, ROW, BOX, TOP = 320, 34, 22, 20
"""Pixels: of the drawing, from a level to the next, the height of a box, and above the first."""
STYLE = (
    ".unet{width:100%;max-width:340px;display:block;margin:auto}"
    ".unet text{font-size:12px;fill:currentColor;text-anchor:middle}"
    ".unet rect{fill:currentColor;fill-opacity:.12;stroke:currentColor}"
    ".unet path{stroke:currentColor;stroke-width:1.5;fill:none}"
    ".unet .carries path{stroke-width:2.5}"
    ".unet .empty path{stroke-dasharray:1 5}"
    ".unet .off path{stroke:#d6493f;stroke-dasharray:6 4}"
    ".unet .off path.cross{stroke-dasharray:none;stroke-width:3}.unet .off text{font-weight:bold}"
)


def draw_unet(skips: Sequence[str], carrying: Collection[int], off: Collection[int] = ()) -> str:
    """Return the drawing: encoder on the left, decoder on the right, a long skip at each level between them.

    Args:
        skips: the kind of each level's long skip, finest first.
        carrying: the levels whose skip carries features; the others are dotted.
        off: the levels that are switched off; they are dashed and crossed out.

    Examples:
        >>> "level 2: off" in draw_unet(["concat"] * 4, carrying=[1, 2, 3, 4], off=[2])
        True
    """
    states = {
        level: "off" if level in off else "carries" if level in carrying else "empty"
        for level in range(1, len(skips) + 1)
    }
    texts = {level: f"level {level}: {_text(skips[level - 1], state)}" for level, state in states.items()}
    drawn = [_level(level, state, texts[level], last=level == len(skips)) for level, state in states.items()]
    middle, y = WIDTH / 2, _y(len(skips) + 1)
    return (
        f"<svg class='unet' viewBox='0 0 {WIDTH} {y + BOX / 2 + 4}' role='img' "
        f"aria-label='U-Net: {', '.join(texts.values())}'><style>{STYLE}</style>"
        f"<text x='{_x(1)}' y='12'>encoder</text><text x='{WIDTH - _x(1)}' y='12'>decoder</text>{''.join(drawn)}"
        f"{_box(middle, y, 84)}<text x='{middle}' y='{y + 4}'>bottleneck</text></svg>"
    )


def _text(kind: str, state: str) -> str:
    """Return what stands on a long skip."""
    if state == "off":
        return "off"
    return kind if state == "carries" or kind == "none" else f"{kind}, no features"


def _level(level: int, state: str, text: str, last: bool) -> str:
    """Return a level's two boxes, the ways down from the one and up to the other, and the long skip between them."""
    left, right, y, middle = _x(level), WIDTH - _x(level), _y(level), WIDTH / 2
    width = 46 - 6 * level
    below, above_next = y + BOX / 2, _y(level + 1) - BOX / 2
    next_left = middle - 30 if last else _x(level + 1)
    start, end = left + width / 2, right - width / 2
    arrow = f"<path d='M{start} {y}H{end}m-6 -4l6 4l-6 4'/>"
    crossed = f"<path d='M{start} {y}H{end}'/><path class='cross' d='M{middle - 5} {y - 5}l10 10m0 -10l-10 10'/>"
    return (
        f"{_box(left, y, width)}{_box(right, y, width)}"
        f"<path d='M{left} {below}L{next_left} {above_next}M{WIDTH - next_left} {above_next}L{right} {below}'/>"
        f"<g class='{state}'>{crossed if state == 'off' else arrow}<text x='{middle}' y='{y - 7}'>{text}</text></g>"
    )


def _box(x: float, y: float, width: float) -> str:
    return f"<rect x='{x - width / 2}' y='{y - BOX / 2}' width='{width}' height='{BOX}' rx='3'/>"


def _x(level: int) -> float:
    """Return the centre of a level's box in the encoder."""
    return 20 + 14 * level


def _y(level: int) -> float:
    """Return the height at which a level lies."""
    return TOP + BOX / 2 + ROW * (level - 1)
