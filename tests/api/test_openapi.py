"""Every face against the document that is made of its table of calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from cloudkit import ROOMY, Cloud, log_in, start_cloud
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks

from treadle.api import openapi
from treadle.api.app import SERVICES
from treadle.api.openstack.compute import HIGHEST

DOCUMENTS = openapi.documents(SERVICES)
FUZZED = settings(
    max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, disk_image: Path) -> Iterator[Cloud]:
    cloud = start_cloud(
        tmp_path_factory.mktemp("fuzzed"), hosts=(f"fake://h1{ROOMY}",), image=disk_image,
        settings={},
    )
    cloud.client.headers["X-Auth-Token"] = log_in(cloud)
    yield cloud
    cloud.stop()


def test_the_documents_are_served(fuzzed: Cloud) -> None:
    listed = fuzzed.ok("/docs/openapi.json")["documents"]
    assert len(listed) == len(DOCUMENTS)
    for path in listed:
        document = fuzzed.ok(path)
        assert document == DOCUMENTS[path.rpartition("/")[2].removesuffix(".json")]
        ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
        assert len(ids) == len(set(ids))
    assert fuzzed.get("/docs/openapi/other.json").status_code == 404


CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance, checks.response_headers_conformance,
    checks.response_schema_conformance,
]
def plain(value: Any) -> Any:
    """A document without the patterns that Python cannot read, or only generate from slowly."""
    if isinstance(value, dict):
        return {
            plain(key): plain(one) for key, one in value.items()
            if not (key == "pattern" and isinstance(one, str))
        }
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "." if isinstance(value, str) and r"\p{" in value else value


OPERATIONS = {
    f"{name} {found.ok().label}": (name, found.ok())
    for name, document in DOCUMENTS.items()
    for found in schemathesis.openapi.from_dict(plain(document)).get_all_operations()
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_the_document_says(label: str, fuzzed: Cloud) -> None:
    """What fits the schema and what does not: no failure of the server's, no other answer."""
    face, operation = OPERATIONS[label]
    headers = {**fuzzed.client.headers, **(fuzzed.admin if face == "native" else {})}
    if face == "compute":
        # The document is of the highest version: without this, the lowest answers.
        headers["OpenStack-API-Version"] = f"compute 2.{HIGHEST}"
    base = fuzzed.url + DOCUMENTS[face]["servers"][0]["url"].rstrip("/")

    # This installation has no volumes: the classic API says so with 503.
    missing = label.startswith("classic GET /volume/")

    @FUZZED
    @given(strategies.one_of(
        operation.as_strategy(generation_mode=mode) for mode in GenerationMode
    ))
    def check(case: Case) -> None:
        case.call_and_validate(
            base_url=base, headers=headers, timeout=20,
            checks=CHECKS if missing else [schemathesis.checks.not_a_server_error, *CHECKS],
        )

    check()
