"""`images`: what is there, as a table on the terminal."""

import sys

import click
from rich.console import Console
from rich.table import Table

from aries_images.contract import rfc3339
from models import images as table
from worker.commands import migrated_database
from worker.settings import load_settings

#: The columns shown, and whether a narrow terminal may break their texts.
_COLUMNS = {
    "id": False,
    "name": True,
    "os_type": False,
    "os_name": True,
    "description": True,
    "updated_at": False,
    "revision": False,
}
#: Characters in a line where nobody looks at it: in a pipe or a file.
_WIDE = 200


@click.command()
def images() -> None:
    """Show all images."""
    shown = Table()
    for column, breaks in _COLUMNS.items():
        shown.add_column(column, no_wrap=not breaks, overflow="fold")
    with migrated_database(load_settings().database_url) as database, database.transaction() as connection:
        for image in connection.execute(table.select().order_by(table.c.id)).mappings():
            texts = {**image, "updated_at": rfc3339(image["updated_at"])}
            shown.add_row(*(str(texts[column]) for column in _COLUMNS))
    # Texts are shown as they are: a name may well hold what rich takes for markup.
    width = None if sys.stdout.isatty() else _WIDE
    Console(markup=False, emoji=False, width=width).print(shown)
