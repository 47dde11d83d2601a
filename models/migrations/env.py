"""Run by Alembic for each command: connects, and runs each migration in a transaction of its own, on SQLite too."""

from alembic import context
from sqlalchemy import create_engine, event, pool

from models import metadata

engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
if engine.dialect.name == "sqlite":
    # Python's driver commits before it changes a table; left to itself, half a migration stays when the rest fails.
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        transactional_ddl=True,
        # One that can't be part of a transaction would commit those before it anyhow.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
