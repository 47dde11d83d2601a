"""The HTTP route, on a real gateway with a real worker behind it."""

import json
import re
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from aries_images import contract
from gateway.openapi import document
from tests.builders import SEED_BODY, an_image, load, stored_image, stored_revisions
from tests.gateways import ROUTE, Answer, Gateway, is_an_error, running_gateway
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker
from worker.leases import Keys

OPENAPI = document()


@pytest.fixture(scope="module")
def service(module_redis: tuple[str, str], new_database: NewDatabase) -> Iterator[Service]:
    """A service with a worker that asks nobody who he is."""
    with service_at(*module_redis, new_database("sqlite")) as service:
        load(service.database, an_image(1_000_000, "CentOS-7.9-x64"))
        with running_worker(service.environment):
            yield service


@pytest.fixture(scope="module")
def gateway(service: Service) -> Iterator[Gateway]:
    with running_gateway(service.broker_url, service.result_url) as gateway:
        yield gateway


# --- the page ---


def test_the_seeds_example_is_answered_as_the_page_says(gateway: Gateway, service: Service) -> None:
    image = service.image()
    answer = gateway.put(SEED_BODY | {"id": image["id"]}, Content_Type="application/json")
    assert answer.status == 200
    said = answer.document
    assert list(said) == [*SEED_BODY, "source_path", "created_at", "updated_at"]
    assert {field: said[field] for field in SEED_BODY} == SEED_BODY | {"id": image["id"]}
    assert (said["source_path"], said["created_at"]) == ("/path/to/image/file.iso", "2024-03-20T10:30:00Z")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["updated_at"])
    assert answer.headers["etag"] == '"2"'
    Draft202012Validator(OPENAPI["components"]["schemas"]["Image"]).validate(said)


def test_each_error_of_the_page_has_its_status(gateway: Gateway, service: Service) -> None:
    one, other = service.image(), service.image()
    is_an_error(gateway.put({"id": 10**9}), 404, "ImageNotFound")
    is_an_error(gateway.put({"id": one["id"], "name": other["name"]}), 400, "ImageNameExists", "taken")
    is_an_error(gateway.put({"name": "x"}), 400, "InvalidParameter", "missing")
    is_an_error(gateway.put({"id": 1, "source_path": "/x"}), 400, "InvalidParameter", "read_only")
    is_an_error(gateway.put({"id": "1", "colour": 1}), 400, "InvalidParameter", "wrong_type", "unknown_field")


# --- bodies that are none ---


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"id":1,"name":"\xff"}',
    "UTF-16": '{"id":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"id":1}',
    "a duplicate key": b'{"id":1,"id":2}',
    "NaN": b'{"id":NaN}',
    "Infinity": b'{"id":-Infinity}',
    "a number beyond all numbers": b'{"id":1e999}',
    "an integer of 5,000 digits": b'{"id":' + b"1" * 5000 + b"}",
    "a lone surrogate": b'{"id":1,"name":"\\ud800"}',
    "a lone surrogate as a key": b'{"id":1,"\\udc00":1}',
    "too deep": b'{"id":' + b"[" * 40 + b"]" * 40 + b"}",
    "far too deep": b"[" * 60_000,
    "an array": b"[1]",
    "a string": b'"id"',
    "null": b"null",
    "too large": b'{"id":1,"description":"' + b"x" * 65_536 + b'"}',
    "just too large for the queue": json.dumps({"id": 1, "x": "y" * (65_536 - 18)}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "in chunks"])
def test_what_is_no_request_is_malformed(body: bytes, gateway: Gateway, service: Service, *, chunked: bool) -> None:
    before = stored_image(service.database, 1_000_000)
    parts = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    answer = gateway.put(iter(parts) if chunked else body, Content_Type="application/json")
    is_an_error(answer, 400, "InvalidParameter", "malformed_message")
    assert stored_image(service.database, 1_000_000) == before


def test_a_body_without_end_is_not_read_to_its_end(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as line:
        line.sendall(f"PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        line.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n" + b"1\r\n \r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_length_that_is_too_much_is_refused_before_the_body(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as line:
        line.sendall(f"PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.0"])
def test_who_offers_another_protocol_is_answered_in_this_one(offer: str, gateway: Gateway) -> None:
    """As Java's HttpClient does with each request, and `curl --http2`."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offer, "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    for body in (b'{"id":1000000}', iter([b'{"id":', b"1000000}"])):
        assert gateway.put(body, **headers).status == 200
    assert gateway.ask("GET", "/healthz", **headers).status == 200


@pytest.mark.parametrize(
    "raw", [b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
def test_what_is_no_request_is_told_so_in_the_same_form(raw: bytes, gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as line, line.makefile("rb") as heard:
        line.sendall(raw)
        head, body = heard.read().split(b"\r\n\r\n")
    headers = dict(each.lower().split(": ") for each in head.decode().split("\r\n")[1:])
    is_an_error(Answer(int(head.split()[1]), headers, body), 400, "InvalidParameter", "malformed_message")


def test_a_token_that_no_worker_reads_is_not_sent_on(gateway: Gateway, service: Service) -> None:
    answer = gateway.put({"id": 1_000_000}, Authorization="Bearer " + "x" * 2_000_000)
    is_an_error(answer, 400, "InvalidParameter", "malformed_message")
    assert not service.broker.exists(Keys().dead)


def test_callers_who_hang_up_with_more_on_the_way_are_no_fault(gateway: Gateway) -> None:
    request = f'PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{{"id":1000000}}'.encode()
    for end in (b"", b"\x00"):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", gateway.port)) as line:
                line.sendall(request * 3 + end)
    assert gateway.put({"id": 1_000_000}).status == 200
    assert "Traceback" not in gateway.log.read_text()


def test_content_of_any_type_is_read_as_json(gateway: Gateway, service: Service) -> None:
    image = service.image()
    for kind in ("application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain"):
        assert gateway.put({"id": image["id"]}, Content_Type=kind).status == 200


# --- other routes ---


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", ROUTE, 405, "MethodNotAllowed"),
        ("POST", ROUTE, 405, "MethodNotAllowed"),
        ("DELETE", ROUTE, 405, "MethodNotAllowed"),
        ("PUT", ROUTE + "/", 404, "NotFound"),
        ("PUT", ROUTE + "/1", 404, "NotFound"),
        ("GET", "/", 404, "NotFound"),
        ("PUT", "/" + "x" * 3000, 404, "NotFound"),
    ],
)
def test_another_route_is_an_error_in_the_same_form(
    method: str, path: str, status: int, code: str, gateway: Gateway
) -> None:
    answer = gateway.ask(method, path, {"id": 1})
    is_an_error(answer, status, code, "unknown_route")
    assert (answer.headers.get("allow") == "PUT") == (status == 405)


# --- headers ---


def test_a_resend_under_the_same_key_gets_the_first_answer(gateway: Gateway, service: Service) -> None:
    image, key = service.image(), f"key-{uuid.uuid4()}"
    first, again = (gateway.put({"id": image["id"], "os_name": "x"}, Idempotency_Key=key) for _ in range(2))
    quoted = gateway.put({"id": image["id"], "os_name": "x"}, Idempotency_Key=f'"{key}"')
    other = gateway.put({"id": image["id"], "os_name": "y"}, Idempotency_Key=key)
    assert (first.status, first.headers["etag"], first.headers["x-request-id"]) == (200, '"2"', key)
    assert again.body == quoted.body == first.body
    is_an_error(other, 400, "InvalidParameter", "request_id_reused")
    assert len(stored_revisions(service.database, image["id"])) == 1


def test_a_request_id_is_made_where_none_is_given(gateway: Gateway, service: Service) -> None:
    answers = [gateway.put({"id": service.image()["id"]}) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(uuid.UUID(each) for each in ids)


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256, '"', "a/b"])
def test_a_key_that_cannot_be_a_request_id_is_refused(key: str, gateway: Gateway) -> None:
    is_an_error(gateway.put({"id": 1}, Idempotency_Key=key), 400, "InvalidParameter", "malformed_message")


def test_an_entity_tag_is_a_condition(gateway: Gateway, service: Service) -> None:
    image = service.image()

    def change(if_match: str) -> Answer:
        return gateway.put({"id": image["id"], "description": str(uuid.uuid4())}, If_Match=if_match)

    first = change('"1"')
    assert (first.status, first.headers["etag"]) == (200, '"2"')
    for tag in ('"1"', 'W/"2"', '"nothing-of-ours"', '""', '"99999999999999999999"'):
        is_an_error(change(tag), 412, "PreconditionFailed")
    for tag in ("2", '"2", "3"', "x"):
        is_an_error(change(tag), 400, "InvalidParameter", "malformed_message")
    assert change("*").status == change('"3"').status == 200


# --- many ---


def test_two_hundred_callers_at_once_are_all_answered(gateway: Gateway, service: Service) -> None:
    images = [service.image() for _ in range(200)]
    gateway.put({"id": images[0]["id"]})
    before = len(service.results.client_list())
    with ThreadPoolExecutor(200) as threads:
        asked = threads.map(lambda image: gateway.put({"id": image["id"], "description": "one of many"}), images)
        assert {answer.status for answer in asked} == {200}
    assert len(service.results.client_list()) <= before + 1
    assert stored_image(service.database, images[-1]["id"])["description"] == "one of many"


# --- the documents ---


def test_the_documentation_is_served_without_other_peoples_servers(gateway: Gateway) -> None:
    assert gateway.ask("GET", "/openapi.json").document == OPENAPI
    for page in ("/docs", "/redoc"):
        html = gateway.ask("GET", page).body.decode()
        sources = re.findall(r'(?:src|href)="([^"]+)"', html)
        assert sources
        assert all(source.startswith("/") and gateway.ask("GET", source).status == 200 for source in sources)


def _examples() -> Iterator[Any]:
    operation = OPENAPI["paths"][ROUTE]["put"]
    for part in (operation["requestBody"], *operation["responses"].values()):
        content = part["content"]["application/json"]
        for name, example in content["examples"].items():
            yield pytest.param(content["schema"]["$ref"].split("/")[-1], example["value"], id=name)


@pytest.mark.parametrize(("schema", "example"), [*_examples()])
def test_each_example_is_what_its_schema_says(schema: str, example: Any) -> None:
    Draft202012Validator.check_schema(OPENAPI["components"]["schemas"][schema])
    Draft202012Validator(OPENAPI["components"]["schemas"][schema]).validate(example)


def test_the_document_has_every_status() -> None:
    statuses = {str(code.status) for code in contract.CODES.values()} | {"200", "503"}
    assert set(OPENAPI["paths"][ROUTE]["put"]["responses"]) == statuses
