"""Lines over time, as SVG: what a dashboard shows, for a page that can't ask Prometheus."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

#: Seconds since the beginning, and a value; NaN where there is none.
Line = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 580, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 60
_COLOURS = ("#2f7fd1", "#e08a1e", "#7a5cc4", "#17a2a2", "#b8437f", "#8a6d3b", "#5b6770", "#c9b400")
_OWN = {"OK": "#3a9d5d", "InternalError": "#d13b3b", "dead letters": "#d13b3b"}
_INK, _PALE, _GRID = "#1f2933", "#5b6770", "#e3e7eb"
#: Width of a letter, on average.
_LETTER = 7.2


@dataclass(frozen=True)
class Chart:
    """One panel: its lines by name, in a unit of Grafana's; the moments that are marked in it, in seconds."""

    title: str
    unit: str
    lines: Mapping[str, Line]
    stacked: bool
    seconds: float
    marks: Sequence[float]

    def draw(self) -> str:
        """The panel, its upper left corner at 0, 0."""
        # What stays at 0 is no news, and there are more codes and causes than colours.
        lines = {name: line for name, line in self.lines.items() if any(value > 0 for _, value in line)}
        heights = _pile(lines) if self.stacked else lines
        top = _round_up(max((value for line in heights.values() for _, value in line if value > 0), default=1.0))
        colours = dict(
            zip(lines, (_OWN.get(name) or next(spare) for spare in [iter(_COLOURS)] for name in lines), strict=True)
        )
        body = [*self._axes(top), *self._marks()]
        for name in reversed(heights):  # the pile is drawn from its upper edge down
            body += self._line(heights[name], top, colours[name])
        return "\n".join([*body, *_legend(colours)])

    def _x(self, at: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * at / self.seconds

    @staticmethod
    def _y(share: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    def _axes(self, top: float) -> Iterator[str]:
        yield text(_LEFT - 50, 18, self.title, weight="bold")
        for step in range(5):
            y = self._y(step / 4)
            yield f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="{_GRID}"/>'
            yield text(_LEFT - 7, y + 4, _shown(top * step / 4, self.unit), anchor="end", fill=_PALE, size=11)
        for minute in range(int(self.seconds / 30) + 1):
            label = f"{minute // 2}:{minute % 2 * 30:02}"
            yield text(self._x(minute * 30), HEIGHT - _BOTTOM + 16, label, anchor="middle", fill=_PALE, size=11)

    def _marks(self) -> Iterator[str]:
        for number, at in enumerate(self.marks, 1):
            x = self._x(at)
            yield f'<path d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="{_PALE}" stroke-dasharray="3 3"/>'
            yield text(x, _TOP - 3, str(number), anchor="middle", fill=_PALE, size=11)

    def _line(self, line: Line, top: float, colour: str) -> Iterator[str]:
        for is_number, run in itertools.groupby(line, key=lambda point: math.isfinite(point[1])):
            points = [f"{self._x(at):.1f} {self._y(value / top):.1f}" for at, value in run] if is_number else []
            if not points:
                continue
            first, last = points[0].split()[0], points[-1].split()[0]
            fill = (
                f'<path d="M{first} {self._y(0)}L{"L".join(points)}L{last} {self._y(0)}Z" fill="{colour}" fill-opacity='
            )
            yield fill + ('"1"/>' if self.stacked else '".08"/>')
            if not self.stacked:
                yield f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _pile(lines: Mapping[str, Line]) -> dict[str, Line]:
    """Each line upon those before it."""
    piled: dict[str, Line] = {}
    below: dict[float, float] = {}
    for name, line in lines.items():
        for at, value in line:
            below[at] = below.get(at, 0.0) + (value if math.isfinite(value) else 0.0)
        piled[name] = sorted(below.items())
    return piled


def _round_up(value: float) -> float:
    """The next number above that has quarters which read well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10, 12) if step * power >= value)


def _shown(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    return f"{value:,.4g}{'/s' if unit in ('reqps', 'ops') else ''}" if value < 10_000 else f"{value:,.0f}"  # noqa: PLR2004  # no exponents


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x, y = float(_LEFT), HEIGHT - 24.0
    for name, colour in colours.items():
        width = 18 + _LETTER * len(name) + 12
        if x + width > WIDTH:
            x, y = float(_LEFT), y + 16
        yield f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="11" height="11" rx="2" fill="{colour}"/>'
        yield text(x + 16, y, name, size=12)
        x += width


def text(x: float, y: float, words: str, **style: Any) -> str:
    """A line of text."""
    anchor, weight = style.get("anchor", "start"), style.get("weight", "normal")
    attributes = (
        f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{style.get("size", 13)}"'
    )
    return f'<text {attributes} font-family="sans-serif" fill="{style.get("fill", _INK)}">{escape(words)}</text>'


def page(charts: Sequence[Chart], title: str, notes: Sequence[str]) -> str:
    """All of them, two in a row, under a title and notes; a light page whatever is behind it."""
    head = 40 + 19 * len(notes)
    width, height = 2 * WIDTH + 20, head + (len(charts) + 1) // 2 * (HEIGHT + 10) + 4
    parts = [
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
        text(12, 26, title, weight="bold", size=16),
    ]
    parts += [text(12, 50 + 19 * number, note, fill=_PALE) for number, note in enumerate(notes)]
    for number, chart in enumerate(charts):
        corner = f"{number % 2 * (WIDTH + 10)} {head + number // 2 * (HEIGHT + 10)}"
        parts.append(f'<g transform="translate({corner})">\n{chart.draw()}\n</g>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">\n' + "\n".join(
        [*parts, "</svg>\n"]
    )
