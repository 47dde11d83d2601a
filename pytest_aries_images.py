"""The pytest plugin: fixtures that give the tests of another service a real worker.

A module of its own, outside of the package: pytest imports it in each run, the runs that have no use for it included,
and the package takes half a second.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aries_images.testing import ImagesService, WorkerProcess


@pytest.fixture(scope="session")
def aries_images_worker(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[WorkerProcess]":
    """The worker, its Redis and its database, for all tests of this process: `broker_url`, `result_url`, `log`."""
    from aries_images.testing import WorkerFailedError, WorkerProcess  # noqa: PLC0415  # see above

    try:
        worker = WorkerProcess(tmp_path_factory.mktemp("aries-images"))
    except WorkerFailedError as error:
        pytest.fail(str(error), pytrace=False)
    yield worker
    worker.stop()


@pytest.fixture
def aries_images(aries_images_worker: "WorkerProcess", request: pytest.FixtureRequest) -> "Iterator[ImagesService]":
    """aries-images for one test: no images, nothing queued. `ImageClient()` without arguments finds it."""
    from aries_images.testing import ImagesService  # noqa: PLC0415  # see above

    service = ImagesService(aries_images_worker)
    # One of its own: a test may undo what it has patched in the middle.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ARIES_TOKEN", raising=False)
        patch.setenv("ARIES_BROKER_URL", service.broker_url)
        patch.setenv("ARIES_RESULT_URL", service.result_url)
        yield service
    service.close()
    if log := service.log:
        request.node.add_report_section("teardown", "aries-images worker", log)
