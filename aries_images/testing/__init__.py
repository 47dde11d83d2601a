"""For the tests of services that call us: a real worker, and what a test does with it. Needs `aries-images[testing]`.

The fixtures are in `pytest_aries_images`, which pytest finds by itself.
"""

from aries_images.testing._process import WorkerFailedError, WorkerProcess
from aries_images.testing._service import ImagesService, Revision, TakenRequest

__all__ = ["ImagesService", "Revision", "TakenRequest", "WorkerFailedError", "WorkerProcess"]
