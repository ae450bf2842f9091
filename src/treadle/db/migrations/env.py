"""Alembic's entry point; `treadle.db.migrate` hands it a connection."""

from alembic import context

from treadle.db.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    transaction_per_migration=False,
)
context.run_migrations()
