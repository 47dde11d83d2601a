"""Who may import whom (docs: architecture), read from the source: the rule that keeps the wheel light."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
OURS = (
    "aries_images",
    "celeryconfig",
    "documents",
    "gateway",
    "models",
    "pytest_aries_images",
    "tasks",
    "tests",
    "worker",
)
#: Those of them that are one file.
FILES = ("celeryconfig", "pytest_aries_images")

#: Which modules of ours each part may import; the longest name that fits a module is its part.
ALLOWED_OF_OURS: dict[str, tuple[str, ...]] = {
    "aries_images": ("aries_images",),
    # A main program too, in a process of its own: the worker, for the tests of others.
    "aries_images.testing._child": OURS,
    "pytest_aries_images": ("aries_images.testing",),
    "models": ("models",),
    # What a task is made from, and the transaction that it runs in.
    "tasks": ("aries_images", "models", "tasks", "worker.task", "worker.database"),
    # Never tasks or models: tasks are loaded by name, through Celery's `include`.
    "worker": ("aries_images.contract", "aries_images.errors", "celeryconfig", "worker"),
    # Main programs.
    "worker.__main__": OURS,
    "worker.commands": OURS,
    # Caller's and worker's spans speak of messages in the same words.
    "worker.spans": ("aries_images.contract", "aries_images.tracing", "worker"),
    "celeryconfig": ("aries_images.contract", "worker.settings"),
    # Its log lines have the form of the worker's: one place says what must not get into either.
    "gateway": ("aries_images", "gateway", "worker.log_lines"),
    # What is written of the contract is made from it, and from the route's document.
    "documents": ("aries_images", "documents", "gateway.openapi"),
}
#: Who may import the packages that are heavy, or that belong to one side of the house.
ALLOWED_OTHERS: dict[str, tuple[str, ...]] = {
    "celery": ("worker", "tasks", "aries_images._broker", "aries_images.aio", "aries_images.testing._child"),
    "kombu": ("worker", "tasks", "celeryconfig", "aries_images._broker", "aries_images.aio"),
    "sqlalchemy": (
        "models",
        "tasks.rows",
        "worker.database",
        "worker.settings",
        "worker.commands",
        "aries_images.testing._child",
    ),
    "alembic": ("models.migrations", "worker.commands"),
    "psycopg": ("models", "tasks.rows", "worker.database", "worker.commands"),
    "pydantic_settings": ("worker.settings",),
    # For development alone.
    "jinja2": ("documents",),
    "yaml": ("documents",),
    # An extra: the first is loaded where spans are asked for, the second loads nothing that is not there already.
    "opentelemetry": ("worker.spans", "aries_images.tracing"),
}


def is_in(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def imported(source: str) -> Iterator[str]:
    """Every module that `source` imports; `from a import b` may mean the module `a.b`, and is read so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(module: str, source: str) -> list[str]:
    """What `module` imports and may not."""
    part = max((part for part in ALLOWED_OF_OURS if is_in(module, part)), key=len)
    found = []
    for name in imported(source):
        top = name.split(".")[0]
        if top in OURS:
            allowed = any(is_in(name, other) for other in ALLOWED_OF_OURS[part])
        else:
            allowed = any(is_in(module, other) for other in ALLOWED_OTHERS.get(top, (module,)))
        if not allowed:
            found.append(name)
    return found


def modules() -> Iterator[tuple[str, Path]]:
    files = [CHECKOUT / f"{name}.py" for name in FILES]
    for package in OURS:
        if package != "tests":
            files += sorted((CHECKOUT / package).rglob("*.py"))
    for file in files:
        yield ".".join(file.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__"), file


@pytest.mark.parametrize(("module", "file"), [*modules()], ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_it_may(module: str, file: Path) -> None:
    assert offences(module, file.read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("aries_images.client", "from models import images"),
        ("aries_images.client", "import sqlalchemy"),
        ("aries_images.contract", "from celery import Celery"),
        ("models.image", "from aries_images import contract"),
        ("tasks.update_image", "from worker.celery import app"),
        ("tasks.apply_updates", "from sqlalchemy import select"),
        ("worker.answers", "import tasks.rows"),
        ("worker.answers", "def later():\n    from models import images"),
        ("worker.answers", "from aries_images import ImageClient"),
        ("worker.tracing", "from opentelemetry import trace"),
        ("worker.consumer", "import sqlalchemy.exc"),
        ("aries_images.testing._service", "from worker.database import Database"),
        ("aries_images.testing._service", "from celery import Celery"),
        ("pytest_aries_images", "from worker.embedded import RedisServer"),
        ("gateway.app", "from worker import task"),
        ("gateway.app", "import kombu"),
        ("gateway.openapi", "from documents import asyncapi"),
        ("gateway.openapi", "import yaml"),
        ("documents.asyncapi", "from worker import settings"),
        ("documents.files", "from gateway import app"),
        ("celeryconfig", "from worker.celery import app"),
        ("worker.celery", "from tests import builders"),
    ],
)
def test_the_rule_sees_an_offence(module: str, line: str) -> None:
    assert len(offences(module, line)) == 1
