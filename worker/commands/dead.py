"""`dead`: look at dead letters, send them once more, or throw them away."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from kombu import Connection
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.table import Table

from aries_images.contract import rfc3339
from worker.commands.age import Age
from worker.dead_letters import DeadLetter, DeadLetters, Filter
from worker.intake import LEASING_SCHEMES
from worker.settings import load_settings

#: Characters in a line where nobody looks at it: in a pipe or a file.
_WIDE = 200
#: Characters of a message that are shown.
_SHOWN = 4000
#: A token, which whoever looks over one's shoulder has no use for.
_TOKEN = re.compile(r"(?i)(bearer\s+)[\w.~+/-]+=*")


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--newer-than", type=Age(), metavar="AGE", help="Given up on within AGE: 90s, 15m, 1h, 7d."),
        click.option("--older-than", type=Age(), metavar="AGE", help="Given up on longer ago than AGE."),
        click.option("--reason", help="Only those with this reason."),
    ):
        command = option(command)
    return command


@contextmanager
def _dead_letters() -> Iterator[DeadLetters]:
    settings = load_settings()
    if not settings.broker_url.startswith(LEASING_SCHEMES):
        raise click.ClickException("dead letters are kept in Redis; another broker has dead-letter queues of its own")
    options = {"master_name": settings.sentinel_master, "socket_timeout": 5, "socket_connect_timeout": 5}
    with Connection(settings.broker_url, transport_options=options) as connection:
        try:
            client = connection.default_channel.client
        except (OperationalError, *connection.connection_errors) as error:
            raise click.ClickException(f"ARIES_BROKER_URL: the broker can't be reached: {error}") from None
        yield DeadLetters(client)


@click.group()
def dead() -> None:
    """Look at dead letters, send them once more, or throw them away."""


@dead.command("list")
@_filtered
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_letters(*, as_json: bool, **meant: Any) -> None:
    """Show dead letters, the oldest first."""
    with _dead_letters() as letters:
        found = letters.find(Filter(**meant))
        if as_json:
            for letter in found:
                click.echo(json.dumps(_summary(letter)))
            return
        shown = Table(*_COLUMNS)
        for letter in found:
            shown.add_row(*(str(value if value is not None else "–") for value in _summary(letter).values()))
        console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
        console.print(shown)
        console.print(f"{shown.row_count} shown, {len(letters)} kept, at most {load_settings().dead_letters_max}")


_COLUMNS = ("id", "at", "reason", "list", "deliveries", "request_id", "bytes")


def _summary(letter: DeadLetter) -> dict[str, Any]:
    values = (
        letter.id,
        rfc3339(letter.at),
        letter.reason,
        letter.list,
        letter.deliveries,
        letter.request_id,
        len(letter.message),
    )
    return dict(zip(_COLUMNS, values, strict=True))


@dead.command()
@click.argument("letter_id", metavar="ID")
@click.option("--raw", is_flag=True, help="The message alone, to the byte.")
def show(letter_id: str, *, raw: bool) -> None:
    """Show one dead letter and its message."""
    with _dead_letters() as letters:
        letter = letters.get(letter_id)
    if letter is None:
        raise click.ClickException(f"there is no dead letter {letter_id}")
    if raw:
        sys.stdout.buffer.write(letter.message)
        return
    for name, value in _summary(letter).items():
        click.echo(f"{name + ':':12}{value if value is not None else '–'}")
    # Escaped where it cannot be printed: a terminal must not be steered by what a stranger sent.
    message = _TOKEN.sub(r"\1…", letter.message.decode(errors="surrogateescape"))
    click.echo("message:    " + repr(message[:_SHOWN])[1:-1])
    if len(message) > _SHOWN:
        click.echo(f"            … {len(message) - _SHOWN} characters more: --raw writes all of it")


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filtered
@click.option("--all", "every", is_flag=True, help="All that the filters let through.")
def replay(ids: tuple[str, ...], *, every: bool, **meant: Any) -> None:
    """Send dead letters once more.

    Each keeps its request id, so a request that was applied after all is answered and not applied again.
    """
    with _dead_letters() as letters:
        click.echo(f"{letters.replay(_chosen(letters, ids, Filter(**meant), every=every))} dead letters replayed")


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filtered
@click.option("--all", "every", is_flag=True, help="All that the filters let through.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(ids: tuple[str, ...], *, every: bool, yes: bool, **meant: Any) -> None:
    """Throw dead letters away."""
    with _dead_letters() as letters:
        chosen = _chosen(letters, ids, Filter(**meant), every=every)
        if chosen and not yes:
            click.confirm(f"throw {len(chosen)} dead letters away for good?", abort=True)
        click.echo(f"{letters.drop(chosen)} dead letters dropped")


def _chosen(letters: DeadLetters, ids: tuple[str, ...], meant: Filter, *, every: bool) -> list[str]:
    if bool(ids) == every or (ids and meant != Filter()):
        raise click.UsageError("name dead letters by their ids, or give --all with or without filters")
    if every:
        return [letter.id for letter in letters.find(meant)]
    if missing := [letter_id for letter_id in ids if letters.get(letter_id) is None]:
        raise click.ClickException(f"there is no dead letter {', '.join(missing)}")
    return list(ids)
