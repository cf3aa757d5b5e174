"""Bars as SVG, by hand: no plotting library is worth its weight for one picture."""

from collections.abc import Sequence
from html import escape

_COLOURS = {"sliding": "#3b6ea5", "minute": "#6aa84f", "bucket": "#c27ba0"}
_LEFT, _TOP, _BAR, _GROUP_GAP, _WIDTH = 190, 46, 11, 12, 420


def bars(values: Sequence[tuple[str, str, float, float]]) -> str:
    """(pool, enforcement, share served, share refused): one group a pool, one bar an enforcement."""
    names = list(dict.fromkeys(name for name, *_ in values))
    parts: list[str] = []
    y = _TOP
    for name in names:
        group = [value for value in values if value[0] == name]
        parts.append(_text(_LEFT - 8, y + _BAR * len(group) / 2 + 4, name, "end"))
        for _, enforcement, served, refused in group:
            width = _WIDTH * min(served, 1.2) / 1.2
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" fill="{_COLOURS[enforcement]}"/>'
            )
            parts.append(
                _text(_LEFT + width + 5, y + _BAR - 3, f"{served:.2f}, {100 * refused:.1f} % refused", "start", 9)
            )
            y += _BAR
        y += _GROUP_GAP
    one = _LEFT + _WIDTH / 1.2
    ends = f'x1="{one:.1f}" y1="{_TOP - 8}" x2="{one:.1f}" y2="{y - _GROUP_GAP}"'
    parts.append(f'<line {ends} stroke="#888" stroke-dasharray="3"/>')
    x = _LEFT
    for enforcement, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="12" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 15, 21, f"enforced as {enforcement}", "start"))
        x += 145
    parts.append(_text(one, _TOP - 12, "all of the nominal capacity", "middle", 9))
    size = f'width="{_LEFT + _WIDTH + 150}" height="{y}" viewBox="0 0 {_LEFT + _WIDTH + 150} {y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'
