"""Whether a host has seen another in its storage."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("host") as batch:
        batch.add_column(
            sa.Column("sees_others", sa.Boolean(), server_default=sa.text("false"), nullable=False)
        )
    op.create_index(
        "ix_host_sees_others", "host", ["id"],
        sqlite_where=sa.text("sees_others = 1"), postgresql_where=sa.text("sees_others"),
    )
    host = sa.table("host", sa.column("facts", sa.Text), sa.column("sees_others", sa.Boolean))
    op.execute(
        host.update().where(host.c.facts.contains('"storage_others": ["', autoescape=True))
        .values(sees_others=True)
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
