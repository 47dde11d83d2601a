"""`up`: everything on this machine at once, and the seed's example sent through it."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click
from celery import Celery
from rich.console import Console

from aries_images import AriesImagesError, ImageClient, examples
from aries_images.contract import ANONYMOUS, REPLY_QUEUE_PREFIX
from aries_images.signing import SigningKey
from models import images
from models.migrations import upgrade
from worker.commands.import_images import insert_images, read_images
from worker.commands.token import FOLDER, PRIVATE, PUBLIC, make_keys
from worker.database import Database
from worker.embedded import PATIENCE, RedisServer, ServerFailedError, end_child, is_free, start_child
from worker.flower import FlowerServer
from worker.settings import PREFIX, Settings, load_settings

#: What is kept between two runs.
VAR = Path("var")
SAMPLES = Path(__file__).with_name("samples.jsonl")
#: Where Flower is, unless somebody else is there.
FLOWER_PORT = 5555
#: The caller who sends the example, and seconds that the token printed for him is good for.
CALLER = "demo"
TOKEN_SECONDS = 12 * 3600
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

console = Console(highlight=False)


@click.command()
@click.option("--once", is_flag=True, help="Stop after the example; the exit code says whether its reply was right.")
def up(*, once: bool) -> None:
    """Start Redis, database, worker and Flower here, send the example request, show what comes back, and stay up.

    ARIES_BROKER_URL or ARIES_DATABASE_URL, where set, are used instead of a Redis or a database of its own.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    right = False
    try:
        with ExitStack() as stack:
            settings = _prepare(stack)
            # Before the worker, so that it sees all that the worker tells.
            flower = None if once else _start_flower(stack, settings)
            with _step("starting a worker, which logs to var/log/worker.log"):
                worker = _start_worker(stack, settings)
            right = _send_example(settings)
            if not once:
                _stay(settings, worker, flower)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(130 if once else 0)
    sys.exit(0 if right else 1)


def _interrupt(*_: object) -> NoReturn:
    # Once is enough; stopping everything must not be interrupted in its turn.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _step(what: str) -> Iterator[None]:
    began = time.monotonic()
    if not console.is_terminal:
        console.print(f"{what} …")
    with console.status(f"{what} …"):
        yield
    console.print(f"[green]✓[/] {what} [dim]({time.monotonic() - began:.1f} s)[/]")


def _prepare(stack: ExitStack) -> Settings:
    """A Redis that `stack` stops again and a database with tables and images: those given, or our own."""
    settings = load_settings()
    VAR.mkdir(exist_ok=True)
    if "broker_url" not in settings.model_fields_set:
        _claim(stack)
        with _step("starting Redis, with its data in var/redis"):
            redis = stack.enter_context(RedisServer(VAR / "redis"))
        urls = {"broker_url": redis.url(0), "result_url": redis.url(1)}
        settings = settings.model_copy(update=urls | settings.model_dump(include={"result_url"}, exclude_unset=True))
    with _step("migrating the database"):
        upgrade(settings.database_url)
    with closing(Database(settings.database_url)) as database, database.transaction() as connection:
        if connection.execute(images.select().limit(1)).first() is None:
            with _step("loading sample images"), SAMPLES.open("rb") as lines:
                rows, _ = read_images(lines)
                insert_images(connection, rows, Console(quiet=True))
        elif (
            connection.execute(
                images.select().where(images.c.source_path == examples.IMAGE["source_path"], images.c.id == 1)
            ).first()
            is None
        ):
            raise click.ClickException("image 1 of this database is not the sample, so the example is not for it")
    if settings.auth == "on":
        with _step(f"making keys in {FOLDER}, unless they are there"):
            make_keys(FOLDER)
        settings = settings.model_copy(update={"jwt_keys": str(FOLDER / PUBLIC), "jwt_issuer": "", "jwt_bound": False})
    return settings


def _claim(stack: ExitStack) -> None:
    # Two servers on the same files would ruin them.
    lock = stack.enter_context((VAR / "up.lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise click.ClickException("it is running here already; end that first, or set ARIES_BROKER_URL") from None


def _start_flower(stack: ExitStack, settings: Settings) -> FlowerServer | None:
    """Flower, which nothing else here needs: why it is missing is said, and no more."""
    port = FLOWER_PORT if is_free(FLOWER_PORT) else None
    try:
        with _step("starting Flower, which logs to var/flower/server.log"):
            return stack.enter_context(FlowerServer(VAR / "flower", settings.broker_url, port))
    except ServerFailedError as error:
        click.echo(f"without Flower: {error}")
        return None


def _start_worker(stack: ExitStack, settings: Settings) -> subprocess.Popen[bytes]:
    """A Celery worker that takes requests already."""
    chosen = settings.model_dump(include={"broker_url", "result_url", "database_url", "jwt_keys", "jwt_issuer"})
    node = f"up-{os.getpid()}@aries"
    log_file = VAR / "log" / "worker.log"
    log_file.parent.mkdir(exist_ok=True)
    with log_file.open("wb") as log:
        worker = start_child(
            [sys.executable, "-m", "celery", "-A", "worker", "worker", "--loglevel=INFO", f"--hostname={node}"],
            env=os.environ
            | {PREFIX + name.upper(): value for name, value in chosen.items()}
            | {"ARIES_JWT_BOUND": "0"},
            stdout=log,
            stderr=log,
        )
    stack.callback(_stop_worker, worker)
    app = Celery("up", broker=settings.broker_url)
    until = time.monotonic() + PATIENCE
    while not app.control.ping(destination=[node], timeout=0.5):
        if worker.poll() is not None or time.monotonic() > until:
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-20:])
            raise click.ClickException(f"the worker did not start\n{tail}")
    return worker


def _stop_worker(worker: subprocess.Popen[bytes]) -> None:
    with _step("stopping the worker"):
        end_child(worker, signal.SIGTERM)


def _send_example(settings: Settings) -> bool:
    """Send the seed's example as any caller would, and show what comes back; whether that is as expected."""
    caller = CALLER if settings.auth == "on" else ANONYMOUS
    queue = REPLY_QUEUE_PREFIX + caller
    with ImageClient(settings.broker_url, settings.result_url, token=_token(settings), reply_to=queue) as client:
        with _step("sending the example request and waiting for its reply"):
            pending = client.submit(**examples.REQUEST, timeout=PATIENCE)
            with suppress(AriesImagesError):  # a refusal is shown below, like any reply
                pending.result()
        with _step("reading the reply event"):
            events = [event for event in client.replies(queue, timeout=1) if event.id == pending.request_id]
    reply = Celery(backend=settings.result_url).AsyncResult(pending.request_id).result
    _show("request", examples.REQUEST)
    _show("reply document", reply)
    for event in events:
        shown = {"id": event.id, "type": event.type, "time": event.time, "headers": event.headers, "data": event.reply}
        _show(f"reply event, on queue {queue}", shown)
    return _is_expected(reply) and [event.reply for event in events] == [reply]


def _token(settings: Settings) -> str | None:
    if settings.auth == "off":
        return None
    key = SigningKey((FOLDER / PRIVATE).read_bytes(), CALLER, audience=settings.jwt_audience)
    return key.token(TOKEN_SECONDS)


def _is_expected(reply: Any) -> bool:
    match reply:
        case {"status": 200, "image": dict(image)}:
            return examples.REQUEST.items() <= image.items()
    return False


def _show(title: str, document: Any) -> None:
    console.print(f"\n[bold]{title}[/]")
    console.print_json(data=document, ensure_ascii=False, default=str)


def _stay(settings: Settings, worker: subprocess.Popen[bytes], flower: FlowerServer | None) -> None:
    code = (
        "from aries_images import ImageClient; "
        f'print(ImageClient("{settings.broker_url}", "{settings.result_url}").update(1, description="hello"))'
    )
    console.print("\n[bold]up[/] – paste this into a second terminal; Ctrl-C here stops everything:\n")
    if token := _token(settings):
        click.echo(f"    export ARIES_TOKEN={token}")
    # For the other commands: check, history, restore.
    for name, value in settings.model_dump(
        include={"broker_url", "result_url", "database_url", "auth", "jwt_keys"}
    ).items():
        click.echo(f"    export {PREFIX}{name.upper()}={shlex.quote(value)}")
    click.echo(f"    {os.path.relpath(sys.executable)} -c {shlex.quote(code)}\n")
    if flower:
        user, password = flower.login
        click.echo(f"Watch it in Flower: {flower.url}   user: {user}   password: {password}\n")
    worker.wait()
    raise click.ClickException("the worker has ended; see var/log/worker.log")
