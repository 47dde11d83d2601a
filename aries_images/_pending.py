"""An update on its way: waiting for its answer."""

import time

from aries_images._answer import answer_to
from aries_images._mailbox import Mailbox, Slot
from aries_images._request import Outgoing, checked_timeout
from aries_images._result_store import ResultStore
from aries_images.contract import Image
from aries_images.errors import AriesImagesError, OutcomeUnknown

#: Seconds between two looks at the result key while nothing is published: a pub/sub connection can be dead
#: without either end knowing.
_LOOK_EVERY = 1.0


class PendingUpdate:
    """An update on its way."""

    def __init__(self, request: Outgoing, slot: Slot, mailbox: Mailbox, results: ResultStore, *, keep: object) -> None:
        self._request = request
        self._slot = slot
        self._mailbox = mailbox
        self._results = results
        #: The client: its connections are closed when nobody holds it any more.
        self._keep = keep
        self._outcome: Image | AriesImagesError | None = None

    def __repr__(self) -> str:
        return f"<PendingUpdate {self.request_id}>"

    @property
    def request_id(self) -> str:
        """The id to find, resend or settle the request with."""
        return self._request.about

    def result(self, timeout: float | None = None) -> Image:
        """Wait for the answer; may be called again, and from several threads.

        Args:
            timeout: seconds to wait; default: what is left of the timeout given when it was submitted.

        Returns:
            The image as the update left it.

        Raises:
            AriesImagesError: the class that goes with the reply's code.
            OutcomeUnknown: no answer in time.
        """
        deadline = self._slot.deadline
        if timeout is not None:
            deadline = time.monotonic() + (checked_timeout(timeout) if timeout else 0)
        if self._outcome is None:
            self._outcome = self._wait(deadline)
        if self._outcome is None:
            raise OutcomeUnknown(f"no answer to {self.request_id} in time", request_id=self.request_id)
        if isinstance(self._outcome, Image):
            return self._outcome
        raise self._outcome.with_traceback(None)

    def _wait(self, deadline: float) -> Image | AriesImagesError | None:
        next_look = time.monotonic() + _LOOK_EVERY
        while True:
            left = deadline - time.monotonic()
            record = self._slot.take(min(left, _LOOK_EVERY))
            # Another thread that waits for the same update may have taken what was published.
            outcome = self._outcome or self._read(record, published=True)
            if outcome is None and (record is None or time.monotonic() >= next_look):
                outcome = self._read(self._results.look(self._request.request_id), published=False)
                next_look = time.monotonic() + _LOOK_EVERY
            if outcome is not None:
                self._mailbox.leave(self._slot)
                return outcome
            if left <= 0:
                return None

    def _read(self, record: bytes | None, *, published: bool) -> Image | AriesImagesError | None:
        return None if record is None else answer_to(self._request, record, published=published)
