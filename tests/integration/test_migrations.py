"""The migrations make what the models say; a table of the platform's own is adopted, or refused as a whole."""

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import IntegrityError

from models import metadata
from models.migrations import level, upgrade

ROW = "INSERT INTO images VALUES ({id}, '{name}', '{os_type}', 'CentOS', '', '/p', '2024-01-01', '2024-01-01')"


def engine_for(url: str) -> Engine:
    driver = "sqlite" if url.startswith("sqlite") else "postgresql+psycopg"
    return create_engine(make_url(url).set(drivername=driver))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def platform(engine: Engine, database_url: str) -> str:
    """A database that nobody has migrated; its URL."""
    with engine.begin() as connection:
        for table in ("image_revisions", "requests", "images", "alembic_version"):
            connection.execute(text(f"DROP TABLE {table}"))
    return database_url


def lay_out(engine: Engine, *rows: str, name: str = "varchar(255) NOT NULL", moment: str = "timestamptz") -> None:
    """The platform's own table of images."""
    with engine.begin() as connection:
        connection.execute(
            text(
                f"CREATE TABLE images (id integer PRIMARY KEY, name {name}, os_type varchar(16), os_name varchar(255),"
                f" description text, source_path text, created_at {moment}, updated_at {moment})"
            )
        )
        for row in rows:
            connection.execute(text(row))


def test_what_is_migrated_is_what_the_models_say(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    current, newest = level(engine)
    assert current == newest


def test_an_images_table_is_adopted_and_its_names_become_unique(engine: Engine, platform: str) -> None:
    lay_out(engine, ROW.format(id=1, name="one", os_type="linux"), ROW.format(id=2, name="two", os_type="windows"))
    upgrade(platform)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT id, name, revision FROM images ORDER BY id")).all() == [
            (1, "one", 1),
            (2, "two", 1),
        ]
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("UPDATE images SET name = 'one' WHERE id = 2"))


def test_a_partial_unique_index_does_not_make_the_names_unique(engine: Engine, platform: str) -> None:
    lay_out(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE UNIQUE INDEX some_names ON images (name) WHERE id > 5"))
    upgrade(platform)
    assert ["name"] in [unique["column_names"] for unique in inspect(engine).get_unique_constraints("images")]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([ROW.format(id=1, name="one", os_type="BSD")], "images 1 "),
        (["INSERT INTO images (id, name) VALUES (7, 'one')"], "images 7 "),
        ([ROW.format(id=1, name="x", os_type="linux"), ROW.format(id=2, name="x", os_type="linux")], "(?i)unique"),
    ],
    ids=["another os_type", "nulls", "one name twice"],
)
def test_rows_that_could_not_be_answered_for_are_refused_and_nothing_is_changed(
    engine: Engine, platform: str, rows: list[str], why: str
) -> None:
    lay_out(engine, *rows)
    with pytest.raises((RuntimeError, IntegrityError), match=why):
        upgrade(platform)
    assert inspect(engine).get_table_names() in (["images"], ["alembic_version", "images"])
    assert "revision" not in {column["name"] for column in inspect(engine).get_columns("images")}


def test_a_column_missing_is_named(engine: Engine, platform: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE images (id integer, name text)"))
    with pytest.raises(RuntimeError, match="os_type, os_name, description, source_path, created_at, updated_at"):
        upgrade(platform)


def test_times_without_zone_are_refused_where_the_database_has_zones(engine: Engine, platform: str) -> None:
    lay_out(engine, moment="timestamp")
    if engine.dialect.name == "sqlite":
        upgrade(platform)
        return
    with pytest.raises(RuntimeError, match="ALTER TABLE images ALTER COLUMN created_at TYPE timestamptz"):
        upgrade(platform)
