"""Requests, columns, and the record of a decision."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from treadle.errors import CannotPlace, InvalidInput
from treadle.scheduler.columns import HostColumns
from treadle.scheduler.engine import Scheduler, explain
from treadle.scheduler.model import HostView, PlacementRequest
from treadle.scheduler.plugin import Ranking
from treadle.scheduler.record import Decision

FILTERS = ("state", "capacity", "capabilities", "excluded")


def host(number: int, **changes: Any) -> HostView:
    values: dict[str, Any] = {
        "id": number,
        "name": f"node-{number}",
        "state": "up",
        "arch": "x86_64",
        "capabilities": frozenset({"console"}),
        "vcpus_limit": 8,
        "vcpus_used": 0,
        "memory_limit_mib": 8192,
        "memory_used_mib": 0,
        "disk_limit_mib": 100_000,
        "disk_used_mib": 0,
    }
    return HostView(**(values | changes))


def ask(**changes: Any) -> PlacementRequest:
    values: dict[str, Any] = {
        "instance_id": "i-1",
        "vcpus": 2,
        "memory_mib": 4096,
        "disk_mib": 10_000,
    }
    return PlacementRequest(**(values | changes))


def decide(*hosts: HostView, **changes: Any) -> Decision:
    engine = Scheduler("first-fit", FILTERS, {})
    return engine.rank(HostColumns.from_views(hosts, 5), ask(**changes))[1]


@pytest.mark.parametrize("field", ["vcpus", "memory_mib", "disk_mib", "image_mib", "seed"])
def test_a_negative_amount_is_refused(field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        ask(**{field: -1})


def test_an_amount_that_no_column_can_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="memory_mib"):
        ask(memory_mib=2**70)


def test_a_host_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="host id is 1"):
        HostColumns.from_views([host(1), host(2), host(1, name="other")], 1)


def test_columns_cannot_be_written_to() -> None:
    columns = HostColumns.from_views([host(1), host(2)], 1)
    every = [columns.ids, columns.vcpus_used, columns.free_vcpus, columns.up]
    every += [columns.parts, columns.derived("name", lambda host: host.name == "node-1")]
    every += [columns.take(np.array([1])).ids]
    for column in every:
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0


def test_no_hosts_at_all() -> None:
    columns = HostColumns.from_views([], 1)
    assert len(columns) == 0
    assert columns.row_of(1) is None
    assert columns.has_capability("console").shape == (0,)
    assert columns.free_vcpus.shape == (0,)


def test_a_part_of_a_part_knows_its_rows() -> None:
    columns = HostColumns.from_views(
        [host(n, capabilities=frozenset({"uefi"} if n % 2 else ())) for n in range(1, 7)], 3
    )
    part = columns.take(np.array([1, 2, 4])).take(np.array([0, 2]))
    assert [view.id for view in part] == [2, 5]
    assert part.has_capability("uefi").tolist() == [False, True]
    assert part.row_of(5) == 1
    assert part.row_of(3) is None
    assert part.version == 3


def test_ties_go_to_the_lowest_id() -> None:
    columns = HostColumns.from_views([host(n) for n in (9, 4, 7)], 1)
    assert list(Ranking.by_score(columns, np.array([1.0, 2.0, 2.0]))) == [7, 9, 4]


def test_disk_counts_the_image_where_it_is_not() -> None:
    image = "a" * 64
    fits = {"disk_limit_mib": 10_000}
    decision = decide(
        host(1, **fits), host(2, images=frozenset({image}), **fits), image=image, image_mib=5
    )
    assert [ranked.host for ranked in decision.top] == [2]
    assert decision.refusals[0].reason == "needs 10005 MiB disk, has 10000"


def test_one_sentence_says_why_nothing_fits() -> None:
    decision = decide(
        host(1, memory_used_mib=6144), host(2, memory_used_mib=7000), host(3, state="down")
    )
    assert explain(decision) == (
        "no host can take it: 2 hosts lack memory (need 4096 MiB, at most 2048 free), 1 is down"
    )
    assert decision.refused == {"state": 1, "capacity": 2, "capabilities": 0, "excluded": 0}


def test_every_kind_of_refusal_has_words() -> None:
    decision = decide(
        host(1, state="disabled"),
        host(2, vcpus_used=9, memory_used_mib=8192),
        host(3, disk_used_mib=99_000),
        host(4, arch="aarch64", capabilities=frozenset()),
        host(5, arch=None),
        host(6, capabilities=frozenset({"suspend"})),
        host(7),
        arch="x86_64",
        capabilities=frozenset({"console"}),
        excluded_hosts=frozenset({7}),
    )
    assert {refusal.name: (refusal.filter, refusal.reason) for refusal in decision.refusals} == {
        "node-1": ("state", "is disabled"),
        "node-2": ("capacity", "needs 2 vcpus, has 0; needs 4096 MiB memory, has 0"),
        "node-3": ("capacity", "needs 10000 MiB disk, has 1000"),
        "node-4": ("capabilities", "needs x86_64, is aarch64; lacks console"),
        "node-5": ("capabilities", "needs x86_64, is of unknown architecture"),
        "node-6": ("capabilities", "lacks console"),
        "node-7": ("excluded", "is excluded by the request"),
    }
    assert explain(decision) == (
        "no host can take it: 2 hosts are not x86_64, 1 is disabled,"
        " 1 lacks vcpus (need 2, at most 0 free),"
        " 1 lacks disk (need 10000 MiB, at most 1000 free), 1 lacks console, 1 is excluded"
    )


def test_what_a_tenant_sees_names_no_host_and_no_amount() -> None:
    decision = decide(host(1, memory_used_mib=6144), host(2, state="down"))
    public = decision.public()
    assert public == {
        "instance_id": "i-1",
        "placed": False,
        "hosts": 2,
        "fits": 0,
        "refused": {"memory": 1, "down": 1},
        "message": "no host can take it: 1 host is down, 1 lacks memory",
    }
    placed = decide(host(11), host(12))
    placed.won(12)
    text = json.dumps([public, placed.public()])
    assert "node" not in text
    assert "2048" not in text


def test_the_record_survives_json() -> None:
    decision = decide(host(1, memory_used_mib=6144), host(2), host(3), host(4, state="down"))
    decision.lost(2)
    decision.won(3)
    data = decision.to_dict()
    again = Decision.from_dict(json.loads(json.dumps(data)))
    assert again.to_dict() == data
    assert again.request == decision.request
    assert explain(again) == explain(decision) == "placed on node-3: 2 of 4 hosts could take it"
    assert again.public() == decision.public()
    assert (data["version"], data["conflicts"], data["winner"]) == (5, [2], 3)


def test_the_other_ends_of_a_decision() -> None:
    assert explain(decide()) == "no host can take it: there are none"
    decision = decide(host(1), host(2, state="down"))
    assert explain(decision) == "1 of 2 hosts can take it"
    decision.lost(1)
    assert explain(decision) == "1 host could take it, but the space was taken meanwhile"


def test_the_error_carries_the_reasons() -> None:
    error = decide(host(1, vcpus_used=7)).error()
    assert isinstance(error, CannotPlace)
    assert error.reasons == {"node-1": "needs 2 vcpus, has 1"}
    assert str(error) == "no host can take it: 1 host lacks vcpus (need 2, at most 1 free)"


def test_only_the_first_hundred_refusals_are_kept_but_all_are_counted() -> None:
    decision = decide(*(host(number, state="down") for number in range(1, 251)))
    assert [refusal.host for refusal in decision.refusals] == list(range(1, 101))
    assert decision.refused["state"] == decision.causes[0].hosts == 250
