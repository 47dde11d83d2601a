"""`history`: what changed of an image, when, by whom and by which request."""

import difflib
import itertools
import sys
from collections.abc import Iterator

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aries_images.contract import rfc3339
from worker.commands import migrated_database
from worker.commands.revisions import Row, differences, image_row, is_pruned, line, revisions_of
from worker.settings import load_settings

#: Characters in a line where nobody looks at it: in a pipe or a file.
_WIDE = 200
_STYLES = {"-": "red", "+": "green"}


@click.command()
@click.argument("image_id", metavar="ID", type=click.IntRange(min=1))
@click.option("--last", type=click.IntRange(min=1), help="Only the newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def history(*, image_id: int, last: int | None, as_json: bool) -> None:
    """Show what changed of image ID, the oldest change first."""
    with migrated_database(load_settings().database_url) as database, database.snapshot() as connection:
        image = image_row(connection, image_id)
        revisions = revisions_of(connection, image_id, last)
        if as_json:
            for revision in revisions:
                click.echo(line(revision))
            return
        console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
        shown = _table(revisions)
        if shown.row_count:
            console.print(shown)
        console.print(f"image {image_id} is at revision {image['revision']}, {shown.row_count} changes shown")


def _table(revisions: Iterator[Row]) -> Table:
    shown = Table(show_lines=True)
    for column in ("revision", "at", "caller", "request", "change"):
        shown.add_column(column, no_wrap=column in ("revision", "at"), overflow="fold")
    for revision in revisions:
        change = Text("pruned") if is_pruned(revision) else diff(revision["before"], revision["after"])
        names = (str(revision["revision"]), rfc3339(revision["at"]), revision["caller"], revision["request_id"])
        shown.add_row(*(Text(name) for name in names), change)
    return shown


def diff(before: dict[str, str], after: dict[str, str]) -> Text:
    """What became of each field: the lines that went with a minus, those that came with a plus."""
    text = Text()
    for field, (old, new) in differences(before, after).items():
        text.append(f"{field}\n", "bold")
        # After two lines of heading.
        for changed in itertools.islice(difflib.unified_diff(_lines(old), _lines(new), n=0), 2, None):
            if changed[0] in _STYLES:
                text.append(f"{changed[0]} {changed[1:]}\n", _STYLES[changed[0]])
    text.rstrip()
    return text


def _lines(value: str) -> list[str]:
    # Split at line feeds alone, and with no other control character left: a terminal must not be steered by these.
    return [part.replace("\r", "\\r").replace("\t", "\\t") for part in value.split("\n")] if value else ["(empty)"]
