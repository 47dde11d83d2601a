"""The environment, read once into one frozen object."""

from pathlib import Path
from typing import Annotated, Literal

from kombu.transport import TRANSPORT_ALIASES
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "ARIES_"
#: Characters that a shared secret must have: as many as the hash that it is used with has bytes.
_SECRET_LENGTH = 32


def _database_url(value: str) -> str:
    try:
        backend = make_url(value).get_backend_name()
    except ArgumentError:
        raise ValueError("must be a database URL such as postgresql://user@host/name") from None
    if backend not in ("sqlite", "postgresql"):
        raise ValueError("must begin with sqlite:// or postgresql://")
    return value


def _result_url(value: str) -> str:
    if not value.startswith(("redis://", "rediss://", "unix://", "sentinel://")):
        raise ValueError("must be a Redis URL: results are kept in Redis whatever the broker is")
    return value


def _broker_url(value: str) -> str:
    if "://" not in value or value.partition("://")[0] not in TRANSPORT_ALIASES:
        raise ValueError("must be a broker URL such as redis://host:6379/0")
    return value


def _secret(value: SecretStr) -> SecretStr:
    if 0 < len(value.get_secret_value()) < _SECRET_LENGTH:
        raise ValueError(f"must have at least {_SECRET_LENGTH} characters")
    return value


class Settings(BaseSettings):
    """Every setting of the application, each from the environment variable `ARIES_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    #: Where requests wait and reply events go.
    broker_url: Annotated[str, AfterValidator(_broker_url)] = "redis://127.0.0.1:6379/0"
    #: Where results are kept and announced: Redis, whatever the broker is.
    result_url: Annotated[str, AfterValidator(_result_url)] = "redis://127.0.0.1:6379/1"
    #: The name of the master, where either of them is behind Redis Sentinel.
    sentinel_master: str = ""
    #: SQLite or PostgreSQL.
    database_url: Annotated[str, AfterValidator(_database_url)] = "sqlite:///var/aries.db"
    #: Whether every request must carry a token; `off` is for a desk, and for a queue that nobody else can reach.
    auth: Literal["on", "off"] = "on"
    #: The public keys that tokens are checked with: a JWKS file, or the URL of one.
    jwt_keys: str = ""
    #: A secret shared with the issuer, for tokens signed with HS256; without it those are refused.
    jwt_secret: Annotated[SecretStr, AfterValidator(_secret)] = SecretStr("")
    #: What tokens must have in `iss` (empty: anything) and in `aud`.
    jwt_issuer: str = ""
    jwt_audience: str = "aries-images"
    #: Whether each token must be bound to its one request by `rid` and `dig`.
    jwt_bound: bool = False
    #: Requests a second that one caller may make of one worker; 0 for no limit.
    rate_per_caller: float = Field(0.0, ge=0)
    log: Literal["text", "json"] = "text"
    #: Where a worker serves its figures for Prometheus; port 0: nowhere.
    metrics_port: int = Field(0, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    #: Seconds that a result can be fetched for.
    result_ttl: int = Field(3600, ge=10)
    #: A reply queue keeps its newest entries up to this number, and vanishes this many seconds after the last one.
    reply_queue_max: int = Field(10_000, ge=1)
    reply_queue_ttl: int = Field(3600, ge=10)
    #: Most requests in one transaction.
    batch_max: int = Field(100, ge=1, le=1000)
    #: Seconds that a request is retried for against a database that is busy or away, where it has no deadline.
    retry_seconds: float = Field(30.0, ge=0)
    #: Seconds after which a message that a dead worker held is given to another.
    lease_seconds: float = Field(30.0, ge=2)
    #: Dead letters that are kept, the newest; and from which number on each new one is warned about.
    dead_letters_max: int = Field(10_000, ge=1)
    dead_letters_warn: int = Field(100, ge=1)
    #: Days that the reply to a request is kept for whoever sends or settles it again.
    ledger_days: float = Field(7.0, gt=0)
    #: Days that what a revision changed is kept for; 0: for ever.
    revision_days: float = Field(0.0, ge=0)
    #: Seconds that a worker's loop may stand still before `/healthz` says so.
    health_seconds: float = Field(60.0, ge=2)

    def __repr_args__(self) -> list[tuple[str, object]]:
        """Nothing: URLs hold passwords, and Celery shows its configuration to whoever asks by remote control."""
        return []


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SystemExit: a variable has a wrong value; the message names it in one sentence.
    """
    try:
        settings = Settings()
    except ValidationError as exception:
        error = exception.errors()[0]
        variable = PREFIX + str(error["loc"][0]).upper()
        raise SystemExit(f"{variable}: {error['msg'].removeprefix('Value error, ')}.") from None
    if settings.database_url.startswith("sqlite:///var/"):
        Path("var").mkdir(exist_ok=True)
    return settings
