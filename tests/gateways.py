"""Real gateway processes: `python -m gateway` in the checkout, and HTTP as a caller speaks it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from gateway.openapi import error_schema
from tests.workers import CHECKOUT, until
from worker.embedded import end_child, free_port, start_child

ROUTE = "/aries/api/v1/image"
FORM = {"code", "message", "details", "request_id"}


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass(frozen=True)
class Gateway:
    """A gateway that answers on a port of the loopback interface."""

    port: int
    log: Path

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request; `body` is bytes, an iterable of chunks, or what is sent as JSON."""
        if not isinstance(body, bytes | Iterator | None):
            body = json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=70)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named, encode_chunked=isinstance(body, Iterator))
            response = connection.getresponse()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def put(self, body: Any, **headers: str) -> Answer:
        return self.ask("PUT", ROUTE, body, **headers)

    def is_up(self) -> bool:
        try:
            return self.ask("GET", "/healthz").status == 200
        except OSError:
            return False


@contextmanager
def running_gateway(broker_url: str, result_url: str, variables: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """A gateway, until the end of the block; what it logged is printed then."""
    port = free_port()
    words = [sys.executable, "-m", "gateway", f"--port={port}"]
    environment = os.environ | {
        "ARIES_BROKER_URL": broker_url,
        "ARIES_RESULT_URL": result_url,
        "ARIES_TOKEN": "not-his",
        **(variables or {}),
    }
    with tempfile.NamedTemporaryFile(prefix="aries-gateway-", suffix=".log") as log:
        child = start_child(words, cwd=CHECKOUT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        gateway = Gateway(port, Path(log.name))
        try:
            until(lambda: gateway.is_up() or child.poll() is not None, 30)
            assert child.poll() is None, gateway.log.read_text()
            yield gateway
        finally:
            end_child(child, signal.SIGTERM)
            print("--- log of the gateway", gateway.log.read_text(), sep="\n")  # noqa: T201  # pytest's to show


def is_an_error(answer: Answer, status: int, code: str, *reasons: str) -> bool:
    """Whether it is this error, in the one form, and as the OpenAPI document has it."""
    said = answer.document
    assert said.keys() == FORM, said
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == said["request_id"]
    assert (answer.status, said["code"], [each["reason"] for each in said["details"]]) == (status, code, [*reasons])
    Draft202012Validator(error_schema()).validate(said)
    return True
