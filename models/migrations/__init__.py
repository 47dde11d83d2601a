"""Alembic's migrations, and how a program runs them."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine


def configuration(url: str) -> Config:
    """Alembic's configuration for the database at `url`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at `url` to `revision`; nothing happens where it is there already."""
    command.upgrade(configuration(url), revision)


def level(engine: Engine) -> tuple[str | None, str | None]:
    """The migration that the database stands at, and the newest there is."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, ScriptDirectory.from_config(configuration("")).get_current_head()


def is_of_a_newer_version(revision: str | None) -> bool:
    """Whether a database that stands at `revision` was migrated by a version that this one knows nothing of."""
    scripts = ScriptDirectory.from_config(configuration(""))
    return revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}


__all__ = ["configuration", "is_of_a_newer_version", "level", "upgrade"]
