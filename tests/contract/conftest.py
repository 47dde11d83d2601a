"""A live worker that asks for tokens, on SQLite and on PostgreSQL, and wallets to ask it with."""

from collections.abc import Iterator

import pytest

from tests.contract.budget import LONG
from tests.contract.wallet import Wallet
from tests.integration.conftest import NewDatabase, module_redis, new_database
from tests.service import Service, service_at

__all__ = ["module_redis", "new_database"]

pytest.register_assert_rewrite("tests.contract.exchange")


@pytest.fixture(scope="session")
def purse(tmp_path_factory: pytest.TempPathFactory) -> Wallet:
    return Wallet(tmp_path_factory.mktemp("wallet"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, module_redis: tuple[str, str], new_database: NewDatabase, purse: Wallet
) -> Iterator[Service]:
    """A service without a worker, on either database."""
    with service_at(*module_redis, new_database(request.param)) as service:
        service.environment |= {"ARIES_AUTH": "on", "ARIES_JWT_KEYS": str(purse.public), "ARIES_LEASE_SECONDS": "2"}
        yield service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long form takes minutes; pytest hands over the tests of other folders, too."""
    for item in items:
        if LONG and "tests/contract" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(3600))
