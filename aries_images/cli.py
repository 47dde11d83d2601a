"""The command `aries-images`: updates from a shell. Needs the extra `cli`.

It ends with 0 if everything was applied, 1 if something was refused, 2 if the command can't be understood or carried
out, 3 if there was no answer.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import get_completion_class

from aries_images import contract
from aries_images._answer import ReplyEvent
from aries_images._words import one_line, say
from aries_images.bulk import APPLIED, WINDOW, ReplyFile, read_lines
from aries_images.client import ImageClient
from aries_images.contract import Image
from aries_images.errors import AriesImagesError, OutcomeUnknown

REFUSED, NOT_UNDERSTOOD, NO_ANSWER, INTERRUPTED = 1, 2, 3, 130
#: Seconds between two looks of the progress bar at the clock.
_REDRAW = 0.2


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process."""
    try:
        code = cli.main(arguments, prog_name="aries-images", standalone_mode=False)
    except AriesImagesError as error:
        code = _tell(one_line(error), NO_ANSWER if error.code is None else REFUSED)
    except click.exceptions.Abort:
        code = _tell(say("stopped"), INTERRUPTED)
    except click.ClickException as error:
        code = _tell(_understandable(error), NOT_UNDERSTOOD)
    except (OSError, ValueError) as error:
        code = _tell(str(error), NOT_UNDERSTOOD)
    sys.exit(code)


def _tell(what: str, code: int) -> int:
    click.echo(say("error", " ".join(what.split())), err=True)
    return code


def _understandable(error: click.ClickException) -> str:
    match error:
        case click.MissingParameter(param=click.Parameter() as parameter):
            return say("missing", parameter.human_readable_name)
        case click.NoSuchOption():
            return say("no option", error.option_name)
        case click.BadParameter(param=click.Parameter() as parameter):
            return say("bad value", parameter.human_readable_name, error.message)
        case _:
            return error.format_message()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--broker-url", envvar="ARIES_BROKER_URL", help="Where requests go. [env: ARIES_BROKER_URL]")
@click.option("--result-url", envvar="ARIES_RESULT_URL", help="Where answers come from. [env: ARIES_RESULT_URL]")
@click.option("--token", envvar="ARIES_TOKEN", help="A JWT that says who is calling. [env: ARIES_TOKEN]")
@click.option("--sentinel-master", envvar="ARIES_SENTINEL_MASTER", help="With sentinel:// URLs: the master's name.")
@click.version_option(package_name="aries-images")
@click.pass_context
def cli(
    context: click.Context,
    broker_url: str | None,
    result_url: str | None,
    token: str | None,
    sentinel_master: str | None,
) -> None:
    """Update the metadata of images, through the queue."""
    if context.invoked_subcommand != "completion":
        options = {"master_name": sentinel_master} if sentinel_master else None
        client = ImageClient(broker_url, result_url, token=token, transport_options=options)
        context.obj = context.with_resource(closing(client))


_timeout = click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for an answer.")


@cli.command()
@click.argument("id", type=int)
@click.option("--name", help="New name; must be free.")
@click.option("--os-type", help="linux or windows.")
@click.option("--os-name", help="Name of the operating system.")
@click.option("--description", help='Free text; "" clears it.')
@click.option("--if-revision", type=int, help="Only if the image is still at this revision.")
@click.option("--request-id", help="The same one on every resend. [default: a new one]")
@_timeout
@click.pass_obj
def update(client: ImageClient, /, id: int, **given: Any) -> int:  # noqa: A002 - the seed's name of the field
    """Change what is given of image ID, and print the image."""
    image = client.update(id, **{name: value for name, value in given.items() if value is not None})
    return _show(image)


@cli.command()
@click.argument("request_id")
@_timeout
@click.pass_obj
def settle(client: ImageClient, request_id: str, timeout: float) -> int:
    """What became of a request, once and for all: for after no answer.

    Prints the image if it was applied, and says why if it was refused; if it was neither, it never will be.
    """
    return _show(client.settle(request_id, timeout=timeout))


def _show(image: Image) -> int:
    click.echo(json.dumps(contract.image_document(image.model_dump()), ensure_ascii=False, indent=2))
    return 0


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where replies go. [FILE.replies.jsonl]")
@click.option(
    "--window", type=click.IntRange(1, 10_000), default=WINDOW, show_default=True, help="Under way at a time."
)
@_timeout
@click.pass_obj
def apply(client: ImageClient, file: Path, out: Path | None, window: int, timeout: float) -> int:
    """Send the lines of FILE: JSON objects, or, in a .csv, rows under a row of names.

    Each line has the fields of an update, and if wanted `request_id` and `if_revision`. Lines for one image are applied
    in their order. Run it again, with the same file and the same --out, after it was stopped: only lines without a
    reply are sent, and nothing is applied twice. To apply the file anew, name another --out.
    """
    out = out or file.with_name(file.name + ".replies.jsonl")
    began, answered = time.monotonic(), 0
    with ReplyFile(out) as replies:
        arriving = client.update_many(read_lines(file), window=window, timeout=timeout, replies=replies)
        try:
            with closing(arriving):
                for _ in _with_bar(arriving, file, replies):
                    answered += 1
        except OutcomeUnknown as error:
            return _tell(say("not all", say("unanswered", error)), NO_ANSWER)
        except KeyboardInterrupt:
            return _tell(say("not all", say("stopped")), INTERRUPTED)
        finally:
            rate = answered / (time.monotonic() - began)
            lines, codes = sum(replies.codes.values()), _counts(replies) or say("nothing")
            click.echo(say("summary", lines=lines, codes=codes, rate=rate, out=out), err=True)
    return REFUSED if set(+replies.codes) - {APPLIED} else 0


def _with_bar(arriving: Iterator[dict[str, Any]], file: Path, replies: ReplyFile) -> Iterator[dict[str, Any]]:
    """What arrives; meanwhile a terminal shows how far it is."""
    if not sys.stderr.isatty():
        yield from arriving
        return
    length = sum(1 for _ in read_lines(file))
    due, began = 0.0, time.monotonic()
    progress: Any = click.progressbar(
        length=length, show_pos=True, item_show_func=lambda _: _counts(replies), file=sys.stderr, update_min_steps=0
    )
    with progress as bar:
        for here, document in enumerate(arriving, 1):
            yield document
            now = time.monotonic()
            if now >= due:
                due = now + _REDRAW
                bar.label = f"{here / (now - began):,.0f}/s"
                bar.update(sum(replies.codes.values()) - bar.pos)
        bar.update(sum(replies.codes.values()) - bar.pos)


def _counts(replies: ReplyFile) -> str:
    return ", ".join(f"{number:,} {code}" for code, number in replies.codes.most_common() if number)


@cli.command()
@click.argument("queue", default=contract.REPLY_QUEUE)
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line: the reply, as the worker made it.")
@click.option("--timeout", type=float, help="End after so many seconds without an event. [default: never]")
@click.pass_obj
def watch(client: ImageClient, queue: str, *, as_json: bool, timeout: float | None) -> int:
    """Reply events as they come to QUEUE. They are taken off it: whoever else reads it does not get them."""
    for event in client.replies(queue, timeout=timeout):
        click.echo(json.dumps(event.reply, ensure_ascii=False) if as_json else _readable(event))
        sys.stdout.flush()
    return 0


def _readable(event: ReplyEvent) -> str:
    when = f"{event.time.astimezone():%H:%M:%S}"
    if event.error is not None:
        return f"{when} {event.reply['status']} {one_line(event.error)}"
    image = event.image
    told = say("image", id=image.id, revision=image.revision, name=image.name) if image else ""
    return f"{when} 200 OK {told}{say('request', event.id)}"


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what makes SHELL complete this command: source it in the shell's start-up file."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "aries-images", "_ARIES_IMAGES_COMPLETE").source())
    return 0
