"""Every table. The Alembic lineage in `migrations/` makes exactly this; a test compares them.

Times are seconds since 1970 (UTC) of the database's clock. Memory and disk are in MiB unless the
name says otherwise.
"""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BigId = BigInteger().with_variant(Integer, "sqlite")


def _uuid() -> Column[str]:
    """The name of a row that the world sees; made here where the writer does not care."""
    return Column(
        "uuid", String(36), nullable=False, server_default="", default=lambda: str(uuid4())
    )


meta = Table(
    "meta", metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

work = Table(
    "work", metadata,
    Column("kind", String(16), primary_key=True),
    Column("id", String(100), primary_key=True),
    Column("lane", Integer, nullable=False, server_default="0"),
    Column("due_at", Float, nullable=False),
    Column("wake", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float, nullable=False, server_default="0"),
    Column("token", Integer, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    Index("ix_work_due_at", "due_at"),
)

host = Table(
    "host", metadata,
    Column("id", Integer, primary_key=True),
    Column("uri", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("status", String(8), nullable=False, server_default="new"),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("note", Text),
    Column("error", Text),
    Column("virt_type", String(16), nullable=False, server_default="auto"),
    Column("facts", Text),
    Column("cpu_ratio", Float, nullable=False),
    Column("memory_ratio", Float, nullable=False),
    Column("disk_ratio", Float, nullable=False),
    Column("reserved_memory_mib", Integer, nullable=False),
    Column("vcpus_limit", BigInteger, nullable=False, server_default="0"),
    Column("memory_limit_mib", BigInteger, nullable=False, server_default="0"),
    Column("disk_limit_mib", BigInteger, nullable=False, server_default="0"),
    Column("vcpus_used", BigInteger, nullable=False, server_default="0"),
    Column("memory_used_mib", BigInteger, nullable=False, server_default="0"),
    Column("disk_used_mib", BigInteger, nullable=False, server_default="0"),
    Column("instances", Integer, nullable=False, server_default="0"),
    Column("added_at", Float, nullable=False),
    Column("seen_at", Float),
    _uuid(),
    Column("forced_down", Boolean, nullable=False, server_default=text("false")),
    Column("fence", String(8), nullable=False, server_default=""),
    Column("fenced_at", Float),  # of what `fence` says
    Column("fence_note", Text),
    Column("sees_others", Boolean, nullable=False, server_default=text("false")),  # its storage
    Column("cells", Text, nullable=False, server_default=""),  # of NUMA, and what is taken of them
    Index("ix_host_uuid", "uuid", unique=True),
    Index("ix_host_sees_others", "id", sqlite_where=text("sees_others = 1"),
          postgresql_where=text("sees_others")),
    CheckConstraint("vcpus_used >= 0 AND vcpus_used <= vcpus_limit", name="vcpus"),
    CheckConstraint("memory_used_mib >= 0 AND memory_used_mib <= memory_limit_mib", name="memory"),
    CheckConstraint("disk_used_mib >= 0 AND disk_used_mib <= disk_limit_mib", name="disk"),
    CheckConstraint("instances >= 0", name="instances"),
    sqlite_autoincrement=True,
)

image = Table(
    "image", metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("source", Text, nullable=False, unique=True),
    Column("state", String(8), nullable=False, server_default="new"),
    Column("path", Text),
    Column("sha256", String(64)),
    Column("format", String(8)),
    Column("size_bytes", BigInteger),
    Column("virtual_bytes", BigInteger),
    Column("error", Text),
    Column("added_at", Float, nullable=False),
    _uuid(),
    Column("project_id", String(64), nullable=False, server_default=""),
    Column("visibility", String(9), nullable=False, server_default="public"),
    Column("protected", Boolean, nullable=False, server_default=text("false")),
    Column("hidden", Boolean, nullable=False, server_default=text("false")),
    Column("min_disk_gib", Integer, nullable=False, server_default="0"),
    Column("min_memory_mib", Integer, nullable=False, server_default="0"),
    Column("container_format", String(16)),
    Column("disk_format", String(16)),
    Column("checksum", String(32)),
    Column("sha512", String(128)),
    Column("properties", Text, nullable=False, server_default="{}"),
    Column("updated_at", Float),
    Column("deleted_at", Float),
    Column("blob", String(64)),
    Column("blob_bytes", BigInteger),
    Column("task", Text),
    Index("ix_image_uuid", "uuid", unique=True),
    Index("ix_image_project_id", "project_id"),
    Index("ix_image_sha256", "sha256"),
    sqlite_autoincrement=True,
)

image_tag = Table(
    "image_tag", metadata,
    Column("image_id", Integer, ForeignKey("image.id"), primary_key=True),
    Column("tag", String(255), primary_key=True),
)

image_member = Table(
    "image_member", metadata,
    Column("image_id", Integer, ForeignKey("image.id"), primary_key=True),
    Column("project_id", String(64), primary_key=True),
    Column("status", String(8), nullable=False, server_default="pending"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("ix_image_member_project_id", "project_id"),
)

host_image = Table(
    "host_image", metadata,
    Column("host_id", Integer, ForeignKey("host.id"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("state", String(8), nullable=False),
    Column("size_mib", BigInteger, nullable=False),
    Column("used_at", Float, nullable=False),
    Column("error", Text),
)

flavor = Table(
    "flavor", metadata,
    Column("id", Integer, primary_key=True),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_gib", Integer, nullable=False),
    Column("active", Boolean, nullable=False, server_default=text("true")),
    Column("public_id", String(255), nullable=False, server_default=""),
    Column("name", String(255), nullable=False, server_default=""),
    Column("description", Text),
    Column("swap_mib", Integer, nullable=False, server_default="0"),
    Column("ephemeral_gib", Integer, nullable=False, server_default="0"),
    Column("rxtx_factor", Float, nullable=False, server_default="1"),
    Column("is_public", Boolean, nullable=False, server_default=text("true")),
    Column("extra_specs", Text, nullable=False, server_default="{}"),
    Column("created_at", Float),
    Index("ix_flavor_public_id", "public_id", unique=True, sqlite_where=text("active"),
          postgresql_where=text("active")),
    Index("ix_flavor_name", "name", unique=True, sqlite_where=text("active"),
          postgresql_where=text("active")),
    sqlite_autoincrement=True,
)

flavor_access = Table(
    "flavor_access", metadata,
    Column("flavor_id", Integer, ForeignKey("flavor.id"), primary_key=True),
    Column("project_id", String(64), primary_key=True),
)

instance = Table(
    "instance", metadata,
    Column("id", BigId, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("name", String(255), nullable=False),
    Column("flavor_id", Integer, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_gib", Integer, nullable=False),
    Column("image_id", Integer, ForeignKey("image.id"), nullable=False),
    Column("mac", String(17), nullable=False),
    Column("user_data", Text, nullable=False, server_default=""),
    Column("ssh_keys", Text, nullable=False, server_default=""),
    Column("goal", String(12), nullable=False),
    Column("state", String(12), nullable=False),
    Column("phase", String(8), nullable=False),
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("generation", Integer, nullable=False, server_default="1"),
    Column("settled_generation", Integer, nullable=False, server_default="0"),
    Column("graceful", Boolean, nullable=False, server_default=text("false")),
    Column("deadline", Float, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("excluded", Text, nullable=False, server_default=""),
    Column("batch", String(36), nullable=False),
    Column("rollback", Boolean, nullable=False, server_default=text("false")),
    Column("host_id", Integer, ForeignKey("host.id")),
    Column("address", Text),
    Column("fault", Text),
    Column("created_at", Float, nullable=False),
    Column("launched_at", Float),
    Column("deleted_at", Float),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("updated_at", Float),
    Column("project_id", String(64), nullable=False, server_default=""),
    Column("user_id", String(64), nullable=False, server_default=""),
    Column("hostname", String(255)),
    Column("description", Text),
    Column("key_name", String(255)),
    Column("config_drive", Boolean, nullable=False, server_default=text("false")),
    Column("disk_config", String(6), nullable=False, server_default="MANUAL"),
    Column("access_ipv4", String(15), nullable=False, server_default=""),
    Column("access_ipv6", String(39), nullable=False, server_default=""),
    Column("networked", Boolean, nullable=False, server_default=text("true")),
    Column("flavor", Text, nullable=False, server_default="{}"),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("availability_zone", String(255)),
    Column("group_id", Integer),
    Column("scheduler_hints", Text, nullable=False, server_default="{}"),
    Column("locked_by", String(5)),
    Column("locked_reason", Text),
    Column("fault_at", Float),
    Column("public_fault", Text),
    Column("launch_index", Integer, nullable=False, server_default="0"),
    Column("moving", Integer),
    Column("kept", Integer),
    Column("mode", String(12), nullable=False, server_default=""),
    Column("settled_mode", String(12), nullable=False, server_default=""),
    Column("task", String(24)),
    Column("ends_at", Float),
    Column("disks", String(255), nullable=False, server_default="1"),
    Column("disk_image_id", Integer),
    Column("rescue_image_id", Integer),
    Column("shelf_image_id", Integer),
    Column("snapshot_image_id", Integer),
    Column("before", Text, nullable=False, server_default=""),
    Column("only_host_id", Integer),
    Column("image_properties", Text, nullable=False, server_default="{}"),
    Column("files", Text, nullable=False, server_default=""),
    Index("ix_instance_host_id", "host_id"),
    Index("ix_instance_group_id", "group_id"),
    Index("ix_instance_project_id", "project_id", "created_at", "id",
          sqlite_where=text("state != 'deleted'"), postgresql_where=text("state != 'deleted'")),
    Index("ix_instance_created_at", "created_at", "id",
          sqlite_where=text("state != 'deleted'"), postgresql_where=text("state != 'deleted'")),
    Index("ix_instance_batch", "batch"),
    Index("ix_instance_usage", "project_id", "user_id", "vcpus", "memory_mib", "state",
          sqlite_where=text("state != 'deleted'"), postgresql_where=text("state != 'deleted'")),
    Index("ix_instance_deleted_at", "deleted_at", sqlite_where=text("deleted_at IS NOT NULL"),
          postgresql_where=text("deleted_at IS NOT NULL")),
    Index("ix_instance_live", "id", sqlite_where=text("state != 'deleted'"),
          postgresql_where=text("state != 'deleted'")),
    sqlite_autoincrement=True,
)

LIVE_INSTANCE = text("instance.state != 'deleted'")
"""As the partial indexes have it, to the letter: SQLite uses them for nothing else."""

instance_tag = Table(
    "instance_tag", metadata,
    Column("instance_id", BigId, ForeignKey("instance.id"), primary_key=True),
    Column("tag", String(60), primary_key=True),
    Index("ix_instance_tag_tag", "tag"),
)

server_group = Table(
    "server_group", metadata,
    Column("id", Integer, primary_key=True),
    _uuid(),
    Column("project_id", String(64), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("policy", String(20), nullable=False),
    Column("max_per_host", Integer),
    Column("created_at", Float, nullable=False),
    Index("ix_server_group_uuid", "uuid", unique=True),
    Index("ix_server_group_project_id", "project_id"),
    sqlite_autoincrement=True,
)

aggregate = Table(
    "aggregate", metadata,
    Column("id", Integer, primary_key=True),
    _uuid(),
    Column("name", String(255), nullable=False, unique=True),
    Column("availability_zone", String(255)),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float),
    Index("ix_aggregate_uuid", "uuid", unique=True),
    sqlite_autoincrement=True,
)

aggregate_host = Table(
    "aggregate_host", metadata,
    Column("aggregate_id", Integer, ForeignKey("aggregate.id"), primary_key=True),
    Column("host_id", Integer, ForeignKey("host.id"), primary_key=True),
    Index("ix_aggregate_host_host_id", "host_id"),
)

keypair = Table(
    "keypair", metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("type", String(4), nullable=False),
    Column("fingerprint", String(255), nullable=False),
    Column("public_key", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("ix_keypair_user_id", "user_id", "name", unique=True),
    sqlite_autoincrement=True,
)

quota = Table(
    "quota", metadata,
    Column("project_id", String(64), primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("hard_limit", Integer, nullable=False),
)

quota_user = Table(
    "quota_user", metadata,
    Column("project_id", String(64), primary_key=True),
    Column("user_id", String(64), primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("hard_limit", Integer, nullable=False),
)

quota_class = Table(
    "quota_class", metadata,
    Column("name", String(255), primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("hard_limit", Integer, nullable=False),
)

allocation = Table(
    "allocation", metadata,
    Column("instance_id", BigId, ForeignKey("instance.id"), primary_key=True),
    Column("host_id", Integer, ForeignKey("host.id"), nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", BigInteger, nullable=False),
    Column("cells", Text, nullable=False, server_default=""),  # what it holds of the host's
    Column("ends_at", Float),  # as it is expected, where the policy asks
    Index("ix_allocation_host_id", "host_id"),
)

action = Table(
    "action", metadata,
    Column("id", BigId, primary_key=True),
    Column("instance_id", BigId, ForeignKey("instance.id"), nullable=False),
    Column("request_id", String(40), nullable=False),
    Column("name", String(32), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("outcome", String(8)),
    Column("message", Text),
    Column("user_id", String(64), nullable=False, server_default=""),
    Column("project_id", String(64), nullable=False, server_default=""),
    Index("ix_action_instance_id", "instance_id"),
    sqlite_autoincrement=True,
)

action_step = Table(
    "action_step", metadata,
    Column("id", BigId, primary_key=True),
    Column("instance_id", BigId, ForeignKey("instance.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("name", String(32), nullable=False),
    Column("host_id", Integer),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("outcome", String(8), nullable=False),
    Column("message", Text),
    Index("ix_action_step_instance_id", "instance_id"),
    sqlite_autoincrement=True,
)

migration = Table(
    "migration", metadata,
    Column("id", Integer, primary_key=True),
    _uuid(),
    Column("instance_id", BigId, ForeignKey("instance.id"), nullable=False),
    Column("stage", String(10), nullable=False),
    Column("source_id", Integer, nullable=False),
    Column("target_id", Integer),
    Column("wanted_id", Integer),
    Column("stop", Boolean, nullable=False, server_default=text("false")),
    Column("hurry", Boolean, nullable=False, server_default=text("false")),
    Column("deadline", Float, nullable=False),
    Column("held", Boolean, nullable=False, server_default=text("false")),
    Column("vcpus", Integer, nullable=False, server_default="0"),
    Column("memory_mib", Integer, nullable=False, server_default="0"),
    Column("disk_mib", BigInteger, nullable=False, server_default="0"),
    Column("revision", Integer, nullable=False),
    Column("user_id", String(64), nullable=False, server_default=""),
    Column("project_id", String(64), nullable=False, server_default=""),
    Column("progress", Text, nullable=False, server_default="[]"),
    Column("error", Text),
    Column("ask", Boolean, nullable=False, server_default=text("false")),
    Column("after", Text, nullable=False, server_default="{}"),
    Column("before", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("kind", String(14), nullable=False, server_default="live-migration"),
    Column("left_off", Boolean, nullable=False, server_default=text("false")),
    Column("cells", Text, nullable=False, server_default=""),
    Index("ix_migration_uuid", "uuid", unique=True),
    Index("ix_migration_instance_id", "instance_id"),
    sqlite_autoincrement=True,
)

decision = Table(
    "decision", metadata,
    Column("id", BigId, primary_key=True),
    Column("instance_id", BigId, ForeignKey("instance.id"), nullable=False),
    Column("made_at", Float, nullable=False),
    Column("host_id", Integer),
    Column("record", Text, nullable=False),
    Index("ix_decision_instance_id", "instance_id"),
    sqlite_autoincrement=True,
)

console_token = Table(
    "console_token", metadata,
    Column("hash", String(64), primary_key=True),
    Column("instance_uuid", String(36), nullable=False),
    Column("host_id", Integer, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("ix_console_token_instance_uuid", "instance_uuid"),
    Index("ix_console_token_expires_at", "expires_at"),
)

orphan = Table(
    "orphan", metadata,
    Column("host_id", Integer, ForeignKey("host.id"), primary_key=True),
    Column("uuid", String(36), primary_key=True),
    Column("power", String(12), nullable=False),
    Column("seen_at", Float, nullable=False),
)

# -- identity. Names are compared without case: `name_key` is the name case-folded.

project = Table(
    "project", metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("name_key", String(510), nullable=False),
    Column("domain_id", String(64), nullable=False),
    Column("parent_id", String(64), nullable=False),
    Column("is_domain", Boolean, nullable=False, server_default=text("false")),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("description", Text, nullable=False, server_default=""),
    Column("options", Text, nullable=False, server_default="{}"),
    Column("extra", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Index("ix_project_domain_id", "domain_id", "name_key", unique=True),
    Index("ix_project_parent_id", "parent_id"),
)

project_tag = Table(
    "project_tag", metadata,
    Column("project_id", String(64), ForeignKey("project.id"), primary_key=True),
    Column("tag", String(255), primary_key=True),
    Index("ix_project_tag_tag", "tag"),
)

user_account = Table(
    "user_account", metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("name_key", String(510), nullable=False),
    Column("domain_id", String(64), ForeignKey("project.id"), nullable=False),
    Column("default_project_id", String(64)),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("options", Text, nullable=False, server_default="{}"),
    Column("extra", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("failed_at", Float),
    Index("ix_user_account_domain_id", "domain_id", "name_key", unique=True),
)

user_password = Table(
    "user_password", metadata,
    Column("id", BigId, primary_key=True),
    Column("user_id", String(64), ForeignKey("user_account.id"), nullable=False),
    Column("hash", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Index("ix_user_password_user_id", "user_id"),
    sqlite_autoincrement=True,
)

user_group = Table(
    "user_group", metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("name_key", String(510), nullable=False),
    Column("domain_id", String(64), ForeignKey("project.id"), nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("extra", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Index("ix_user_group_domain_id", "domain_id", "name_key", unique=True),
)

group_member = Table(
    "group_member", metadata,
    Column("user_id", String(64), ForeignKey("user_account.id"), primary_key=True),
    Column("group_id", String(64), ForeignKey("user_group.id"), primary_key=True),
    Index("ix_group_member_group_id", "group_id"),
)

role = Table(
    "role", metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("name_key", String(510), nullable=False),
    Column("domain_id", String(64), nullable=False, server_default=""),
    Column("description", Text),
    Column("options", Text, nullable=False, server_default="{}"),
    Column("extra", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Index("ix_role_domain_id", "domain_id", "name_key", unique=True),
)

role_implied = Table(
    "role_implied", metadata,
    Column("prior_id", String(64), ForeignKey("role.id"), primary_key=True),
    Column("implied_id", String(64), ForeignKey("role.id"), primary_key=True),
    Index("ix_role_implied_implied_id", "implied_id"),
)

role_assignment = Table(
    "role_assignment", metadata,
    Column("actor_id", String(64), primary_key=True),
    Column("target_id", String(64), primary_key=True),
    Column("role_id", String(64), ForeignKey("role.id"), primary_key=True),
    Column("inherited", Boolean, primary_key=True),
    Column("actor", String(5), nullable=False),
    Column("target", String(7), nullable=False),
    Index("ix_role_assignment_target_id", "target_id"),
    Index("ix_role_assignment_role_id", "role_id"),
)

region = Table(
    "region", metadata,
    Column("id", String(255), primary_key=True),
    Column("description", Text, nullable=False, server_default=""),
    Column("parent_id", String(255)),
    Column("extra", Text, nullable=False, server_default="{}"),
)

catalog_service = Table(
    "catalog_service", metadata,
    Column("id", String(64), primary_key=True),
    Column("type", String(255), nullable=False),
    Column("name", String(255), nullable=False, server_default=""),
    Column("description", Text),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("extra", Text, nullable=False, server_default="{}"),
)

catalog_endpoint = Table(
    "catalog_endpoint", metadata,
    Column("id", String(64), primary_key=True),
    Column("service_id", String(64), nullable=False),
    Column("region_id", String(255)),
    Column("interface", String(8), nullable=False),
    Column("url", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("extra", Text, nullable=False, server_default="{}"),
    Index("ix_catalog_endpoint_service_id", "service_id"),
    Index("ix_catalog_endpoint_region_id", "region_id"),
)

app_credential = Table(
    "app_credential", metadata,
    Column("id", String(64), primary_key=True),
    Column("user_id", String(64), ForeignKey("user_account.id"), nullable=False),
    Column("project_id", String(64), ForeignKey("project.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("description", Text),
    Column("hash", Text, nullable=False),
    Column("unrestricted", Boolean, nullable=False),
    Column("roles", Text, nullable=False),
    Column("access_rules", Text),
    Column("expires_at", Float),
    Column("created_at", Float, nullable=False),
    Index("ix_app_credential_user_id", "user_id", "name", unique=True),
    Index("ix_app_credential_project_id", "project_id"),
)

access_rule = Table(
    "access_rule", metadata,
    Column("id", String(64), primary_key=True),
    Column("user_id", String(64), ForeignKey("user_account.id"), nullable=False),
    Column("service", String(255), nullable=False),
    Column("method", String(16), nullable=False),
    Column("path", String(1024), nullable=False),
    Index("ix_access_rule_user_id", "user_id"),
)

credential = Table(
    "credential", metadata,
    Column("id", String(64), primary_key=True),
    Column("user_id", String(64), ForeignKey("user_account.id"), nullable=False),
    Column("project_id", String(64)),
    Column("type", String(255), nullable=False),
    Column("blob", Text, nullable=False),
    Column("extra", Text, nullable=False, server_default="{}"),
    Column("created_at", Float, nullable=False),
    Index("ix_credential_user_id", "user_id"),
    Index("ix_credential_project_id", "project_id"),
)

token = Table(
    "token", metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", String(64), ForeignKey("user_account.id"), nullable=False),
    Column("scope", String(8), nullable=False),
    Column("scope_id", String(64), nullable=False, server_default=""),
    Column("methods", Text, nullable=False),
    Column("audit_ids", Text, nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("app_credential_id", String(64)),
    Index("ix_token_user_id", "user_id"),
    Index("ix_token_scope_id", "scope_id"),
    Index("ix_token_app_credential_id", "app_credential_id"),
    Index("ix_token_expires_at", "expires_at"),
)
