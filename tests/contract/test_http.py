"""The HTTP route before a live worker: requests that are HTTP and answered by the model, and bytes that are not."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.asks import ROUTE, Ask, answers_in, asks, expected
from tests.contract.budget import budget
from tests.contract.exchange import Exchange, fits
from tests.contract.wallet import Wallet
from tests.gateways import FORM, Answer, Gateway, running_gateway
from tests.integration.conftest import NewDatabase
from tests.service import Service, service_at
from tests.workers import running_worker

#: Requests that are on their way on one connection.
AT_ONCE = 20
#: What goes wrong here ends like this, and never otherwise.
STATUSES = {200, 400, 401, 403, 404, 405, 412, 429, 504}


@pytest.fixture(scope="module")
def service(module_redis: tuple[str, str], new_database: NewDatabase, purse: Wallet) -> Iterator[Service]:
    with service_at(*module_redis, new_database("sqlite")) as service:
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(purse.public)}
        with running_worker(service.environment):
            yield service


@pytest.fixture(scope="module")
def gateway(service: Service) -> Iterator[Gateway]:
    with running_gateway(service.broker_url, service.result_url) as gateway:
        yield gateway
        assert gateway.is_up()
        assert "Traceback" not in gateway.log.read_text()


@pytest.fixture(scope="module")
def stalled(gateway: Gateway) -> Iterator[socket.socket]:
    """A caller whose body stops half-way: there from the beginning, so that nobody has to wait for it."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=15) as line:
        line.sendall(f'PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n{{"id"'.encode())
        yield line


@pytest.fixture(scope="module")
def exchange(service: Service, purse: Wallet) -> Exchange:
    return Exchange(service, purse.proofs)


def heard(port: int, raw: bytes) -> bytes:
    """Everything that comes until the gateway hangs up; it must, for nothing more is sent."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        try:
            line.sendall(raw)
            while some := line.recv(1 << 16):
                said += some
        except ConnectionError:
            pass  # it has hung up on the rest
    return said


def is_in_form(answer: Answer, method: str) -> bool:
    assert answer.status in STATUSES, answer
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD" and answer.status != 200:
        assert answer.document.keys() == FORM
        assert answer.document["request_id"] == answer.headers["x-request-id"]
    return True


def is_expected(ask: Ask, answer: Answer, exchange: Exchange) -> bool:
    said = {} if ask.method == "HEAD" else answer.document
    request_id = answer.headers["x-request-id"]
    status, document = expected(ask, exchange.world, said.get("updated_at", ""), request_id)
    assert answer.status == status, (ask, answer)
    if status == 200:
        assert said == document["image"]
        assert answer.headers["etag"] == f'"{document["revision"]}"'
        return True
    if document:
        code = {name: document["error"][name] for name in ("code", "message", "details")}
        error = {name: said[name] for name in ("code", "message", "details")}
        assert fits({"error": code}, {"error": error}), (ask, said)
    assert request_id == document.get("request_id", request_id)
    assert (answer.headers.get("allow") == "PUT") == (status == 405)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    return True


@given(data=st.data())
@budget(30, 1500)
@pytest.mark.usefixtures("stalled")
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_what_is_http_is_answered_in_order_as_the_contract_says(
    gateway: Gateway, exchange: Exchange, purse: Wallet, data: st.DataObject
) -> None:
    exchange.begin()
    batch = data.draw(st.lists(asks(purse), min_size=AT_ONCE, max_size=AT_ONCE))
    raw = b"".join(ask.raw(last=ask is batch[-1]) for ask in batch)
    answers = answers_in(heard(gateway.port, raw), tuple(ask.method for ask in batch))
    assert len(answers) == len(batch)
    for ask, answer in zip(batch, answers, strict=True):
        assert is_in_form(answer, ask.method)
        assert is_expected(ask, answer, exchange)


# --- what is no HTTP, or nearly ---

HEAD = f"PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
BODY = '{"id":1}'
#: Lines in place of the framing, and what follows the head.
FRAMINGS: list[tuple[str, bytes]] = [
    ("Content-Length: 8\r\nContent-Length: 3", b'{"id":1}'),
    ("Content-Length: 8\r\nTransfer-Encoding: chunked", b'{"id":1}'),
    *((f"Content-Length: {length}", b'{"id":1}') for length in ("-8", "+8", "x", "", "3", "0", "8 8", "9" * 30, str(2**64 - 1), "0x8", "65537")),
    *(("Transfer-Encoding: chunked", body) for body in (b"zz\r\n", b"-1\r\n", b"0\r\n\r\n", b"fffffffffffffffff\r\n", b"10000\r\n" + b" " * 65_536 + b"\r\n1\r\n \r\n")),
    ("Transfer-Encoding: chunked", b'8;a="b"\r\n{"id":1}\r\n0\r\nX-Request-Id: y\r\n\r\n'),
    ("Transfer-Encoding: gzip", b'{"id":1}'),
    ("Transfer-Encoding: gzip, chunked", b'8\r\n{"id":1}\r\n0\r\n\r\n'),
    ("Content-Encoding: gzip\r\nContent-Length: 8", b'{"id":1}'),
    ("Authorization: \x00\r\nContent-Length: 8", b'{"id":1}'),
    (" Folded: x\r\nContent-Length: 8", b'{"id":1}'),
    ("No-Colon\r\nContent-Length: 8", b'{"id":1}'),
    ("Space : x\r\nContent-Length: 8", b'{"id":1}'),
    ("Expect: 100-continue\r\nContent-Length: 8", b'{"id":1}'),
    ("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 8", b'{"id":1}'),
]  # fmt: skip
FIRST_LINES = [
    "FOO / HTTP/1.1", "CONNECT x:443 HTTP/1.1", "OPTIONS * HTTP/1.1", "GET /x HTTP/1.2", "GET / HTTP/0.9", "GET /", "", "GET", "GET \xff HTTP/1.1", "PRI * HTTP/2.0",
    "GET x HTTP/1.1", "GET  HTTP/1.1", "GET /" + "x" * 70_000 + " HTTP/1.1", "\x16\x03\x01\x02\x00\x01", "\x00", "get / HTTP/1.1", "GET / HTTP/1.1 x", "GET http://[ HTTP/1.1",
    "GET /static-offline-docs/%00 HTTP/1.1", "GET /static-offline-docs/../x HTTP/1.1", "GET /static-offline-docs/%ff HTTP/1.0", "POST /static-offline-docs HTTP/1.1",
    "POST /openapi.json HTTP/1.1", "DELETE /docs HTTP/1.1", "POST /healthz HTTP/1.1",
]  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        *((HEAD + lines + "\r\n\r\n").encode("latin-1") + body for lines, body in FRAMINGS),
        *((line + "\r\nHost: x\r\nConnection: close\r\n\r\n").encode("latin-1") for line in FIRST_LINES),
    ],
)
def test_what_is_broken_is_told_so_in_the_one_form(gateway: Gateway, raw: bytes) -> None:
    answers = answers_in(heard(gateway.port, raw))
    assert answers
    assert all(is_in_form(answer, "") for answer in answers)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A request, or two, of which some bytes are changed, left out or said twice."""
    raw = bytearray((HEAD + "Content-Length: 8\r\n\r\n" + BODY).replace("close", "keep-alive").encode() * 2)
    for _ in range(draw(st.integers(1, 4))):
        place, size = draw(st.integers(0, len(raw) - 1)), draw(st.sampled_from([0, 1, 1, 2, 20]))
        put = draw(
            st.sampled_from(
                [
                    b"",
                    b"\r\n",
                    b"\r",
                    b"\n",
                    b":",
                    b" ",
                    b"\x00",
                    b"\xff",
                    b"0",
                    b"chunked",
                    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
                ]
            )
        )
        raw[place : place + size] = put
    return bytes(raw)


@given(raw=mutants())
@budget(100, 10_000)
def test_no_mutant_of_a_request_is_answered_otherwise(gateway: Gateway, raw: bytes) -> None:
    answers = answers_in(heard(gateway.port, raw + bytes(200)))  # whatever it still waits for comes, and is no HTTP
    assert answers
    assert all(is_in_form(answer, "") for answer in answers)


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(stalled: socket.socket) -> None:
    raw = b""
    while not raw.endswith(b"}") and (more := stalled.recv(4096)):  # head and body may come one after the other
        raw += more
    [answer] = answers_in(raw)
    assert is_in_form(answer, "PUT")
    assert answer.document["details"][0]["message"] == "the body did not come within 10 seconds"
