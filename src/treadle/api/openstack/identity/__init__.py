"""Identity v3 at /identity: users, projects, roles, tokens, the service catalog."""

from __future__ import annotations

from treadle.api.openstack.identity import auth, projects, versions
from treadle.api.openstack.wire import Service

CALLS = [*versions.CALLS, *auth.CALLS, *projects.CALLS]

SERVICE = Service("/identity", CALLS)
