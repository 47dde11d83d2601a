"""The programs in docs/callers.md, taken from the page as they stand, against a worker that wants a token."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from aries_images.signing import SigningKey
from tests.builders import heal, poison, stored_image
from tests.callers_page import blocks
from tests.conftest import NeedProgram
from tests.integration.conftest import NewDatabase
from tests.nodejs import PACKAGES, Node
from tests.service import Service, service_at
from tests.workers import Worker, running_worker
from worker.commands.token import PRIVATE, PUBLIC, make_keys

SHELL_FUNCTION, CALL_IN_SHELL = blocks("With `redis-cli`", "sh")
[NODE_PROGRAM], [CALL_IN_NODE] = blocks("With Node.js", "js"), blocks("With Node.js", "sh")
[CELERY_APP], [CALL_IN_CELERY] = blocks("With Celery", "py"), blocks("With Celery", "sh")

BASH = "/bin/bash"
#: Seconds that a call may take here. One that is given longer to wait must have heard its answer announced.
SECONDS = 60
#: A record whose announcement was missed.
UNHEARD = blocks("The record", "json")[0]


class Site(NamedTuple):
    """A service with a worker, and the environment of a caller who has exported what the page tells him to."""

    service: Service
    worker: Worker
    environment: dict[str, str]

    @contextmanager
    def nobody_answers(self) -> Iterator[None]:
        """Let the worker stand still."""
        self.worker.process.suspend()
        try:
            yield
        finally:
            self.worker.process.resume()

    @contextmanager
    def a_fault(self) -> Iterator[None]:
        """Let the database fail where a name begins with `poison`."""
        poison(self.service.database)
        try:
            yield
        finally:
            heal(self.service.database)

    def revision(self) -> int:
        revision: int = stored_image(self.service.database, 1)["revision"]
        return revision


@pytest.fixture(scope="module")
def site(
    module_redis: tuple[str, str], new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    keys = tmp_path_factory.mktemp("keys")
    make_keys(keys)
    exported = {
        "ARIES_BROKER_URL": module_redis[0],
        "ARIES_RESULT_URL": module_redis[1],
        "ARIES_TOKEN": SigningKey((keys / PRIVATE).read_bytes(), "orders").token(600),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    with service_at(*module_redis, new_database("sqlite")) as service:
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(keys / PUBLIC)}
        service.image()
        service.image(name="taken")
        with running_worker(service.environment) as worker:
            yield Site(service, worker, os.environ | exported)


# --- redis-cli ---


class Terminal:
    """An interactive bash, on a terminal of its own."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._keyboard, terminal = pty.openpty()
        self._temporary = folder
        self._bash = subprocess.Popen(
            [BASH, "--norc", "--noprofile", "-i"],
            stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment | {"TMPDIR": str(folder), "TERM": "dumb"}, cwd=folder, text=True, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bash.kill()
        self._bash.communicate()
        os.close(self._keyboard)

    def paste(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def says(self, *lines: str) -> tuple[list[str], str]:
        """What it prints to standard output, by line, and everything else, after these lines and `exit`."""
        self.paste("\n".join([*lines, "exit\n"]))
        out, err = self._bash.communicate(timeout=SECONDS)
        assert list(self._temporary.iterdir()) == []
        return out.splitlines(), err


@pytest.fixture
def terminal(site: Site, need_program: NeedProgram, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal where the function has been pasted."""
    need_program("redis-cli")
    need_program("jq")
    with Terminal(site.environment, tmp_path) as terminal:
        terminal.paste(SHELL_FUNCTION)
        yield terminal


def test_the_shell_function_prints_the_reply_document(site: Site, terminal: Terminal) -> None:
    [reply, code], _ = terminal.says(CALL_IN_SHELL)
    assert code == "0"
    assert json.loads(reply) == site.service.stored("order-4713")["result"]
    assert json.loads(reply)["image"]["name"] == "镜像-shell"


def test_the_shell_function_prints_a_refusal_and_ends_with_1(site: Site, terminal: Terminal) -> None:
    [reply, code], _ = terminal.says("""update_image order-4720 '{"id": 1, "name": "taken"}' 600; echo $?""")
    assert code == "1"
    assert json.loads(reply)["error"]["code"] == "ImageNameExists"
    assert site.service.stored("order-4720")["result"] == json.loads(reply)


def test_the_shell_function_prints_a_fault_and_ends_with_1(site: Site, terminal: Terminal) -> None:
    with site.a_fault():
        [reply, code], _ = terminal.says("""update_image order-4721 '{"id": 1, "name": "poison"}'; echo $?""")
    assert (json.loads(reply)["exc_type"], code) == ("InternalError", "1")


def test_the_shell_function_gives_up_in_time_and_says_so(site: Site, terminal: Terminal) -> None:
    before = site.revision()
    with site.nobody_answers():
        [code], err = terminal.says("""update_image order-4722 '{"id": 1, "name": "late"}' 1; echo $?""")
    assert code == "3"
    assert "no answer: send the same again as order-4722" in err
    assert site.service.stored("order-4722")["result"]["error"]["code"] == "DeadlineExceeded"
    assert site.revision() == before


def test_the_shell_function_finds_an_answer_that_it_did_not_hear(site: Site, terminal: Terminal) -> None:
    with site.nobody_answers():
        site.service.results.set("celery-task-meta-order-4725", UNHEARD)
        [reply, code], _ = terminal.says("""update_image order-4725 '{"id": 1}' 1; echo $?""")
    assert (json.loads(reply), code) == (json.loads(UNHEARD)["result"], "0")


def test_the_shell_function_sends_nothing_that_it_cannot_hear_the_answer_to(site: Site, terminal: Terminal) -> None:
    [code], err = terminal.says(
        "ARIES_RESULT_URL=redis://127.0.0.1:1/0", """update_image order-4723 '{"id": 1}'; echo $?"""
    )
    assert code == "3"
    assert "not sent" in err
    assert site.service.is_idle()
    assert not site.service.results.exists("celery-task-meta-order-4723")


def test_the_shell_function_takes_no_half_a_document(terminal: Terminal) -> None:
    [code], _ = terminal.says("""update_image order-4724 '{"id": 1, '; echo $?""")
    assert code == "2"


# --- Node.js ---


@pytest.fixture
def node_folder(node: Node, tmp_path: Path) -> Path:  # noqa: ARG001  # it has its packages then
    """A folder after `npm install ioredis`, with the program of the page."""
    (tmp_path / "update.mjs").write_text(NODE_PROGRAM)
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    return tmp_path


def in_shell(site: Site, folder: Path, text: str, **changed: str) -> tuple[list[str], str]:
    """What a shell prints to standard output, by line, and to the other."""
    done = subprocess.run(
        [BASH, "-c", text],
        env=site.environment | changed, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    return done.stdout.splitlines(), done.stderr


def test_the_node_program_prints_the_reply_document(site: Site, node_folder: Path) -> None:
    [reply, code], err = in_shell(site, node_folder, CALL_IN_NODE)
    assert (code, err) == ("0", "")
    assert json.loads(reply) == site.service.stored("order-4714")["result"]
    assert json.loads(reply)["image"]["name"] == "镜像-Node"


def test_the_node_program_tells_a_refusal(site: Site, node_folder: Path) -> None:
    [code], err = in_shell(site, node_folder, """node update.mjs order-4730 '{"id": 1, "name": "taken"}'; echo $?""")
    name, _, reply = err.partition(" {")
    assert (name, code) == ("Refused: ImageNameExists", "1")
    assert json.loads("{" + reply) == site.service.stored("order-4730")["result"]


def test_the_node_program_tells_a_fault(site: Site, node_folder: Path) -> None:
    with site.a_fault():
        [code], err = in_shell(
            site, node_folder, """node update.mjs order-4731 '{"id": 1, "name": "poison"}'; echo $?"""
        )
    assert (err, code) == ('Fault: InternalError "order-4731"\n', "1")


def test_the_node_program_gives_up_in_time_and_says_so(site: Site, node_folder: Path) -> None:
    before = site.revision()
    with site.nobody_answers():
        [code], err = in_shell(
            site, node_folder, """node update.mjs order-4732 '{"id": 1, "name": "late"}' 1; echo $?"""
        )
    assert (err, code) == ('OutcomeUnknown: no answer in 1000 ms "order-4732"\n', "3")
    assert site.service.stored("order-4732")["result"]["error"]["code"] == "DeadlineExceeded"
    assert site.revision() == before


def test_the_node_program_finds_an_answer_that_it_did_not_hear(site: Site, node_folder: Path) -> None:
    with site.nobody_answers():
        site.service.results.set("celery-task-meta-order-4734", UNHEARD)
        [reply, code], _ = in_shell(site, node_folder, """node update.mjs order-4734 '{"id": 1}' 1; echo $?""")
    assert (json.loads(reply), code) == (json.loads(UNHEARD)["result"], "0")


def test_the_node_program_gives_up_where_redis_is_away(site: Site, node_folder: Path) -> None:
    away = {"ARIES_BROKER_URL": "redis://127.0.0.1:1/0"}
    [code], err = in_shell(site, node_folder, """node update.mjs order-4733 '{"id": 1}' 1; echo $?""", **away)
    assert code == "3"
    assert 'OutcomeUnknown: Command timed out "order-4733"' in err


SIDE_BY_SIDE = """
const names = Array.from({ length: 50 }, (_, number) => (number % 5 ? `镜像-${number}` : "taken"));
const calls = await Promise.allSettled(names.map((name) => update({ id: 1, name }, { timeout: 600_000 })));
console.log(JSON.stringify(calls.map(({ value, reason }) => value?.image.name ?? reason.reply.error.code)));
console.log(records.eventNames().length);
close();
"""


def test_calls_of_the_node_module_run_side_by_side(site: Site, node_folder: Path) -> None:
    module, _, program = NODE_PROGRAM.partition("// For a try")
    assert program
    (node_folder / "many.mjs").write_text(module + SIDE_BY_SIDE)
    [ends, left], _ = in_shell(site, node_folder, "node many.mjs")
    assert json.loads(ends) == [f"镜像-{number}" if number % 5 else "ImageNameExists" for number in range(50)]
    assert left == "0"


# --- Celery ---


@pytest.fixture
def celery_folder(tmp_path: Path) -> Path:
    """A folder with the application of the page."""
    (tmp_path / "caller.py").write_text(CELERY_APP)
    return tmp_path


def test_celery_s_own_command_and_send_task_print_the_reply_document(site: Site, celery_folder: Path) -> None:
    [by_command, by_send_task], err = in_shell(site, celery_folder, CALL_IN_CELERY)
    assert err == ""
    assert "'status': 200, 'image': {'id': 1, 'name': '镜像-Celery'" in by_command
    assert "'status': 200" in by_send_task
    assert "'description': 'from send_task'" in by_send_task


def test_celery_result_ends_with_0_for_a_refusal_and_with_1_for_a_fault(site: Site, celery_folder: Path) -> None:
    token = {"authorization": f"Bearer {site.environment['ARIES_TOKEN']}"}
    with site.a_fault():
        refused, failed = (site.service.send({"id": 1, "name": name}, headers=token).id for name in ("taken", "poison"))
        assert site.service.stored(failed)["status"] == "FAILURE"
    both = f"celery -A caller result {refused}; echo $?; celery -A caller result {failed}; echo $?"
    [refusal, *codes], err = in_shell(site, celery_folder, both)
    assert refusal == str(site.service.stored(refused)["result"])
    assert codes == ["0", "1"]
    assert "InternalError" in err


def test_send_task_gives_up_in_time(site: Site, celery_folder: Path) -> None:
    _, python, send_task = CALL_IN_CELERY.partition("python")
    with site.nobody_answers():
        [code], err = in_shell(site, celery_folder, python + send_task.replace("=30", "=1") + "echo $?")
    assert code == "1"
    assert "TimeoutError: The operation timed out." in err


def test_celery_s_command_without_an_application_shows_no_token(site: Site, celery_folder: Path) -> None:
    call = """celery -b "$ARIES_BROKER_URL" call image.update --kwargs='{"id": 1}' --queue=image.update"""
    [request_id], _ = in_shell(site, celery_folder, call)
    [event] = site.service.wait_for_events(request_id)
    assert event["body"]["data"]["status"] == 401
