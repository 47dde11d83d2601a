"""Several hosts: three with a worker each, one with the servers; one is cut off under load and comes back."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from aries_images import contract
from tests.faults.town import Town, until
from tests.servers import PostgresServer
from worker.embedded import RedisServer

HOSTS = 3


class Network:
    """Hosts, each a network namespace with one link to a switch; this process is on the switch's own host."""

    def __init__(self) -> None:
        number = os.getpid() % 100_000
        self._switch = f"as{number}"
        self._hosts = [f"aries-{number}-{host}" for host in range(HOSTS)]
        self._links = [f"al{number}-{host}" for host in range(HOSTS)]
        self._subnet = f"10.213.{number % 250}"
        self.address = f"{self._subnet}.1"

    def build(self) -> None:
        """Lay the cables.

        Raises:
            PermissionError: this process may not.
        """
        if shutil.which("ip") is None:
            raise PermissionError("the package iproute2 is not installed")
        try:
            _ip("link", "add", self._switch, "type", "bridge")
            _ip("addr", "add", f"{self.address}/24", "dev", self._switch)
            _ip("link", "set", self._switch, "up")
            for host, (name, link) in enumerate(zip(self._hosts, self._links, strict=True)):
                _ip("netns", "add", name)
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", link, "master", self._switch, "up")
                _ip("-n", name, "addr", "add", f"{self._subnet}.{host + 2}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            raise PermissionError(f"network namespaces are not permitted here: {error.stderr.strip()}") from error

    def remove(self) -> None:
        """Take everything away, as far as it is there."""
        for words in (*(("netns", "del", name) for name in self._hosts), ("link", "del", self._switch)):
            subprocess.run(["ip", *words], check=False, capture_output=True)  # noqa: S607

    def on(self, host: int) -> list[str]:
        """The words before a command that is to run on a host."""
        return ["ip", "netns", "exec", self._hosts[host]]

    def cut(self, host: int) -> None:
        """Pull the plug: what is sent vanishes, and nobody is told."""
        _ip("link", "set", self._links[host], "down")

    def heal(self, host: int) -> None:
        """Put it in again."""
        _ip("link", "set", self._links[host], "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)  # noqa: S607  # wherever it is


class ReachableRedis(RedisServer):
    """A Redis for other hosts, too."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self._settings |= {"bind": f"127.0.0.1 {address}", "protected-mode": "no"}


class Country(Town):
    """A town whose workers live on other hosts."""

    def __init__(self, stack: ExitStack, folder: Path, network: Network) -> None:
        self._network = network
        super().__init__(stack, folder, own=True)

    def _a_redis(self, *, own: bool) -> str:  # noqa: ARG002  # always its own
        self.redis = self._stack.enter_context(ReachableRedis(self.folder / "redis", self._network.address))
        return self.redis.url().removesuffix("/0")

    def _a_postgres(self, *, own: bool) -> str:  # noqa: ARG002
        server = PostgresServer(self.folder / "postgres", fsync=False, address=self._network.address)
        self.postgres = self._stack.enter_context(server)
        return self.postgres.url

    def settle(self, host: int) -> None:
        """Start a worker on a host."""
        names = {"BROKER": self.broker_url, "RESULT": self.result_url, "DATABASE": self.database_url}
        urls = {f"ARIES_{name}_URL": self._from_afar(url) for name, url in names.items()}
        self.worker(prefix=self._network.on(host), **urls)

    def _from_afar(self, url: str) -> str:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.replace("127.0.0.1", self._network.address)).geturl()

    def answered_by(self, host: int) -> int:
        """How many replies a host's worker has sent."""
        name = self.name_of(self.workers[host])
        entries = self.broker.lrange(contract.REPLY_QUEUE, 0, -1)
        return sum(json.loads(entry)["headers"]["worker"] == name for entry in entries)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.build()
    except PermissionError as error:
        network.remove()
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    yield network
    network.remove()


@pytest.fixture
def there(network: Network, tmp_path: Path) -> Iterator[Country]:
    with ExitStack() as stack:
        there = Country(stack, tmp_path, network)
        for host in range(HOSTS):
            there.settle(host)
        there.ready()
        yield there
        print(there.log()[-20_000:])


def test_a_host_is_cut_off_and_comes_back(there: Country, network: Network, size: Callable[[int, int], int]) -> None:
    book = there.book(timeouts=(3, 10))
    with book.callers(16, size(3000, 20_000)):
        for cut in range(size(1, 6)):
            host = cut % HOSTS
            until(lambda host=host: there.answered_by(host))
            network.cut(host)
            began, before = time.monotonic(), book.answered
            until(lambda before=before: book.answered > before + 100)  # the others go on
            while time.monotonic() < began + 3 * 2:  # three leases
                book.keep_going(200)
                time.sleep(0.05)
            alone = there.answered_by(host)
            network.heal(host)
            back = time.monotonic()
            while there.answered_by(host) <= alone:
                book.keep_going(200)
                assert time.monotonic() < back + 60, "the host does not come back"
                time.sleep(0.05)
            print(f"host {host} answered again {time.monotonic() - back:.1f} s after it was back")
    print(dict(there.settle_accounts(book)), f"the slowest took {book.latencies()[-1]:.1f} s")
