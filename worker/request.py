"""Celery's worker-side request, for tasks that answer everything themselves."""

from typing import Any

from celery.worker import request as celery_request
from celery.worker import state

from worker.task import REVOKED


class Request(celery_request.Request):  # type: ignore[misc]  # Celery has no types
    """A request that is never dropped: expired or revoked, its task still answers it."""

    def revoked(self) -> bool:
        """Never: what is expired or revoked goes to the task, which answers `DeadlineExceeded` and remembers it."""
        if self.id in state.revoked or self._revoked_by_stamp():
            self._request_dict[REVOKED] = True
        return False

    def _revoked_by_stamp(self) -> bool:
        for stamp, value in self.stamps.items():
            revoked = state.revoked_stamps.get(stamp)
            if revoked is not None and set(_listed(value)) & set(_listed(revoked)):
                return True
        return False

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """A batch under way is not stopped: it commits, or it is rolled back, in milliseconds."""

    def cancel(self, pool: Any, signal: Any = None, **_: Any) -> None:
        """Nor by a worker that leaves at once; its pool waits for it."""

    def info(self, *_: Any, **__: Any) -> dict[str, Any]:
        """What `inspect` and Flower show of it: what its caller lets monitors see, not the values."""
        shown: dict[str, Any] = super().info(safe=True)
        return shown

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  # Celery's name
        """Celery's event; without the traceback of a fault, which is for the worker's log alone.

        A batch is told of as started when Celery's loop gets round to it, which may be when it is over.
        """
        fields.pop("traceback", None)
        if type == "task-started":
            fields["timestamp"] = self.time_start
        super().send_event(type, **fields)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set) else [value]
