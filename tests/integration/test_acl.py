"""Users of Redis with least privilege (deploy/redis/users.acl): each can do its work, and not that of the others."""

import json
import urllib.request
from collections.abc import Iterator

import pytest
from celery import Celery
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from aries_images import ImageClient, contract
from models.migrations import upgrade
from tests.acl import PASSWORDS, USERS, redis_with_users, refusals, url_for
from tests.builders import a_message
from tests.gateways import running_gateway
from tests.service import Service, service_at
from tests.workers import Worker, running_worker, until
from worker.__main__ import commands
from worker.embedded import RedisServer, free_port
from worker.leases import Keys

#: Where the worker serves its figures.
METRICS = free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_with_users(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def town(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Worker]]:
    """A worker that logged in as `worker`."""
    database_url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'images.db'}"
    upgrade(database_url)
    with service_at(server.url(0), server.url(1), database_url) as service:
        service.image()
        logins = {"ARIES_BROKER_URL": url_for(server, "worker"), "ARIES_RESULT_URL": url_for(server, "worker", 1)}
        environment = service.environment | logins | {"ARIES_LEASE_SECONDS": "2", "ARIES_METRICS_PORT": str(METRICS)}
        with running_worker(environment, asked_at=server.url(0)) as worker:
            yield service, worker


@pytest.fixture
def service(town: tuple[Service, Worker]) -> Iterator[Service]:
    """The service; whoever of its users was refused anything meanwhile is told of at the end."""
    town[0].broker.execute_command("ACL", "LOG", "RESET")
    yield town[0]
    assert refusals(town[0].broker) == []


# --- each can do its work ---


def test_our_client(server: RedisServer, service: Service) -> None:
    queue = "image.replies.anonymous.x"
    with ImageClient(url_for(server, "orders"), url_for(server, "orders", 1)) as client:
        assert client.update(1, description="x").description == "x"
        assert client.settle(client.submit(1, description="y").request_id).description == "y"
    assert service.broker.llen(queue) == 0


def test_its_own_reply_queue(server: RedisServer, service: Service) -> None:
    service.broker.lpush("image.replies.orders.x", *service.broker.lrange(contract.REPLY_QUEUE, 0, 0))
    with ImageClient(url_for(server, "orders"), url_for(server, "orders", 1)) as client:
        assert len(list(client.replies("image.replies.orders.x", timeout=1))) == 1


@pytest.mark.parametrize("options", [{"queue": "image.update"}, {"queue": "image.update", "priority": 9}])
def test_a_stock_celery_caller(server: RedisServer, service: Service, options: dict[str, object]) -> None:
    with Celery(broker=url_for(server, "orders"), backend=url_for(server, "orders", 1), set_as_current=False) as celery:
        assert celery.send_task("image.update", kwargs={"id": 1}, **options).get(timeout=10)["status"] == 200
    until(service.is_idle)


def test_a_worker_that_meets_with_everything(town: tuple[Service, Worker], service: Service) -> None:
    service.push("no message", a_message({}, headers={"task": "another"})[1])
    service.broker.lpush("celery", a_message({"id": 1})[1])
    until(lambda: service.broker.xlen(Keys().dead) == 2 and not service.broker.llen("celery"))
    assert service.celery.control.inspect([town[1].node], timeout=5).stats()
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as response:
        figures = response.read()
    assert b"aries_dead_letters 2.0" in figures
    assert b"aries_broker_writes 1.0" in figures
    until(service.is_idle)


def test_an_operator(server: RedisServer, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIES_BROKER_URL", url_for(server, "operator"))
    service.push("no message")
    until(lambda: service.broker.xlen(Keys().dead))
    for words in (("list",), ("replay", "--all")):
        result = CliRunner().invoke(commands, ["dead", *words])
        assert result.exit_code == 0, result.output
    until(lambda: service.broker.xlen(Keys().dead))
    assert CliRunner().invoke(commands, ["dead", "drop", "--all", "--yes"]).exit_code == 0
    with Celery(broker=url_for(server, "operator"), set_as_current=False) as celery:
        assert celery.control.ping(timeout=2)


def test_an_operator_who_checks(server: RedisServer, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ARIES_BROKER_URL", url_for(server, "operator"))
    monkeypatch.setenv("ARIES_RESULT_URL", url_for(server, "operator", 1))
    result = CliRunner().invoke(commands, ["check", "--json"])
    found = {line["check"]: line["status"] for line in map(json.loads, result.stdout.splitlines())}
    # A server for tests alone, whose queue nobody needs to keep; everyone is let in.
    assert {name for name, status in found.items() if status != "fine"} == {"persistence", "keys"}


def test_a_monitor_such_as_flower(server: RedisServer, service: Service) -> None:
    with Celery(broker=url_for(server, "flower"), set_as_current=False) as celery:
        assert celery.control.inspect(timeout=2).active_queues()
        seen: list[str] = []
        with celery.connection() as connection:
            receiver = celery.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
            consuming = receiver.itercapture(limit=None, timeout=5, wakeup=False)
            next(consuming)
            service.push(a_message({"id": 1})[1])
            until(lambda: (next(consuming) is not None and "task-succeeded" in seen) or "task-received" in seen)


def test_the_gateway(server: RedisServer, service: Service) -> None:
    with running_gateway(url_for(server, "gateway"), url_for(server, "gateway", 1)) as gateway:
        until(lambda: gateway.ask("GET", "/readyz").status == 200)
        assert gateway.put({"id": 1, "description": "by HTTP"}).status == 200
    until(service.is_idle)


#: What KEDA runs to find out how long a list is.
LENGTH = "if redis.call('type', KEYS[1]).ok == 'hash' then return 0 else return redis.call('llen', KEYS[1]) end"


def test_a_scaler_such_as_keda(server: RedisServer, service: Service) -> None:
    with Redis.from_url(url_for(server, "scaler")) as redis:
        assert redis.ping()
        for queue in contract.QUEUES:
            assert redis.eval(LENGTH, 1, queue) == 0
    assert service.is_idle()


# --- and not that of the others ---

REFUSED = {
    "orders": [
        ("BRPOP", "image.update", 1),
        ("RPOP", "image.update"),
        ("LRANGE", "image.update", 0, -1),
        ("DEL", "image.update.leases"),
        ("HSET", "image.update.leases", "a", "b"),
        ("LPUSH", "image.update.dead", "x"),
        ("XADD", "image.update.dead", "*", "a", "b"),
        ("XRANGE", "image.update.dead", "-", "+"),
        ("BRPOP", "image.replies", 1),
        ("BRPOP", "image.replies.billing", 1),
        ("LPUSH", "image.replies.billing", "x"),
        ("HGETALL", "image.replies.billing:unacked"),
        ("SET", "celery-task-meta-x", "forged"),
        ("PUBLISH", "celery-task-meta-x", "forged"),
        ("PSUBSCRIBE", "celery-task-meta-*"),
        ("PUBLISH", "/0.celery.pidbox", '{"method":"shutdown"}'),
        ("SUBSCRIBE", "/0.celeryev/worker.heartbeat"),
        ("LPUSH", "celery", "x"),
        ("EVAL", "return 1", 0),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CLIENT", "LIST"),
        ("ACL", "LIST"),
        ("MONITOR",),
        ("SHUTDOWN",),
    ],
    "worker": [
        ("FLUSHALL",),
        ("CONFIG", "SET", "maxmemory", 1),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("ACL", "SETUSER", "mallory", "on"),
        ("GET", "another-application"),
        ("SUBSCRIBE", "another-application"),
        ("SHUTDOWN",),
        ("XRANGE", "image.update.dead", "-", "+"),
    ],
    "flower": [
        ("LPUSH", "image.update", "x"),
        ("BRPOP", "image.update", 1),
        ("DEL", "image.update"),
        ("GET", "celery-task-meta-x"),
        ("SUBSCRIBE", "celery-task-meta-x"),
        ("LPUSH", "image.replies", "x"),
        ("HSET", "image.update.leases", "a", "b"),
        ("EVAL", "return 1", 0),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
    ],
    "operator": [
        ("DEL", "image.update.leases"),
        ("GET", "celery-task-meta-x"),
        ("SUBSCRIBE", "celery-task-meta-x"),
        ("LPUSH", "image.replies", "x"),
        ("CONFIG", "SET", "maxmemory", 1),
        ("FLUSHALL",),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
    ],
    "gateway": [
        ("BRPOP", "image.update", 1),
        ("LRANGE", "image.update", 0, -1),
        ("LPUSH", "image.update.dead", "x"),
        ("LPUSH", "image.replies", "x"),
        ("SET", "celery-task-meta-x", "forged"),
        ("PUBLISH", "celery-task-meta-x", "forged"),
        ("PSUBSCRIBE", "celery-task-meta-*"),
        ("EVAL", "return 1", 0),
        ("SCAN", 0),
        ("FLUSHALL",),
    ],
    "scaler": [
        ("LPUSH", "image.update", "x"),
        ("LRANGE", "image.update", 0, -1),
        ("DEL", "image.update"),
        ("LLEN", "image.replies"),
        ("GET", "celery-task-meta-x"),
        ("SUBSCRIBE", "celery-task-meta-x"),
        ("FLUSHALL",),
    ],
}


@pytest.mark.parametrize(("user", "command"), [(user, command) for user in REFUSED for command in REFUSED[user]])
def test_refused(server: RedisServer, user: str, command: tuple[object, ...]) -> None:
    with Redis.from_url(url_for(server, user)) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*command)


def test_a_script_has_no_more_rights_than_who_runs_it(server: RedisServer) -> None:
    with Redis.from_url(url_for(server, "scaler")) as redis, pytest.raises(ResponseError, match="no permissions"):
        redis.eval("return redis.call('lpush', KEYS[1], 'x')", 1, "image.update")


def test_nobody_comes_in_without_a_name() -> None:
    assert "user default off" in USERS.read_text().splitlines()


def test_passwords_in_urls_are_written_nowhere(town: tuple[Service, Worker]) -> None:
    service, worker = town
    inspect = service.celery.control.inspect([worker.node], timeout=5)
    for told in (inspect.conf(with_defaults=True), inspect.stats(), inspect.report(), worker.log.read_text()):
        assert told
        assert PASSWORDS["worker"] not in str(told)
    for redis in (service.broker, service.results):
        assert not [name for name in redis.scan_iter() if PASSWORDS["worker"].encode() in (redis.dump(name) or b"")]
