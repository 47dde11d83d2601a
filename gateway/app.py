"""`PUT /aries/api/v1/image`: the seed's route, through the queue and back; waiting for an answer holds no thread."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from aries_images import AriesImagesError, OutcomeUnknown
from aries_images.aio import AsyncImageClient
from gateway import access, response
from gateway.openapi import PATH, document
from gateway.request import asked, body_of, request_id_of

#: Seconds for the request to reach the queue; after that nobody is kept waiting for a server that is away.
_REACH = 3.0
#: No HTTP status, but what logs have for a caller who did not wait.
_HUNG_UP = 499


@asynccontextmanager
async def _client(app: FastAPI) -> AsyncIterator[None]:
    """The one client of this process, from the worker's own settings: ARIES_BROKER_URL, ARIES_RESULT_URL."""
    master = os.environ.get("ARIES_SENTINEL_MASTER")
    async with AsyncImageClient(transport_options={"master_name": master} if master else None) as client:
        app.state.client = client
        yield


def _is_probe(scope: Any) -> bool:
    return scope.get("path") in access.PROBES


access.configure()
app = FastAPIOffline(
    title="aries-images",
    lifespan=_client,
    redirect_slashes=False,
    # Traces, where OTEL_EXPORTER_OTLP_ENDPOINT says where to send them: one span for each request.
    telemetry={
        "auto_configure": True,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "exclude": _is_probe,
    },
)
app.add_middleware(access.AccessLog)
app.openapi = document  # type: ignore[method-assign]  # FastAPI's own would be of what its handlers declare


async def update_image(request: Request) -> Response:
    """Send the request through the queue and wait for its reply."""
    request_id = str(uuid.uuid4())
    try:
        request_id = request.state.request_id = request_id_of(request) or request_id
        return await _answer(request, request_id)
    except ClientDisconnect:
        return Response(status_code=_HUNG_UP)  # nobody reads it, but the log
    except AriesImagesError as error:
        return response.of_refusal(error, request_id, had_proof="authorization" in request.headers)


# Not by `app.put`: what FastAPI works out for each request, to hand it over as arguments, is nothing to this route.
app.add_route(PATH, update_image, methods=["PUT"])


async def _answer(request: Request, request_id: str) -> Response:
    headers, body = asked(request), await body_of(request)
    client: AsyncImageClient = request.app.state.client
    try:
        async with asyncio.timeout(_REACH):
            pending = await client.relay(
                body,
                authorization=headers.authorization,
                request_id=request_id,
                if_revision=headers.if_revision,
                traceparent=headers.traceparent,
                timeout=headers.wait,
            )
    except (TimeoutError, OutcomeUnknown):
        advice = response.resend(request_id, "the queue can't be reached")
        again = {"Retry-After": response.RETRY_AFTER}
        return response.of_error(response.UNAVAILABLE, request_id, advice, headers=again)
    try:
        return response.of_image(await pending.result(), request_id)
    except OutcomeUnknown:
        advice = response.resend(request_id, f"no answer in {headers.wait} seconds")
        return response.of_error(response.OUTCOME_UNKNOWN, request_id, advice)


@app.get("/healthz", include_in_schema=False)
async def healthz() -> Response:
    """200 as long as this process answers at all."""
    return Response("ok\n", media_type="text/plain")


@app.get("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 if both servers answer and a worker listens."""
    client: AsyncImageClient = request.app.state.client
    try:
        async with asyncio.timeout(_REACH):
            workers = await client.workers()
    except (TimeoutError, OutcomeUnknown):
        return Response("a server does not answer\n", 503, media_type="text/plain")
    if workers == 0:
        return Response("no worker listens\n", 503, media_type="text/plain")
    return Response("ok\n", media_type="text/plain")


@app.exception_handler(HTTPException)
async def _no_route(request: Request, error: Exception) -> Response:
    """404 and 405 in the form of all other errors."""
    not_allowed = isinstance(error, HTTPException) and error.status_code == response.METHOD_NOT_ALLOWED.status
    kind = response.METHOD_NOT_ALLOWED if not_allowed else response.NOT_FOUND
    headers = dict(getattr(error, "headers", None) or {})
    what = response.OwnDetail(None, "unknown_route", f"there is no {request.method} {request.url.path}"[:500])
    return response.of_error(kind, str(uuid.uuid4()), what, headers=headers)


@app.exception_handler(Exception)
async def _fault(request: Request, _error: Exception) -> Response:
    """Whatever goes wrong here is logged, and told in the form of all other errors."""
    return response.of_error(response.INTERNAL, getattr(request.state, "request_id", str(uuid.uuid4())))
