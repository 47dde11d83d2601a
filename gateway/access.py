"""The gateway's log: one line for each HTTP request, in the form of the worker's."""

import json
import logging
import os
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aries_images import contract
from aries_images.tracing import current_traceparent
from worker.log_lines import formatter

logger = logging.getLogger(__name__)

#: Asked every few seconds by whoever watches; only their failures are logged.
PROBES = ("/healthz", "/readyz")
#: The first status of those whose body says what is wrong.
_FIRST_ERROR = 400


def configure() -> None:
    """Have everything that is logged in this process, uvicorn's lines too, written to stderr in one form."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter("json" if os.environ.get("ARIES_LOG") == "json" else "text"))
    logging.getLogger().addHandler(handler)
    lines, access_lines = logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")
    lines.handlers, lines.propagate = [], True
    access_lines.handlers, access_lines.propagate = [], False  # ours say more; uvicorn looks whether anybody listens
    logger.setLevel(logging.INFO)


class AccessLog:
    """ASGI middleware that logs each HTTP request when its response is complete, or when there will be none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's way in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope)

        async def observed(message: Message) -> None:
            exchange.see(message)
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            exchange.log()


class _Exchange:
    """One request and what was answered; a fault, if nothing was."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._begun_at = time.perf_counter()
        self._status, self._code = contract.INTERNAL_ERROR.status, contract.INTERNAL_ERROR.name
        self._request_id: str | None = None

    def see(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._code = message["status"], "OK"
            headers = dict(message["headers"])
            self._request_id = headers.get(b"x-request-id", b"").decode("latin-1") or None
        elif self._status >= _FIRST_ERROR and self._request_id and message.get("body"):
            self._code = json.loads(message["body"])["code"]

    def log(self) -> None:
        path = self._scope["path"]
        if path in PROBES and self._status < _FIRST_ERROR:
            return
        said: dict[str, Any] = {
            "method": self._scope["method"],
            "path": path[:200],
            "request_id": self._request_id or self._scope.get("state", {}).get("request_id"),
            "status": self._status,
            "code": self._code,
            "ms": round((time.perf_counter() - self._begun_at) * 1000),
            "trace_id": self._trace_id(),
        }
        logger.info("answered", extra=said)

    def _trace_id(self) -> str | None:
        """The trace that this process makes spans for, or else the caller's."""
        sent = dict(self._scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        traceparent = current_traceparent() or sent
        return traceparent.split("-")[1] if contract.is_traceparent(traceparent) else None
