"""The operator's commands: `python -m worker COMMAND`."""

import sys

import click

from worker.commands.check import check
from worker.commands.dead import dead
from worker.commands.export import export
from worker.commands.history import history
from worker.commands.images import images
from worker.commands.import_images import import_images
from worker.commands.migrate import migrate
from worker.commands.prune import prune
from worker.commands.restore import restore
from worker.commands.token import keys, token
from worker.commands.up import up
from worker.commands.verify import verify
from worker.database import is_away


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Run and look after the image worker. Settings are environment variables that begin with ARIES_."""


for command in (
    *(up, check, migrate, import_images, images),
    *(history, restore, export, verify, prune),
    *(dead, keys, token),
):
    commands.add_command(command)


def main() -> None:
    """Run the command named on the command line."""
    try:
        commands(prog_name="python -m worker")
    except Exception as error:
        if is_away(error):
            sys.exit(f"ARIES_DATABASE_URL: the database can't be reached: {getattr(error, 'orig', error)}")
        raise


if __name__ == "__main__":
    main()
