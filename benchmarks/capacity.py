"""`python -m benchmarks.capacity`: what an update costs each part, what that predicts, and what is then measured."""

import statistics
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import psutil

from benchmarks.modes import Figures, drain_of
from benchmarks.site import CONTENDERS, Request, Site

#: Requests that wait in each drain; as many images, so that the order of two workers is no matter.
_COUNT = 20_000
_PARTS = ("worker ms", "postgresql ms", "redis ms")
#: What is asked for, by the number of the request.
_LOADS: dict[str, Callable[[int], Request]] = {
    "each for another image, renamed": lambda number: Request(str(uuid.uuid4()), number + 1),
    "the same, no new name": lambda number: Request(str(uuid.uuid4()), number + 1, renames=False),
    "all for one image, no new name": lambda _: Request(str(uuid.uuid4()), 1, renames=False),
}
_SPREAD, *_ = _LOADS


@click.command()
@click.option("--repeat", default=3, show_default=True, help="Times that each is measured; medians are shown.")
def main(repeat: int) -> None:
    """Measure, predict, and print both."""
    found: dict[tuple[str, int], list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="aries-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        with Site(Path(folder), _COUNT) as site:
            for _ in range(repeat):
                for load, make in _LOADS.items():
                    for workers in (1, 2):
                        asked = [make(number) for number in range(_COUNT)]
                        found.setdefault((load, workers), []).append(drain_of(site, CONTENDERS[0], asked, workers))
    _show_costs(found)
    _show_prediction({key: _middle(runs) for key, runs in found.items()})


def _middle(runs: Sequence[Figures]) -> dict[str, float]:
    if wrong := [run["void"] for run in runs if "void" in run]:
        raise click.ClickException(f"a run was void: {wrong[0]}")
    return {name: statistics.median(run[name] for run in runs) for name in ("updates/s", *_PARTS)}


def _show_costs(found: dict[tuple[str, int], list[Figures]]) -> None:
    click.echo(f"| updates | workers | updates/s | {' | '.join(_PARTS)} |\n" + "| --- " * 6 + "|")
    for (load, workers), runs in found.items():
        middle = _middle(runs)
        costs = " | ".join(f"{middle[part]:.3f}" for part in _PARTS)
        click.echo(f"| {load} | {workers} | {middle['updates/s']:,.0f} | {costs} |")


def _show_prediction(middle: dict[tuple[str, int], dict[str, float]]) -> None:
    """From one worker to two: twice as much, or what all cores together have time for, whichever is less."""
    one = middle[_SPREAD, 1]
    cores = psutil.cpu_count() or 1
    machine = cores * 1000 / sum(one[part] for part in _PARTS)
    predicted = min(2 * one["updates/s"], machine)
    measured = middle[_SPREAD, 2]["updates/s"]
    click.echo(f"\nOne worker {one['updates/s']:,.0f}/s; {cores} cores have time for {machine:,.0f}/s.")
    click.echo(f"Two workers: predicted {predicted:,.0f}/s, measured {measured:,.0f}/s ({measured / predicted:.0%}).")


if __name__ == "__main__":
    main()
