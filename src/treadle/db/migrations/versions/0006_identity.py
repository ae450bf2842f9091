"""Users, projects, roles, tokens, and the catalog's own part."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalog_endpoint",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("service_id", sa.String(length=64), nullable=False),
        sa.Column("region_id", sa.String(length=255), nullable=True),
        sa.Column("interface", sa.String(length=8), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_endpoint")),
    )
    op.create_index(
        "ix_catalog_endpoint_region_id", "catalog_endpoint", ["region_id"], unique=False
    )
    op.create_index(
        "ix_catalog_endpoint_service_id", "catalog_endpoint", ["service_id"], unique=False
    )
    op.create_table(
        "catalog_service",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_service")),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("name_key", sa.String(length=510), nullable=False),
        sa.Column("domain_id", sa.String(length=64), nullable=False),
        sa.Column("parent_id", sa.String(length=64), nullable=False),
        sa.Column("is_domain", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("options", sa.Text(), server_default="{}", nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
    )
    op.create_index("ix_project_domain_id", "project", ["domain_id", "name_key"], unique=True)
    op.create_index("ix_project_parent_id", "project", ["parent_id"], unique=False)
    op.create_table(
        "region",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("parent_id", sa.String(length=255), nullable=True),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_region")),
    )
    op.create_table(
        "role",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("name_key", sa.String(length=510), nullable=False),
        sa.Column("domain_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("options", sa.Text(), server_default="{}", nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role")),
    )
    op.create_index("ix_role_domain_id", "role", ["domain_id", "name_key"], unique=True)
    op.create_table(
        "project_tag",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name=op.f("fk_project_tag_project_id_project")
        ),
        sa.PrimaryKeyConstraint("project_id", "tag", name=op.f("pk_project_tag")),
    )
    op.create_index("ix_project_tag_tag", "project_tag", ["tag"], unique=False)
    op.create_table(
        "role_assignment",
        sa.Column("actor_id", sa.String(length=64), nullable=False),
        sa.Column("target_id", sa.String(length=64), nullable=False),
        sa.Column("role_id", sa.String(length=64), nullable=False),
        sa.Column("inherited", sa.Boolean(), nullable=False),
        sa.Column("actor", sa.String(length=5), nullable=False),
        sa.Column("target", sa.String(length=7), nullable=False),
        sa.ForeignKeyConstraint(
            ["role_id"], ["role.id"], name=op.f("fk_role_assignment_role_id_role")
        ),
        sa.PrimaryKeyConstraint(
            "actor_id", "target_id", "role_id", "inherited", name=op.f("pk_role_assignment")
        ),
    )
    op.create_index("ix_role_assignment_role_id", "role_assignment", ["role_id"], unique=False)
    op.create_index("ix_role_assignment_target_id", "role_assignment", ["target_id"], unique=False)
    op.create_table(
        "role_implied",
        sa.Column("prior_id", sa.String(length=64), nullable=False),
        sa.Column("implied_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["implied_id"], ["role.id"], name=op.f("fk_role_implied_implied_id_role")
        ),
        sa.ForeignKeyConstraint(
            ["prior_id"], ["role.id"], name=op.f("fk_role_implied_prior_id_role")
        ),
        sa.PrimaryKeyConstraint("prior_id", "implied_id", name=op.f("pk_role_implied")),
    )
    op.create_index("ix_role_implied_implied_id", "role_implied", ["implied_id"], unique=False)
    op.create_table(
        "user_account",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("name_key", sa.String(length=510), nullable=False),
        sa.Column("domain_id", sa.String(length=64), nullable=False),
        sa.Column("default_project_id", sa.String(length=64), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("options", sa.Text(), server_default="{}", nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["project.id"], name=op.f("fk_user_account_domain_id_project")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
    )
    op.create_index(
        "ix_user_account_domain_id", "user_account", ["domain_id", "name_key"], unique=True
    )
    op.create_table(
        "user_group",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("name_key", sa.String(length=510), nullable=False),
        sa.Column("domain_id", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("extra", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["project.id"], name=op.f("fk_user_group_domain_id_project")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_group")),
    )
    op.create_index("ix_user_group_domain_id", "user_group", ["domain_id", "name_key"], unique=True)
    op.create_table(
        "access_rule",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=1024), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_access_rule_user_id_user_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_rule")),
    )
    op.create_index("ix_access_rule_user_id", "access_rule", ["user_id"], unique=False)
    op.create_table(
        "app_credential",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("unrestricted", sa.Boolean(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("access_rules", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["project.id"], name=op.f("fk_app_credential_project_id_project")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_app_credential_user_id_user_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_app_credential")),
    )
    op.create_index("ix_app_credential_project_id", "app_credential", ["project_id"], unique=False)
    op.create_index("ix_app_credential_user_id", "app_credential", ["user_id", "name"], unique=True)
    op.create_table(
        "group_member",
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["user_group.id"], name=op.f("fk_group_member_group_id_user_group")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_group_member_user_id_user_account")
        ),
        sa.PrimaryKeyConstraint("user_id", "group_id", name=op.f("pk_group_member")),
    )
    op.create_index("ix_group_member_group_id", "group_member", ["group_id"], unique=False)
    op.create_table(
        "token",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("scope_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("methods", sa.Text(), nullable=False),
        sa.Column("audit_ids", sa.Text(), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("app_credential_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_token_user_id_user_account")
        ),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_token")),
    )
    op.create_index("ix_token_app_credential_id", "token", ["app_credential_id"], unique=False)
    op.create_index("ix_token_expires_at", "token", ["expires_at"], unique=False)
    op.create_index("ix_token_scope_id", "token", ["scope_id"], unique=False)
    op.create_index("ix_token_user_id", "token", ["user_id"], unique=False)
    op.create_table(
        "user_password",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user_account.id"], name=op.f("fk_user_password_user_id_user_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_password")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_user_password_user_id", "user_password", ["user_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: the lineage only goes forward")
