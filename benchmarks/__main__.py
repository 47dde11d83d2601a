"""`python -m benchmarks`: every contender in every mode, one after the other, several times over."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from benchmarks import limits, report
from benchmarks.doors import DOORS
from benchmarks.modes import MODES, Figures
from benchmarks.site import CONTENDERS, Contender, Site

RESULTS = Path(__file__).parent / "results"
_GROWTH = ((10_000, 1_000), (10_000, 100_000), (100_000, 5_000), (1_000_000, 1_000), (1_000_000, 100_000))


#: Whatever can be measured; the limits last, since they belong to whatever else a run has.
_ALL = (*MODES, *DOORS, "limits")


@click.command()
@click.option("--mode", "modes", multiple=True, type=click.Choice(_ALL), help="Only this mode (repeatable).")
@click.option("--contender", "names", multiple=True, help="Only workers whose name contains this (repeatable).")
@click.option("--repeat", default=5, show_default=True, help="Times that each is measured.")
@click.option("--requests", "count", default=5000, show_default=True, help="Requests that wait in a drain.")
@click.option("--rows", default=10_000, show_default=True, help="Images in the database.")
@click.option("--growth", is_flag=True, help="Instead: this worker alone, as rows, backlog and processes grow.")
def main(  # noqa: PLR0913  # one for each option
    modes: tuple[str, ...], names: tuple[str, ...], repeat: int, count: int, rows: int, *, growth: bool
) -> None:
    """Measure and print a table; of a run of everything it is kept, with a picture, under benchmarks/results/."""
    with tempfile.TemporaryDirectory(prefix="aries-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        if growth:
            _measure_growth(Path(folder))
            return
        contenders = [each for each in CONTENDERS if not names or any(name in each.name for name in names)]
        results: dict[str, dict[str, list[Figures]]] = {}
        with Site(Path(folder), rows) as site:
            for turn in range(1, repeat + 1):
                for mode in modes or _ALL:
                    _say(f"[{turn}/{repeat}] {mode}")
                    for name, figures in _runs(site, Path(folder), mode, contenders, count):
                        results.setdefault(mode, {}).setdefault(name, []).append(figures)
    click.echo("\n" + report.table(results))
    if not modes and not names:
        report.write(results, RESULTS, [f"{repeat} runs of each, taken in turn; {rows:,} images."])


def _runs(
    site: Site, folder: Path, mode: str, contenders: Sequence[Contender], count: int
) -> Iterator[tuple[str, Figures]]:
    """One run of each contender in a mode."""
    if mode == "limits":
        yield "raw loop, batches of 100", limits.raw_loop(site, min(count, site.rows))
        yield "pgbench", limits.pgbench(site, folder)
    elif mode in DOORS:
        yield from DOORS[mode](site, folder).items()
    else:
        for contender in contenders:
            yield contender.name, _run(site, mode, contender, count if mode == "drain" else 300)


def _run(site: Site, mode: str, contender: Contender, count: int, processes: int = 1) -> Figures:
    try:
        return MODES[mode](site, contender, count, processes)
    except (TimeoutError, OSError) as error:
        return {"void": str(error)}


def _measure_growth(folder: Path) -> None:
    """How the cost of one update changes with the images there are and with the requests that wait."""
    lines = ["| images | waiting | processes | updates/s | worker ms | postgresql ms | redis ms | worker MiB |"]
    lines.append("| --- " * 8 + "|")
    for rows, backlog in _GROWTH:
        with Site(folder / str(rows) / str(backlog), rows) as site:
            for processes in (1, 2):
                _say(f"{rows:,} images, {backlog:,} waiting, {processes} process(es)")
                figures = _run(site, "drain", CONTENDERS[0], backlog, processes)
                shown = ("updates/s", "worker ms", "postgresql ms", "redis ms", "worker MiB")
                cells = [f"{figures[name]:.3g}" if name in figures else "–" for name in shown]
                lines.append(
                    f"| {rows:,} | {backlog:,} | {processes} | {' | '.join(cells)} | {figures.get('void', '')}"
                )
    click.echo("\n" + "\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.md").write_text("\n".join(["# The last growth run", "", *lines, ""]))


def _say(what: str) -> None:
    click.echo(f"{what} …", err=True)


if __name__ == "__main__":
    main()
