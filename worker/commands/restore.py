"""`restore`: ask for what an image was at an earlier revision, as any caller would."""

import sys
from typing import Any

import click
from rich.console import Console
from sqlalchemy import select

from aries_images import AriesImagesError, ImageClient, ImageNameExists, OutcomeUnknown
from aries_images.contract import UPDATABLE
from models import images
from worker.commands import migrated_database
from worker.commands.history import diff
from worker.commands.revisions import Row, image_row, state_at, state_of
from worker.database import Database
from worker.settings import Settings, load_settings

#: What to do about a refusal, by its code.
_ADVICE = {
    "InvalidParameter": "An image that was adopted may have been what no request can ask for: name fields by --field.",
    "ImageNotFound": "The token may not be good for this image.",
    "ImageNameExists": "Give that image another name first, or restore other fields alone: --field.",
    "PreconditionFailed": "The image was changed a moment ago: look at its history, and run this again.",
    "Unauthorized": "Set ARIES_TOKEN to a token of yours: `python -m worker token --sub NAME` makes one on a desk.",
    "Forbidden": "The token lacks the scope image:update, or the request id is another caller's.",
    "DeadlineExceeded": "No worker took it in time, and none will: see `celery -A worker status`, and run this again.",
}
_AGAIN = "Run this again with --request-id {}: it can't be applied twice."


@click.command()
@click.argument("image_id", metavar="ID", type=click.IntRange(min=1))
@click.argument("revision", type=click.IntRange(min=1))
@click.option("--field", "fields", type=click.Choice(UPDATABLE), multiple=True, help="Only this; may be given again.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and send nothing.")
@click.option("--request-id", help="Of an earlier try, whose outcome is not known.")
@click.option("--timeout", type=click.FloatRange(0, 86400, min_open=True), default=30.0, show_default=True)
def restore(  # noqa: PLR0913 - each is an option
    *, image_id: int, revision: int, fields: tuple[str, ...], dry_run: bool, request_id: str | None, timeout: float
) -> None:
    """Make image ID what it was at REVISION.

    An update like any other goes through the queue, with the token in ARIES_TOKEN: it is checked, its name must be
    free, it becomes a revision of its own. It is refused if the image is changed meanwhile.
    """
    settings = load_settings()
    with migrated_database(settings.database_url) as database:
        with database.snapshot() as connection:
            image = image_row(connection, image_id)
            state = state_at(connection, image, revision)
        wanted = {field: state[field] for field in fields or UPDATABLE}
        _show(image, wanted)
        if not dry_run:
            try:
                _ask(settings, image, wanted, request_id, timeout)
            except AriesImagesError as error:
                raise click.ClickException(_explained(error, database, wanted)) from None


def _show(image: Row, wanted: dict[str, str]) -> None:
    change = diff({field: state_of(image)[field] for field in wanted}, wanted)
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)
    console.print(change if change.plain else f"image {image['id']} is like that already")


def _ask(settings: Settings, image: Row, wanted: dict[str, str], request_id: str | None, timeout: float) -> None:
    options = {"master_name": settings.sentinel_master} if settings.sentinel_master else None
    asked: dict[str, Any] = {**wanted, "if_revision": image["revision"], "timeout": timeout}
    with ImageClient(settings.broker_url, settings.result_url, transport_options=options) as client:
        after = client.update(image["id"], request_id=request_id, **asked)
    changed = "" if after.revision != image["revision"] else ", as before"
    click.echo(f"image {after.id} is at revision {after.revision}{changed}")


def _explained(error: AriesImagesError, database: Database, wanted: dict[str, str]) -> str:
    """Which refusal it was, why, and what to do about it."""
    if isinstance(error, OutcomeUnknown):
        return f"the outcome is not known: {error}. " + _AGAIN.format(error.request_id)
    advice = _ADVICE.get(error.code or "") or _AGAIN.format(error.request_id)
    if isinstance(error, ImageNameExists):
        with database.snapshot() as connection:
            holder = connection.execute(select(images.c.id).where(images.c.name == wanted["name"])).scalar()
        advice = f"Image {holder} has it. {advice}" if holder else advice
    return f"refused, and nothing was changed: {error}. {advice}"
