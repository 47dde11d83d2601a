"""Schemathesis against the gateway, from the document that it serves itself, with a token and without."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import an_image, load
from tests.contract.budget import LONG
from tests.contract.wallet import Wallet
from tests.gateways import Gateway, running_gateway
from tests.integration.conftest import NewDatabase
from tests.service import service_at
from tests.workers import running_worker

#: Requests of the last phase, and seconds for all of them.
EXAMPLES, SECONDS = (3000, 300) if LONG else (40, 8)
#: What no document can say: that a name is taken, a revision passed, or that a name begins with white space.
EXCLUDED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def gateway(module_redis: tuple[str, str], new_database: NewDatabase, purse: Wallet) -> Iterator[Gateway]:
    with service_at(*module_redis, new_database("sqlite")) as service:
        load(service.database, *(an_image(number) for number in range(1, 6)))
        keys = {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(purse.public)}
        with running_worker(service.environment | keys), running_gateway(*module_redis) as gateway:
            yield gateway
            assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize("kind", ["orders", None])
def test_it_answers_as_its_document_says(gateway: Gateway, purse: Wallet, kind: str | None, tmp_path: Path) -> None:
    # By its command: its plugin does not know this pytest.
    words = [Path(sys.executable).parent / "schemathesis", "run", f"http://127.0.0.1:{gateway.port}/openapi.json"]
    words += ["--checks=all", f"--exclude-checks={EXCLUDED}", f"--max-examples={EXAMPLES}", f"--max-time={SECONDS}"]
    words += ["--continue-on-failure", "--no-color", *([] if LONG else ["--generation-deterministic", "--no-shrink"])]
    if kind:
        words += ["--header", f"Authorization: Bearer {purse.token(kind, '', None)}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS + 60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) generated", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 20
