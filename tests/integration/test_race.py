"""Two worker processes, fifty callers, a few names: whatever the order, the books are right in the end."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aries_images import Image, ImageNameExists, contract
from tests.builders import ledger, stored_images, stored_revisions
from tests.service import Service, service_at
from tests.workers import running_worker

#: How long it goes on; `ARIES_TEST_RACE_SECONDS=60` for the long form.
SECONDS = float(os.environ.get("ARIES_TEST_RACE_SECONDS", "3"))
CALLERS = 50
IMAGES = 8
NAMES = [f"wanted-{number}" for number in range(10)]

#: What a caller was told: the request id, the name asked for, and the image, or None where the name was taken.
Told = tuple[str, str, Image | None]


@pytest.fixture
def service(broker_url: str, result_url: str, database_url: str) -> Iterator[Service]:
    with (
        service_at(broker_url, result_url, database_url) as service,
        running_worker(service.environment),
        running_worker(service.environment, pool="prefork", concurrency=2),
    ):
        for _ in range(IMAGES):
            service.image()
        yield service


def rename_until(service: Service, end: float, seed: int) -> list[Told]:
    """What one caller is told; anything but an image or a taken name is an error."""
    chance, told = random.Random(seed), []  # no secret
    while time.monotonic() < end:
        request_id, name = f"{seed}-{len(told)}", chance.choice(NAMES)
        try:
            image = service.client.update(chance.randint(1, IMAGES), name=name, request_id=request_id)
            told.append((request_id, name, image))
        except ImageNameExists:
            told.append((request_id, name, None))
    return told


def race(service: Service) -> list[Told]:
    end = time.monotonic() + SECONDS
    gate = threading.Barrier(CALLERS)

    def caller(seed: int) -> list[Told]:
        gate.wait()
        return rename_until(service, end, seed)

    with ThreadPoolExecutor(CALLERS) as threads:
        return [one for told in threads.map(caller, range(CALLERS)) for one in told]


def test_of_fifty_callers_who_race_for_ten_names_each_is_told_the_truth(service: Service) -> None:
    told = race(service)
    images, revisions, lines = (
        stored_images(service.database),
        stored_revisions(service.database),
        ledger(service.database),
    )
    assert len({image["name"] for image in images}) == IMAGES

    # Each image's revisions follow upon each other without a gap, and end in the image as it is.
    for image in images:
        own = [row for row in revisions if row["image_id"] == image["id"]]
        assert [row["revision"] for row in own] == list(range(2, image["revision"] + 1))
        assert [row["before"] for row in own[1:]] == [row["after"] for row in own[:-1]]
        assert [row["at"] for row in own] == sorted(row["at"] for row in own)
        assert own[-1]["after"]["name"] == image["name"]

    # Every answer is in the ledger, and every change was somebody's success.
    assert set(lines) == {request_id for request_id, _, _ in told}
    changed = {row["request_id"]: row for row in revisions}
    assert len(changed) == len(revisions), "no request changed anything twice"
    for request_id, name, image in told:
        assert lines[request_id]["code"] == ("ImageNameExists" if image is None else None)
        if image is None:
            assert request_id not in changed
        else:
            assert image.name == name
            if request_id in changed:
                assert (changed[request_id]["image_id"], changed[request_id]["revision"]) == (image.id, image.revision)
                assert changed[request_id]["after"]["name"] == name
    assert set(changed) <= {request_id for request_id, _, image in told if image is not None}
    counts = Counter(line["code"] for line in lines.values())
    assert set(counts) == {None, contract.IMAGE_NAME_EXISTS.name}, "somebody won, somebody lost, and nothing else"
