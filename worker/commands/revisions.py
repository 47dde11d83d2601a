"""Revisions as the commands read and show them."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy import Connection, select

from aries_images.contract import UPDATABLE
from models import image_revisions, images

Row = dict[str, Any]

_OF_IMAGE = select(image_revisions).order_by(image_revisions.c.revision)


def image_row(connection: Connection, image_id: int) -> Row:
    """The row of an image.

    Raises:
        ClickException: there is none.
    """
    row = connection.execute(select(images).where(images.c.id == image_id)).mappings().first()
    if row is None:
        raise click.ClickException(f"there is no image {image_id}")
    return dict(row)


def revisions_of(connection: Connection, image_id: int, last: int | None = None) -> Iterator[Row]:
    """The revisions of an image, the oldest first; with `last` the newest so many."""
    query = _OF_IMAGE.where(image_revisions.c.image_id == image_id)
    if last is not None:
        newest = query.order_by(None).order_by(image_revisions.c.revision.desc()).limit(last)
        yield from reversed([dict(row) for row in connection.execute(newest).mappings()])
        return
    for row in connection.execute(query).mappings():
        yield dict(row)


def state_at(connection: Connection, image: Row, revision: int) -> dict[str, str]:
    """The four fields of an image as they were at one of its revisions.

    Of the first, which no request made, they stand with the one that came after it.

    Raises:
        ClickException: there is no such revision, or what it was is not kept.
    """
    if not 1 <= revision <= image["revision"]:
        raise click.ClickException(f"image {image['id']} has revisions 1 to {image['revision']}")
    if revision == image["revision"]:
        return state_of(image)
    near = _OF_IMAGE.where(
        image_revisions.c.image_id == image["id"], image_revisions.c.revision.in_([revision, revision + 1])
    )
    for row in connection.execute(near).mappings().all():
        state: dict[str, str] = row["after"] if row["revision"] == revision else row["before"]
        if state:
            return state
    raise click.ClickException(f"what image {image['id']} was at revision {revision} is not kept: it was pruned")


def state_of(image: Mapping[str, Any]) -> dict[str, str]:
    """The four fields that requests can change."""
    return {field: image[field] for field in UPDATABLE}


def is_pruned(revision: Row) -> bool:
    """Whether only its line is left."""
    return not revision["after"]


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The fields that are not the same, with both values."""
    return {field: (before[field], after[field]) for field in after if before[field] != after[field]}


def exact(moment: datetime) -> str:
    """A moment as it is stored, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def line(revision: Row) -> str:
    """A revision as one line of JSON."""
    return json.dumps({**revision, "at": exact(revision["at"])}, ensure_ascii=False)
