"""TLS to Redis, with certificates on both ends: `rediss://`, for worker and client alike.

The embedded server is built without TLS, so a TLS end of the test's own stands before it; certificates, handshakes and
refusals are real.
"""

import ipaddress
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aries_images import ImageClient, OutcomeUnknown
from tests.flowers import ask
from tests.service import service_at
from tests.workers import running_worker, until
from worker.embedded import ServerFailedError, end_child, free_port, start_child
from worker.flower import FlowerServer


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = generate_private_key(SECP256R1())
        self.file = folder / f"{name}.pem"
        authority = x509.BasicConstraints(ca=True, path_length=None)
        made = self._builder(self._name, self._key).add_extension(authority, critical=True).sign(self._key, SHA256())
        self.file.write_bytes(made.public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    def issue(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """The files of a certificate and of its key."""
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        made = self._builder(subject, key).add_extension(names, critical=False).sign(self._key, SHA256())
        certificate, private = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, private


#: Run as a process of its own: listens on a port, with a certificate and its key, asks for one of an authority's, and
#: passes on what it gets to another port.
_TLS_END = """
import asyncio, contextlib, ssl, sys
port, certificate, key, authority, target = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.load_verify_locations(authority)
context.verify_mode = ssl.CERT_REQUIRED

async def pump(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()

async def serve(reader, writer):
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", int(target))
    await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(port), ssl=context) as server:
        await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def tls_before(target: int, authority: Authority) -> Iterator[int]:
    """The port of a TLS end that passes on what it gets to `target`."""
    port = free_port()
    words = [str(port), *authority.issue("redis"), authority.file, str(target)]
    process = start_child([sys.executable, "-c", _TLS_END, *words], stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    yield port
    end_child(process, signal.SIGTERM)


@dataclass
class Secured:
    port: int
    ours: Authority
    folder: Path

    def url(self, db: str, authority: Path | None = None, login: tuple[Path, Path] | None = None) -> str:
        options = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={authority or self.ours.file}"
        if login:
            options += f"&ssl_certfile={login[0]}&ssl_keyfile={login[1]}"
        return f"rediss://127.0.0.1:{self.port}/{db}?{options}"


@pytest.fixture
def secured(broker_url: str, tmp_path: Path) -> Iterator[Secured]:
    ours = Authority(tmp_path, "ours")
    with tls_before(urlsplit(broker_url).port or 0, ours) as port:
        yield Secured(port, ours, tmp_path)


def test_worker_client_and_plain_celery_over_tls(
    secured: Secured, broker_url: str, result_url: str, sqlite_url: str
) -> None:
    login = secured.ours.issue("caller")
    urls = [secured.url(urlsplit(url).path.strip("/"), login=login) for url in (broker_url, result_url)]
    with service_at(broker_url, result_url, sqlite_url) as service:
        image = service.image()
        environment = service.environment | {"ARIES_BROKER_URL": urls[0], "ARIES_RESULT_URL": urls[1]}
        with running_worker(environment, asked_at=broker_url) as worker, ImageClient(*urls) as client:
            assert client.update(image["id"], description="over TLS").description == "over TLS"
            with Celery(broker=urls[0], backend=urls[1], set_as_current=False) as celery:
                sent = celery.send_task("image.update", kwargs={"id": image["id"]}, queue="image.update")
                assert sent.get(timeout=10)["status"] == 200
            assert service.wait_for_events(sent.id)
            assert "InsecureRequest" not in worker.log.read_text()


def test_flower_over_tls(secured: Secured) -> None:
    flower = FlowerServer(secured.folder / "flower", secured.url("0", login=secured.ours.issue("flower")))
    try:
        flower.start()
    except ServerFailedError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    try:
        until(lambda: "image.update.bulk" in ask(flower.port, "/broker", flower.login)[1], 20)
        until(lambda: "Connected to rediss://" in (flower.folder / "server.log").read_text())
    finally:
        flower.stop()


@pytest.mark.parametrize("wrong", ["no certificate", "of a stranger", "a strange server"])
def test_who_is_not_known_does_not_come_through(secured: Secured, wrong: str) -> None:
    stranger = Authority(secured.folder, "stranger")
    logins = {"no certificate": None, "of a stranger": stranger.issue("x"), "a strange server": secured.ours.issue("y")}
    authority = stranger.file if wrong == "a strange server" else None
    urls = [secured.url(db, authority, logins[wrong]) for db in "01"]
    with ImageClient(*urls) as client, pytest.raises(OutcomeUnknown):
        client.update(1, timeout=1)
