"""Identity v3 at /identity: users, projects, roles, tokens, the service catalog."""

from __future__ import annotations

from treadle.api.openstack.identity import (
    app_credentials,
    auth,
    credentials,
    ec2,
    projects,
    roles,
    services,
    users,
    versions,
)
from treadle.api.openstack.identity.answers import ANSWERS
from treadle.api.openstack.shapes import answering
from treadle.api.openstack.wire import Service

CALLS = answering([
    call for part in (
        versions, auth, projects, users, roles, services, app_credentials, credentials,
        ec2,
    ) for call in part.CALLS
], ANSWERS)

SERVICE = Service("/identity", CALLS)
