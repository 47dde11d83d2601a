"""`verify`: whether the revisions of every image lead, without a gap, to what the image is."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from operator import itemgetter

import click
from sqlalchemy import Connection, select

from models import image_revisions, images
from worker.commands import migrated_database
from worker.commands.revisions import Row, differences, is_pruned, state_of
from worker.settings import load_settings

_IMAGES = select(images).order_by(images.c.id)
_REVISIONS = select(image_revisions).order_by(image_revisions.c.image_id, image_revisions.c.revision)


@click.command()
@click.option("--adopted", is_flag=True, help="Images may have begun above revision 1, in a table that was adopted.")
def verify(*, adopted: bool) -> None:
    """See whether each image's revisions are without a gap, and lead to what the image is.

    Read as of one moment, while workers go on; exit code 1, with a line for each image that is wrong, if any is.
    """
    seen = wrong = 0
    with migrated_database(load_settings().database_url) as database, database.snapshot() as connection:
        for image_id, problem in _problems(connection, adopted=adopted):
            seen += 1
            if problem is not None:
                wrong += 1
                click.echo(f"image {image_id}: {problem}")
    click.echo(f"{seen} images, {wrong} of them wrong")
    sys.exit(1 if wrong else 0)


def _problems(connection: Connection, *, adopted: bool) -> Iterator[tuple[int, str | None]]:
    """Each image's id, and the first thing that is wrong with it."""
    rows = (dict(row) for row in connection.execute(_REVISIONS).mappings())
    groups = itertools.groupby(rows, itemgetter("image_id"))
    image_id, revisions = next(groups, (None, iter(())))
    for image in (dict(row) for row in connection.execute(_IMAGES).mappings()):
        while image_id is not None and image_id < image["id"]:
            yield image_id, "has revisions, and is not there"
            image_id, revisions = next(groups, (None, iter(())))
        if image_id != image["id"]:
            yield image["id"], _first_problem(image, (), adopted=adopted)
            continue
        yield image["id"], _first_problem(image, revisions, adopted=adopted)
        image_id, revisions = next(groups, (None, iter(())))
    while image_id is not None:
        yield image_id, "has revisions, and is not there"
        image_id, revisions = next(groups, (None, iter(())))


def _first_problem(image: Row, revisions: Iterable[Row], *, adopted: bool) -> str | None:
    last: Row | None = None
    for revision in revisions:
        number = revision["revision"]
        expected = last["revision"] + 1 if last else number if adopted else 2
        if number != expected:
            return f"revision {expected} is missing"
        if last and not is_pruned(last) and not is_pruned(revision) and revision["before"] != last["after"]:
            return f"revision {number} does not begin where {last['revision']} ended"
        last = revision
    return _end_problem(image, last, adopted=adopted)


def _end_problem(image: Row, last: Row | None, *, adopted: bool) -> str | None:
    if last is None:
        return None if adopted or image["revision"] == 1 else f"it is at revision {image['revision']}, and has none"
    if last["revision"] != image["revision"]:
        return f"it is at revision {image['revision']}, and the last that it has is {last['revision']}"
    if is_pruned(last):
        return "its last revision is pruned"
    if fields := differences(last["after"], state_of(image)):
        return f"{', '.join(fields)}: not what revision {last['revision']} made of it"
    return None
