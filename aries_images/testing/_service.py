"""ImagesService: what a test does with the worker beside it, and what it can see of it."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from aries_images.client import ImageClient
from aries_images.contract import Detail, Image
from aries_images.errors import AriesImagesError, InternalError
from aries_images.testing._process import WorkerProcess

#: When images were made, unless a test says otherwise.
_MADE_AT = datetime(2024, 3, 20, 10, 30, tzinfo=UTC)


class Revision(NamedTuple):
    """One recorded change of an image."""

    revision: int
    #: The four fields that can be updated, as they were and as they are from this revision on.
    before: dict[str, str]
    after: dict[str, str]
    request_id: str
    caller: str
    at: datetime
    traceparent: str | None


class TakenRequest(NamedTuple):
    """A request as the worker took it off the queue."""

    request_id: str
    #: `id`, and the fields to change.
    body: dict[str, Any]
    if_revision: Any
    reply_to: Any
    traceparent: Any


class ImagesService:
    """aries-images beside a test: its images, the requests that it was sent, and what becomes of the next ones.

    Every method has done what it says when it returns, within milliseconds. Requests are answered by a real worker,
    in the order of their arrival.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._clients: list[ImageClient] = []
        worker.order("begin")
        self._log_begins = worker.log.stat().st_size

    @property
    def broker_url(self) -> str:
        """Where requests go, and reply events come from."""
        return self._worker.broker_url

    @property
    def result_url(self) -> str:
        """Where answers come from."""
        return self._worker.result_url

    @property
    def log(self) -> str:
        """What the worker has logged since the test began."""
        with self._worker.log.open("rb") as log:
            log.seek(self._log_begins)
            return log.read().decode(errors="replace")

    def client(self, **options: Any) -> ImageClient:
        """A client of this worker, closed when the test ends; `options` are those of `ImageClient`."""
        client = ImageClient(self.broker_url, self.result_url, **options)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close the clients."""
        while self._clients:
            self._clients.pop().close()

    # --- images ---

    def load(  # noqa: PLR0913 - an image has as many fields
        self,
        id: int,  # noqa: A002 - the seed's name of the field
        *,
        name: str | None = None,
        os_type: str = "linux",
        os_name: str = "Linux",
        description: str = "",
        source_path: str = "/path/to/image/file.iso",
        created_at: datetime = _MADE_AT,
        updated_at: datetime | None = None,
        revision: int = 1,
    ) -> Image:
        """Put an image there; without a `name` it is called `image-<id>`.

        Raises:
            ValueError: no image can be like that, or another has its id or its name.
        """
        image = {
            "id": id,
            "name": f"image-{id}" if name is None else name,
            "os_type": os_type,
            "os_name": os_name,
            "description": description,
            "source_path": source_path,
            "created_at": created_at.isoformat(),
            "updated_at": (updated_at or created_at).isoformat(),
            "revision": revision,
        }
        self._worker.order("load", image=image)
        return self.image(id)

    def image(self, id: int) -> Image:  # noqa: A002 - as above
        """An image as it is now.

        Raises:
            KeyError: there is none with this id.
        """
        return {image.id: image for image in self.images()}[id]

    def images(self) -> list[Image]:
        """All images as they are now, in the order of their ids; each equal to what `update` returned of it."""
        return [Image.model_validate(image) for image in self._worker.order("images")]

    def revisions(self, id: int) -> list[Revision]:  # noqa: A002 - as above
        """What was changed of an image, the oldest first; nothing of one that is as it was loaded."""
        return [_revision(row) for row in self._worker.order("revisions", id=id)]

    # --- requests ---

    @property
    def requests(self) -> list[TakenRequest]:
        """The requests that the worker has taken so far, in order; one that was sent twice is there twice."""
        return [TakenRequest(**request) for request in self._worker.order("requests")]

    def refuse_next(self, refusal: type[AriesImagesError], *details: Detail, times: int = 1) -> None:
        """The next request is refused, whatever it asks for, as the contract has it: kept in the ledger, or not.

        Args:
            refusal: what its caller is to catch.
            details: what it says is wrong, field by field. Default: what fits.
            times: so many requests.

        Raises:
            ValueError: this is nothing that a worker answers.
        """
        if refusal.code is None:
            raise ValueError(f"{refusal.__name__} is no answer; for silence there is ignore_next")
        self._worker.order("refuse", code=refusal.code, details=details, times=times)

    def fault_next(self, *, times: int = 1) -> None:
        """The next request runs into a fault of the worker: `InternalError`, and nothing is applied."""
        self.refuse_next(InternalError, times=times)

    def ignore_next(self, *, applied: bool = False, times: int = 1) -> None:
        """The next request is not answered: `OutcomeUnknown` once its caller's timeout is over.

        Args:
            applied: whether it is applied, and its answer is lost; else it is as if it had never arrived.
            times: so many requests.
        """
        self._worker.order("ignore", applied=applied, times=times)

    # --- who is calling ---

    def require_tokens(self) -> None:
        """From now on until the test ends every request needs a token, as in production."""
        self._worker.order("require_tokens")

    def token(self, caller: str, *, seconds: float = 3600, **claims: Any) -> str:
        """A token that the worker takes for `caller`'s.

        Args:
            caller: his name, the `sub`.
            seconds: that it is good for.
            claims: what else it says: `scope` (`image:update` if not given), `images`, `rid`, `dig`.
        """
        token: str = self._worker.order("token", caller=caller, seconds=seconds, claims=claims)
        return token


def _revision(row: dict[str, Any]) -> Revision:
    return Revision(**{name: row[name] for name in Revision._fields} | {"at": datetime.fromisoformat(row["at"])})
