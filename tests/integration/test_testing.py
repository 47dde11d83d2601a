"""aries_images.testing: what a service's tests are given is a real worker, and it does as it is told."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from aries_images import (
    AriesImagesError,
    DeadlineExceeded,
    Detail,
    Forbidden,
    Image,
    ImageClient,
    ImageNameExists,
    ImageNotFound,
    InternalError,
    InvalidParameter,
    OutcomeUnknown,
    PreconditionFailed,
    TooManyRequests,
    Unauthorized,
    contract,
)
from aries_images.aio import AsyncImageClient
from aries_images.testing import ImagesService, WorkerFailedError, WorkerProcess
from tests.builders import a_message
from tests.workers import CHECKOUT, until

pytest_plugins = ["pytest_aries_images"]

#: Seconds after which a caller of ours takes silence for an answer; the others have half a minute.
SOON = 1.0
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def client(aries_images: ImagesService) -> ImageClient:
    return aries_images.client()


def record(service: ImagesService, request_id: str) -> dict[str, Any]:
    """What the result backend has of a request."""
    with Redis.from_url(service.result_url) as results:
        stored: dict[str, Any] = json.loads(results.get(contract.RESULT_KEY_PREFIX + request_id) or "null")
    return stored


def events(service: ImagesService) -> list[dict[str, Any]]:
    """The reply events that wait on the common queue, the oldest first."""
    with Redis.from_url(service.broker_url) as broker:
        return [json.loads(json.loads(entry)["body"]) for entry in reversed(broker.lrange(contract.REPLY_QUEUE, 0, -1))]


# --- what a test sees ---


def test_an_update_is_applied_by_a_real_worker_and_on_record(aries_images: ImagesService) -> None:
    loaded = aries_images.load(1, name="before", os_name="Debian")
    assert loaded == aries_images.image(1)
    assert (loaded.name, loaded.os_type, loaded.os_name, loaded.revision) == ("before", "linux", "Debian", 1)
    with ImageClient() as client:  # as the code of a service has it
        image = client.update(1, name="after", request_id="one", if_revision=1, traceparent=TRACE)
    assert image == aries_images.image(1)
    [revision] = aries_images.revisions(1)
    assert (revision.revision, revision.before["name"], revision.after["name"]) == (2, "before", "after")
    assert (revision.request_id, revision.caller, revision.traceparent) == ("one", "anonymous", TRACE)
    assert abs((datetime.now(UTC) - revision.at).total_seconds()) < 60
    [request] = aries_images.requests
    assert (request.request_id, request.body) == ("one", {"id": 1, "name": "after"})
    assert (request.if_revision, request.traceparent) == (1, TRACE)


def test_images_are_loaded_as_they_could_be_and_no_other(aries_images: ImagesService) -> None:
    made, changed = datetime(2020, 2, 2, 2, 2, 2, 222222, UTC), datetime(2021, 1, 1, tzinfo=UTC)
    image = aries_images.load(7, os_type="windows", source_path="/iso", created_at=made, updated_at=changed, revision=9)
    assert image.name == "image-7"
    assert (image.created_at, image.updated_at, image.revision) == (made.replace(microsecond=0), changed, 9)
    for wrong in ({"name": ""}, {"name": " x"}, {"os_type": "dos"}, {"name": "image-7"}):
        with pytest.raises(ValueError, match=r"name|os_type"):
            aries_images.load(8, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="7"):
        aries_images.load(7, name="another")
    with pytest.raises(KeyError):
        aries_images.image(8)
    assert aries_images.images() == [image]
    assert aries_images.revisions(7) == []


def test_thousands_may_be_awaited(aries_images: ImagesService) -> None:
    images = [aries_images.load(number) for number in range(1, 6)]

    async def update_all() -> list[Image]:
        async with AsyncImageClient() as client:
            return await asyncio.gather(
                *(client.update(image.id, description=str(number)) for image in images for number in range(100))
            )

    asyncio.run(update_all())
    assert [image.revision for image in aries_images.images()] == [101] * 5
    assert len(aries_images.requests) == 500


# --- what a test can have ---


@pytest.mark.parametrize(
    "refusal",
    [ImageNotFound, ImageNameExists, PreconditionFailed, Unauthorized, Forbidden],
    ids=lambda refusal: refusal.__name__,
)
def test_what_is_refused_on_order_reads_like_what_is_refused_in_earnest(
    aries_images_worker: WorkerProcess, refusal: type[AriesImagesError]
) -> None:
    service = ImagesService(aries_images_worker)
    request: dict[str, Any] = {"name": "taken"}
    if refusal is not ImageNotFound:
        service.load(1)
    if refusal is ImageNameExists:
        service.load(2, name="taken")
    if refusal is PreconditionFailed:
        request["if_revision"] = 5
    token = None
    if refusal in {Unauthorized, Forbidden}:
        service.require_tokens()
        token = service.token("anonymous", scope="none") if refusal is Forbidden else None
    earnest = refused(service, refusal, "earnest", token, **request)
    service = ImagesService(aries_images_worker)
    service.load(1)
    service.refuse_next(refusal)
    ordered = refused(service, refusal, "ordered", None, **request)
    earnest["data"]["request_id"] = earnest["id"] = "ordered"
    assert ordered | {"time": earnest["time"]} == earnest
    assert record(service, "ordered")["result"] == ordered["data"]


def refused(
    service: ImagesService, refusal: type[AriesImagesError], request_id: str, token: str | None, **request: Any
) -> dict[str, Any]:
    """The reply event of a request that is refused."""
    with service.client(token=token) as client, pytest.raises(refusal):
        client.update(1, request_id=request_id, **request)
    [event] = events(service)
    return event


@pytest.mark.parametrize(
    "refusal",
    [kind for kind in AriesImagesError.__subclasses__() if kind.code is not None],
    ids=lambda refusal: refusal.__name__,
)
def test_every_code_can_be_had_and_is_kept_as_the_contract_says(
    aries_images: ImagesService, client: ImageClient, refusal: type[AriesImagesError]
) -> None:
    code = contract.CODES[str(refusal.code)]
    before = aries_images.load(1)
    aries_images.refuse_next(refusal)
    with pytest.raises(refusal) as caught:
        client.update(1, name="new", request_id="one")
    assert (caught.value.status, caught.value.retry) == (code.status, code.retry)
    assert record(aries_images, "one")["status"] == ("FAILURE" if refusal is InternalError else "SUCCESS")
    assert aries_images.image(1) == before
    if code.stored:
        with pytest.raises(refusal):
            client.update(1, name="new", request_id="one")
        with pytest.raises(refusal):
            client.settle("one")
    else:
        assert client.update(1, name="new", request_id="one").revision == 2


def test_details_are_a_tests_own(aries_images: ImagesService, client: ImageClient) -> None:
    details = (Detail("os_name", "too_long", "os_name is long"), Detail("name", "white_space", "name is white"))
    aries_images.refuse_next(InvalidParameter, *details)
    with pytest.raises(InvalidParameter, match="os_name is long; name is white") as caught:
        client.update(1, name="new")
    assert caught.value.details == details
    with pytest.raises(ValueError, match="ignore_next"):
        aries_images.refuse_next(OutcomeUnknown)


def test_a_fault_changes_nothing_and_a_resend_succeeds(aries_images: ImagesService, client: ImageClient) -> None:
    before = aries_images.load(1)
    aries_images.fault_next()
    with pytest.raises(InternalError) as caught:
        client.update(1, name="new")
    assert aries_images.image(1) == before
    assert "WantedFault" not in json.dumps(record(aries_images, str(caught.value.request_id)))
    assert client.update(1, name="new", request_id=caught.value.request_id).revision == 2


def test_one_that_is_ignored_was_never_there(aries_images: ImagesService, client: ImageClient) -> None:
    before = aries_images.load(1)
    aries_images.ignore_next(times=2)
    for request_id in ("again", "settled"):
        with pytest.raises(OutcomeUnknown) as caught:
            client.update(1, name="new", request_id=request_id, timeout=SOON)
        assert caught.value.request_id == request_id
    assert aries_images.image(1) == before
    with pytest.raises(DeadlineExceeded):
        client.settle("settled")
    assert client.update(1, name="new", request_id="again").revision == 2
    with pytest.raises(DeadlineExceeded):
        client.update(1, name="new", request_id="settled")
    assert [request.request_id for request in aries_images.requests] == ["again", "settled", "again", "settled"]


def test_of_one_whose_answer_is_lost_the_ledger_has_it(aries_images: ImagesService, client: ImageClient) -> None:
    aries_images.load(1)
    aries_images.ignore_next(applied=True)
    with pytest.raises(OutcomeUnknown):
        client.update(1, name="new", request_id="one", timeout=SOON)
    assert aries_images.image(1).name == "new"
    assert record(aries_images, "one") is None
    assert events(aries_images) == []
    assert client.settle("one").revision == 2
    assert client.update(1, name="new", request_id="one").revision == 2
    assert len(aries_images.revisions(1)) == 1


def test_outcomes_are_had_in_order_one_request_each(aries_images: ImagesService, client: ImageClient) -> None:
    aries_images.load(1)
    aries_images.refuse_next(TooManyRequests, times=2)
    aries_images.fault_next()
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(client.update(1, description="new", request_id="one").revision)
        except AriesImagesError as error:
            outcomes.append(error.code)
    assert outcomes == ["TooManyRequests", "TooManyRequests", "InternalError", 2]


def test_of_a_request_that_was_answered_the_ledger_knows_better_but_not_better_than_the_door(
    aries_images: ImagesService, client: ImageClient
) -> None:
    aries_images.load(1)
    client.update(1, name="new", request_id="one")
    aries_images.refuse_next(ImageNotFound)
    assert client.update(1, name="new", request_id="one").revision == 2
    for refusal in (TooManyRequests, Unauthorized):
        aries_images.refuse_next(refusal)
        with pytest.raises(refusal):
            client.update(1, name="new", request_id="one")


def test_of_requests_that_come_at_once_each_has_its_own_outcome(
    aries_images: ImagesService, client: ImageClient
) -> None:
    for number in range(1, 7):
        aries_images.load(number)
    aries_images.fault_next(times=2)
    aries_images.refuse_next(ImageNotFound, times=2)
    outcomes = []
    for update in [client.submit(number, description="new") for number in range(1, 7)]:
        try:
            outcomes.append(update.result().revision)
        except AriesImagesError as error:
            outcomes.append(error.code)
    assert outcomes == ["InternalError", "InternalError", "ImageNotFound", "ImageNotFound", 2, 2]


# --- who is calling ---


def test_tokens_are_needed_where_a_test_wants_it(aries_images: ImagesService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ARIES_TOKEN" not in os.environ
    for number in (1, 2):
        aries_images.load(number)
    aries_images.require_tokens()
    with ImageClient() as client, pytest.raises(Unauthorized):
        client.update(1, name="new")
    monkeypatch.setenv("ARIES_TOKEN", aries_images.token("orders", images=[1]))
    with ImageClient() as client:
        assert client.update(1, name="new").revision == 2
        with pytest.raises(ImageNotFound):
            client.update(2, name="newer")
    assert aries_images.revisions(1)[0].caller == "orders"
    with ImageClient(token=aries_images.token("orders", scope="image:read")) as client, pytest.raises(Forbidden):
        client.update(1, name="newer")


# --- one test after the other ---


def test_a_test_finds_nothing_of_the_one_before(
    aries_images_worker: WorkerProcess,
) -> None:
    first = ImagesService(aries_images_worker)
    first.load(1)
    first.client().update(1, name="new", request_id="one")
    first.refuse_next(ImageNotFound)
    first.require_tokens()
    first.close()
    second = ImagesService(aries_images_worker)
    assert (second.images(), second.requests, second.revisions(1), record(second, "one")) == ([], [], [], None)
    second.load(1, name="another")
    assert events(second) == []
    assert second.client().update(1, name="new", request_id="one").revision == 2
    second.close()


def test_what_a_test_left_behind_does_not_reach_the_next_one(aries_images_worker: WorkerProcess) -> None:
    first = ImagesService(aries_images_worker)
    first.load(1)
    with first.client() as client, Redis.from_url(first.broker_url) as broker:
        broker.lpush(contract.BULK_QUEUE, *(a_message({"id": 1, "description": f"{n}"})[1] for n in range(300)))
        left = [client.submit(1, description=f"{n}").request_id for n in range(300)]
        second = ImagesService(aries_images_worker)
        second.load(1)
    with second.client() as client:
        assert client.update(1, name="new", request_id="mine").revision == 2
        assert [event["id"] for event in events(second)] == ["mine"]
    assert [request.request_id for request in second.requests] == ["mine"]
    assert not any(record(second, request_id) for request_id in left[-50:])


# --- the process ---


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path for modules, of somebody who has names and settings of his own."""
    for name in ("celeryconfig", "models", "tasks", "worker"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('this is not the {name} you are looking for')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_it_goes_by_nothing_that_is_the_services(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "ARIES_BROKER_URL", "ARIES_RESULT_URL"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.setenv("ARIES_DATABASE_URL", "postgresql://nowhere/production")
    monkeypatch.setenv("ARIES_BATCH_MAX", "many")
    monkeypatch.chdir(hostile)
    folder = hostile / "folder"
    folder.mkdir()
    worker = WorkerProcess(folder)
    service = ImagesService(worker)
    service.load(1)
    with service.client() as client:
        assert client.update(1, name="new").revision == 2
    worker.stop()


def test_one_that_cannot_start_says_why(hostile: Path) -> None:
    (hostile / "structlog.py").write_text("raise ImportError('there is no structlog today')\n")
    with pytest.raises(WorkerFailedError, match="there is no structlog today") as failed:
        WorkerProcess(hostile)
    assert "aries-images[testing]" in str(failed.value)


def test_one_that_is_killed_says_so_and_takes_its_redis_along(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path)
    process = psutil.Process(worker._process.pid)
    [redis] = process.children()
    service = ImagesService(worker)
    process.kill()
    for _ in range(2):
        with pytest.raises(WorkerFailedError, match="has ended"):
            service.images()
    until(lambda: not redis.is_running())


#: Starts a worker, forks a process that outlives it, and says who they are.
PARENT = """
import os, sys, time
from pathlib import Path
from aries_images.testing import WorkerProcess

worker = WorkerProcess(Path(sys.argv[1]))
forked = os.fork()
if not forked:
    time.sleep(60)
    os._exit(0)
print(worker._process.pid, forked, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent_however_that_ends_and_whatever_that_has_forked(
    tmp_path: Path, end: signal.Signals
) -> None:
    command = [sys.executable, "-c", PARENT, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=CHECKOUT) as parent:
        assert parent.stdout is not None
        worker, forked = (psutil.Process(int(word)) for word in parent.stdout.readline().split())
        [redis] = worker.children()
        parent.send_signal(end)
        parent.wait()
        until(lambda: not worker.is_running() and not redis.is_running())
        assert forked.is_running()
        forked.kill()


# --- pytest ---

#: Tests of a service, which tell in a file where their worker was.
SUITE = """
import os
import pytest
from aries_images import ImageClient

@pytest.mark.parametrize("number", range(6))
def test_one(number, aries_images, tmp_path_factory):
    aries_images.load(1)
    with ImageClient() as client:
        client.update(1, name="new", request_id="same")
    (tmp_path_factory.getbasetemp() / aries_images.broker_url.split(":")[2].split("/")[0]).touch()
    assert number != 5, "on purpose"
"""


def test_each_process_of_xdist_has_its_own_and_a_failure_shows_the_workers_log(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_aries_images", "-p", "xdist", "-n", "2", "--basetemp=base"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # others take seconds
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert "1 failed, 5 passed" in done.stdout, done.stdout + done.stderr
    assert len({file.name for file in tmp_path.glob("base/popen-*/[0-9]*")}) == 2
    assert "aries-images worker" in done.stdout
    assert "answered" in done.stdout
