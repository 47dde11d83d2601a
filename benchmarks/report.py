"""What is printed and kept of a run: a table, its figures as JSON, a picture."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.modes import Figures, machine

#: mode -> contender -> the figures of each repetition.
Results = Mapping[str, Mapping[str, Sequence[Figures]]]

_PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "pydantic")
#: What stands for a mode in the picture, and whether more is better.
_HEADLINES = {"drain": ("updates/s", "updates/s, 5,000 waiting"), "closed": ("updates/s", "updates/s, 32 callers"),
              "idle": ("p50 ms", "milliseconds, one caller (p50)")}  # fmt: skip


def middle(runs: Sequence[Figures], figure: str) -> float | None:
    """The median of a figure over the runs that are not void."""
    values = [run[figure] for run in runs if figure in run and "void" not in run]
    return statistics.median(values) if values else None


def table(results: Results) -> str:
    """Markdown: a table for each mode; medians, with the smallest and the largest of the first figure.

    The last contender of a mode is the one that the others are held against.
    """
    lines: list[str] = []
    for mode, contenders in results.items():
        baseline = [*contenders][-1]
        figures = list(dict.fromkeys(name for runs in contenders.values() for run in runs for name in run))
        figures = [figure for figure in figures if figure != "void"]
        lines += [
            f"### {mode}",
            "",
            f"| | {' | '.join(figures)} | over {baseline} |",
            "| --- " * (len(figures) + 2) + "|",
        ]
        for name, runs in contenders.items():
            cells = [_cell(runs, figure, spread=figure == figures[0]) for figure in figures]
            lines.append(f"| {name} | {' | '.join(cells)} | {_ratio(contenders, name, baseline, figures[0])} |")
            lines += [f"| | void: {run['void']} |" for run in runs if "void" in run]
        lines.append("")
    return "\n".join(lines)


def _cell(runs: Sequence[Figures], figure: str, *, spread: bool) -> str:
    value = middle(runs, figure)
    if value is None:
        return "–"
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"  # noqa: PLR2004  # three digits are enough
    if spread and len(runs) > 1:
        values = [run[figure] for run in runs if figure in run]
        shown += f" ({min(values):,.4g} – {max(values):,.4g})"
    return shown


def _ratio(contenders: Mapping[str, Sequence[Figures]], name: str, baseline: str, figure: str) -> str:
    """Run by run, against the baseline's run beside it: the machine's moods cancel out."""
    pairs = zip(contenders[name], contenders[baseline], strict=True)
    ratios = [mine[figure] / base[figure] for mine, base in pairs if figure in mine and figure in base]
    return f"{statistics.median(ratios):.2f}" if ratios and name != baseline else ""


def write(results: Results, folder: Path, notes: Sequence[str]) -> None:
    """Keep the run as `latest.md`, `latest.json` and `latest.svg`."""
    folder.mkdir(exist_ok=True)
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    head = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on {machine()}, {platform.system()},",
        f"Python {platform.python_version()}; {versions}.",
        "PostgreSQL, Redis, workers and callers share the machine. Medians; CPU time in milliseconds per update; the",
        "ratios are medians over the runs, each against the baseline's run next to it.",
        *notes,
    ]
    (folder / "latest.md").write_text("\n".join(["# The last run", "", *head, "", table(results)]))
    (folder / "latest.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "latest.svg").write_text(picture(results))


def picture(results: Results) -> str:
    """Bars for each mode, one for each contender; SVG that reads on a light and on a dark page."""
    body: list[str] = []
    y = 10
    for mode, (figure, title) in _HEADLINES.items():
        values = {name: middle(runs, figure) for name, runs in results.get(mode, {}).items()}
        bars = {name: value for name, value in values.items() if value is not None}
        if not bars:
            continue
        body.append(_text(10, y + 14, title, weight="bold"))
        y += 24
        for name, value in bars.items():
            width = 430 * value / max(bars.values())
            colour = "#2f7fd1" if name == "aries-images" else "#9aa5b1"
            shown = f"{value:,.0f}" if figure == "updates/s" else f"{value:.1f}"
            body.append(_text(160, y + 14, name, anchor="end"))
            body.append(f'<rect x="168" y="{y + 2}" width="{width:.0f}" height="16" rx="2" fill="{colour}"/>')
            body.append(_text(174 + width, y + 14, shown))
            y += 22
        y += 12
    frame = f'<rect width="680" height="{y}" rx="6" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {y}">\n' + "\n".join([frame, *body, "</svg>\n"])


def _text(x: float, y: float, words: str, **style: Any) -> str:
    anchor, weight = style.get("anchor", "start"), style.get("weight", "normal")
    attributes = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {attributes} font-family="sans-serif" font-size="13" fill="#1f2933">{escape(words)}</text>'
