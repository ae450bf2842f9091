"""Image v2, as OpenStack's clients know it."""

from __future__ import annotations

from treadle.api.openstack.image import files, images, members, versions
from treadle.api.openstack.image.answers import ANSWERS
from treadle.api.openstack.shapes import answering
from treadle.api.openstack.wire import Service

SERVICE = Service(
    "/image", answering(
        [*versions.CALLS, *images.CALLS, *files.CALLS, *members.CALLS], ANSWERS
    ),
)
"""The endpoint has no version: clients add /v2 themselves."""
