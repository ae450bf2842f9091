"""The simulator: what it reads, that it counts right, that it refuses what is bad."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.cli.main import main as command_line
from treadle.cli.simulate import table
from treadle.cli.simulate_report import write_report
from treadle.config import load
from treadle.errors import InvalidInput
from treadle.scheduler.columns import SMALL, FloatArray, HostColumns
from treadle.scheduler.engine import OnFault, Scheduler
from treadle.scheduler.model import PlacementRequest
from treadle.scheduler.plugin import PluginError, Ranking
from treadle.scheduler.registry import Registry
from treadle.scheduler.simulate import Outcome, fluid_bound, jain, replay
from treadle.scheduler.simulate_compare import Plan, Spread, compare
from treadle.scheduler.simulate_generate import generate
from treadle.scheduler.simulate_trace import (
    Arrival,
    Trace,
    parse_hosts,
    read_trace,
    record_lines,
    trace_of_record,
)
from treadle.scheduler.table import HostTable

HEAD = "vm_id,arrival_s,batch,vcpus,mem_mib,lifetime_s,censored,life_bin\n"
FILTERS = ("state", "capacity")


def run(trace: Trace, hosts: str, policy: str = "best-fit", seed: int = 0) -> Outcome:
    return replay(trace, parse_hosts(hosts), Scheduler(policy, FILTERS, {}), seed=seed)


def trace_of(*vms: tuple[float, float, int, int], end: float = 7200) -> Trace:
    arrivals = [
        Arrival(f"v{n}", at, until, vcpus, mib) for n, (at, until, vcpus, mib) in enumerate(vms)
    ]
    return Trace("made", arrivals, 0.0, end)


# -- reading


def test_a_csv_is_read_as_its_description_says(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(HEAD + "a,300,0,2,3584,150,0,0\nb,300,0,1,1792,,1,\nc,600,1,8,57344,3900,0,13\n")
    trace = read_trace(path)
    assert [(v.name, v.at, v.until, v.batch) for v in trace.arrivals] == [
        ("a", 300, 450, "0"), ("b", 300, math.inf, "0"), ("c", 600, 4500, "1"),
    ]
    assert (trace.begin, trace.end) == (300, 600)
    assert trace.arrivals[2].request(7).seed == 7


@pytest.mark.parametrize(("row", "line", "field"), [
    ("x,300,0,two,3584,150,0,0", 3, "vcpus"),
    ("x,300,0,0,3584,150,0,0", 3, "vcpus"),
    ("x,300,0,1,-1,150,0,0", 3, "mem_mib"),
    ("x,300,0,1,1,,0,0", 3, "lifetime_s"),
    ("x,nan,0,1,1,150,0,0", 3, "arrival_s"),
    ("x,299,0,1,1,150,0,0", 3, "arrival_s"),
    ("x,300,0,1,1,150,0", 3, "row"),
])
def test_a_bad_row_is_told_with_file_line_and_field(
    tmp_path: Path, row: str, line: int, field: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(HEAD + "a,300,0,2,3584,150,0,0\n" + row + "\n")
    with pytest.raises(InvalidInput) as caught:
        read_trace(path)
    assert caught.value.field == f"{path}:{line} {field}"


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    for name, body, word in (
        ("no.csv", None, "cannot be read"), ("a.txt", b"", ".csv"), ("b.csv", b"a,b\n", "vm_id"),
        ("c.csv.gz", b"no gzip", "cannot be read"), ("d.csv", b"\xff\xfe", "damaged"),
        ("e.csv", HEAD.encode(), "no VM"), ("f.jsonl", b"{}\n", "first line"),
        ("g.jsonl", b"nothing\n", "JSON"), ("h.jsonl", b"", "nothing in it"),
        ("i.csv", b"vm_id,arrival_s,vcpus,mem_mib\n" + b"x" * 200_000 + b",0,1,1\n", "damaged"),
        ("j.csv.gz", gzip.compress(HEAD.encode(), mtime=0)[:12] + b"\xff" * 40, "damaged"),
    ):
        path = tmp_path / name
        if body is not None:
            path.write_bytes(body)
        with pytest.raises(InvalidInput, match=word):
            read_trace(path)


def test_hosts_are_written_short() -> None:
    hosts = parse_hosts("2x48c128g,1c2g10d")
    assert [(h.id, h.vcpus_limit, h.memory_limit_mib, h.disk_limit_mib) for h in hosts] == [
        (1, 48, 131072, 0), (2, 48, 131072, 0), (3, 1, 2048, 10240),
    ]
    for bad in ("", "48x128", "0x1c1g", "999999999x1c1g", "1x0c1g", "2x48c128g,"):
        with pytest.raises(InvalidInput, match="hosts"):
            parse_hosts(bad)


RECORD = {
    "at": 1000.0,
    "hosts": [{
        "id": 4, "name": "four", "state": "up", "arch": "x86_64", "capabilities": ["kvm"],
        "vcpus_limit": 8, "memory_limit_mib": 4096, "disk_limit_mib": 100, "zone": "north",
        "rack": "r1", "properties": [["rack", "r1"], ["disk", "ssd"]],
    }],
    "instances": [
        {"id": "b", "at": 900.0, "until": None, "vcpus": 1, "memory_mib": 64, "disk_mib": 1,
         "batch": None, "tenant": None, "host": 4, "request": None},
        {"id": "a", "at": 500.0, "until": 700.0, "vcpus": 2, "memory_mib": 128, "disk_mib": 2,
         "batch": "q", "tenant": None, "host": 4, "request": {
             "instance_id": "a", "vcpus": 2, "memory_mib": 128, "disk_mib": 2,
             "capabilities": ["kvm"], "arch": "x86_64", "zone": "north",
             "extra_specs": [["disk", "ssd"]]}},
    ],
}


def test_a_record_of_a_cloud_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "cloud.jsonl"
    path.write_text("".join(record_lines(RECORD)))
    trace = read_trace(path)
    assert [one.name for one in trace.arrivals] == ["a", "b"]
    assert trace.arrivals[0].request(5).capabilities == {"kvm"}
    assert trace.end == 1000
    assert trace == trace_of_record(RECORD, str(path))
    filters = ("state", "capabilities", "zone", "aggregate_specs")
    assert replay(trace, trace.hosts, Scheduler("first-fit", filters, {})).placed == 2
    bare = [replace(trace.hosts[0], properties=())]
    assert replay(trace, bare, Scheduler("first-fit", filters, {})).placed == 1


def test_a_bad_record_is_told_with_line_and_field() -> None:
    for broken, field in (
        ({"vcpus": "many"}, "x:3 vcpus"), ({"at": True}, "x:3 at"), ({"vcpus": 0}, "x:3 vcpus"),
        ({"at": math.nan}, "x:3 at"), ({"batch": ["a"]}, "x:3 batch"), ({"at": None}, "x:3 at"),
        ({"request": {"instance_id": "a"}}, "x:3 request.vcpus"),
        ({"request": RECORD["instances"][1]["request"] | {  # type: ignore[index]
            "vcpus": "2"}}, "x:3 request.vcpus"),
        ({"request": RECORD["instances"][1]["request"] | {  # type: ignore[index]
            "seed": -1}}, "x:3 request.seed"),
    ):
        one = {**RECORD["instances"][0], **broken}  # type: ignore[index]
        with pytest.raises(InvalidInput) as caught:
            trace_of_record(RECORD | {"instances": [one]}, "x")
        assert caught.value.field == field
    broken_host = RECORD["hosts"][0] | {"capabilities": 7}  # type: ignore[index]
    with pytest.raises(InvalidInput, match="x:2 capabilities is 7"):
        trace_of_record(RECORD | {"hosts": [broken_host]}, "x")


def test_members_of_a_group_are_counted_where_they_are_in_the_replay() -> None:
    """Their record names hosts of another day."""
    wish = PlacementRequest(
        "i", 1, 64, 0, group="anti-affinity", group_hosts=((7, 1),), max_per_host=1
    )
    trace = trace_of(*[(float(n), 50.0, 1, 64) for n in range(3)], (60.0, math.inf, 1, 64))
    members = [replace(one, wish=wish, group="g") for one in trace.arrivals]
    there = replace(members[0], name="there", at=0.0, until=math.inf, host=3)
    scheduler = Scheduler("first-fit", ("state", "capacity", "anti_affinity"), {})
    out = replay(replace(trace, arrivals=members), parse_hosts("3x8c14g"), scheduler,
                 running=[there])
    assert (out.placed, out.refused) == (3, 1)
    assert out.most_hosts == 3


def test_what_was_resized_is_asked_for_as_it_is_now() -> None:
    wish = PlacementRequest("i", 1, 64, 0, zone="a")
    asked = replace(trace_of((0, 1, 4, 256)).arrivals[0], wish=wish).request(3)
    assert (asked.vcpus, asked.memory_mib, asked.zone, asked.seed) == (4, 256, "a", 3)


def test_a_trace_of_nothing_has_a_bound_and_an_outcome() -> None:
    trace = Trace("nothing", (), 0.0, 3600.0)
    assert fluid_bound(trace, parse_hosts("2x4c8g")).host_hours == 0
    out = replay(trace, parse_hosts("2x4c8g"), Scheduler("best-fit", FILTERS, {}))
    assert (out.vms, out.host_hours, out.stranded_memory) == (0, 0.0, 0.0)


# -- counting


def test_what_is_counted_by_hand_comes_out() -> None:
    # One host of 4 cores and 8 GiB; 2 hours.
    trace = trace_of(
        (0, 3600, 2, 1024), (0, math.inf, 2, 1024), (1800, 5400, 2, 1024), (3600, 3700, 2, 1024),
    )
    out = run(trace, "2x4c8g", "first-fit")
    assert (out.vms, out.placed, out.refused) == (4, 4, 0)
    out = run(trace, "1x4c8g", "first-fit")
    assert (out.placed, out.refused, out.before_first_refusal) == (3, 1, 2)
    assert out.lost_core_hours == pytest.approx(2.0)
    assert out.lost_gib_hours == pytest.approx(1.0)
    assert out.asked_core_hours == pytest.approx(2 + 4 + 2 + 200 / 3600)
    assert out.host_hours == pytest.approx(2.0)
    assert out.utilisation_cores == pytest.approx((2 + 4 + 200 / 3600) / 8)
    assert out.classes["large"].refused == 1
    assert out.most_hosts == 1


def test_what_leaves_makes_room_before_what_comes_at_the_same_moment() -> None:
    out = run(trace_of((0, 300, 4, 1), (300, 600, 4, 1)), "1x4c8g")
    assert out.refused == 0


def test_running_vms_take_room_until_they_leave() -> None:
    hosts = parse_hosts("1x4c8g")
    there = Arrival("r", 0, 600, 4, 1024, host=1)
    trace = trace_of((300, 400, 1, 1), (600, 700, 1, 1))
    out = replay(trace, hosts, Scheduler("best-fit", FILTERS, {}), running=[there])
    assert (out.placed, out.refused) == (1, 1)
    with pytest.raises(InvalidInput, match="host 9"):
        replay(trace, hosts, Scheduler("best-fit", FILTERS, {}), running=[replace(there, host=9)])


def test_the_same_seed_gives_the_same_and_shuffling_keeps_batches() -> None:
    trace = generate(400, 6, 3)
    assert len(trace) == 400
    assert generate(400, 6, 3) == trace
    assert generate(400, 6, 4) != trace
    one, two = (run(trace, "6x16c64g", "random", 1) for _ in range(2))
    assert one.series == two.series
    mixed = trace.shuffled(1)
    assert sorted(v.name for v in mixed.arrivals) == sorted(v.name for v in trace.arrivals)
    assert [v.at for v in mixed.arrivals] == [v.at for v in trace.arrivals]
    assert mixed.arrivals != trace.arrivals
    assert trace.shuffled(0) is trace


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(
        st.integers(0, 20), st.integers(0, 20), st.integers(1, 6), st.integers(0, 9)
    ), min_size=1, max_size=40),
    st.sampled_from(["first-fit", "best-fit", "worst-fit", "round-robin", "random"]),
)
def test_no_policy_beats_the_bound_and_nothing_is_lost_in_counting(
    rows: list[tuple[int, int, int, int]], policy: str
) -> None:
    rows = sorted(rows)
    trace = trace_of(
        *((at * 60, (at + life) * 60, cpu, gib * 1024) for at, life, cpu, gib in rows), end=1800
    )
    hosts = parse_hosts("2x6c8g,1x3c2g")
    out = run(trace, "2x6c8g,1x3c2g", policy)
    bound = fluid_bound(trace, hosts)
    assert bound.lost_core_hours <= out.lost_core_hours + 1e-9
    if not out.refused:
        assert bound.host_hours <= out.host_hours + 1e-9
    assert out.placed + out.refused == out.vms == len(rows)
    used = out.utilisation_cores * 15 * 0.5
    assert used + out.lost_core_hours == pytest.approx(out.asked_core_hours)
    assert sum(one.asked for one in out.classes.values()) == len(rows)
    assert all(0 <= part <= 1 for part in out.series.cores)


def test_jain_and_confidence_are_the_published_formulas() -> None:
    assert jain([1, 1, 1]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([]) == 1
    spread = Spread.of([1.0, 2.0, 3.0])
    assert spread.mean == 2
    assert spread.half == pytest.approx(4.303 / math.sqrt(3))
    assert Spread.of([5.0]).half is None


def test_an_unknown_policy_lists_the_known() -> None:
    hosts = parse_hosts("1x4c8g")
    plan = Plan(lambda seed: generate(10, 1, seed), hosts, "x", ["best"], FILTERS, {})
    with pytest.raises(InvalidInput, match=r"best-fit.*worst-fit"):
        compare(plan)
    with pytest.raises(InvalidInput, match="WEIGHER=NUMBER"):
        compare(replace(plan, policies=["weighted:cpu_free"]))


class Broken:
    """A weigher and a policy in one that never gives an answer."""

    name = "mine"
    row_local = True

    def score(self, _hosts: HostColumns, _request: PlacementRequest, /) -> FloatArray:
        raise ZeroDivisionError("by design")

    def rank(
        self, _request: PlacementRequest, _hosts: HostColumns, _rng: np.random.Generator, /
    ) -> Ranking:
        raise ZeroDivisionError("by design")


def test_faults_of_plugins_fall_back_as_the_settings_say_and_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry = Registry()
    for kind in ("weigher", "policy"):
        registry.add(kind, "mine", Broken)
    plan = Plan(
        lambda _seed: trace_of((0, 60, 1, 64), (1, 60, 1, 64)), parse_hosts("1x4c8g"), "x",
        ["first-fit", "mine", "weighted:mine=1"], FILTERS, {}, seeds=2,
        on_fault=OnFault(policy="first-fit"),
    )
    found = compare(plan, registry=registry)
    assert [one.faults for row in found.rows for one in row.outcomes] == [
        {}, {}, {"policy mine": 2}, {"policy mine": 2}, {"weigher mine": 2}, {"weigher mine": 2},
    ]
    assert {one.placed for row in found.rows for one in row.outcomes} == {2}
    assert found.to_dict()["policies"][1]["runs"][0]["faults"] == {"policy mine": 2}
    table(found)
    shown = capsys.readouterr()
    assert "plugin_faults\t0 ±0\t2 ±0\t2 ±0" in shown.out
    assert "mine: the policy mine was at fault 4 times" in shown.err
    with pytest.raises(PluginError, match="mine"):
        compare(replace(plan, on_fault=OnFault()), registry=registry)


# -- the command


def simulate(*arguments: str) -> str:
    said = CliRunner().invoke(command_line, ["simulate", *arguments])
    assert said.exit_code == 0, said.output
    return said.stdout


def test_the_command_prints_a_table_and_json() -> None:
    common = ("--generate", "300", "--hours", "4", "--hosts", "4x16c32g", "--seeds", "2",
              "--policy", "best-fit", "--policy", "weighted:cpu_free=-1")
    text = simulate(*common)
    assert text.splitlines()[1].split("\t") == [
        "measure", "best-fit", "weighted:cpu_free=-1", "bound"
    ]
    assert "±" in text
    data = json.loads(simulate(*common, "--json"))
    assert [one["policy"] for one in data["policies"]] == ["best-fit", "weighted:cpu_free=-1"]
    assert len(data["policies"][0]["runs"]) == 2
    assert data["policies"][0]["runs"][0]["vms"] == 300


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    for arguments, word in (
        (("--generate", "9", "--hosts", "9by9"), "700x48c128g"),
        (("--generate", "9", "--hosts", "1x4c8g", "--policy", "none"), "known are"),
        (("--trace", str(tmp_path / "no.csv"), "--hosts", "1x4c8g"), "cannot be read"),
        (("--hosts", "1x4c8g"), "--generate"),
        (("--generate", "9"), "--hosts"),
    ):
        said = CliRunner().invoke(command_line, ["simulate", *arguments])
        assert said.exit_code != 0
        assert word in said.stderr
        assert "Traceback" not in said.stderr


class Page(HTMLParser):
    """What a page has in it, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "line", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "line", "rect", "path"):
            assert self.open.pop() == tag


def test_the_report_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    simulate(
        "--generate", "300", "--hours", "4", "--hosts", "2x16c32g", "--seeds", "2",
        "--policy", "best-fit", "--policy", "weighted:cpu_free=-1", "--report", str(path),
    )
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("figure") == 14
    assert "nan" not in text.lower().replace("tenants", "")
    assert "url(" not in text


def test_a_name_cannot_break_out_of_the_report(tmp_path: Path) -> None:
    trace = replace(trace_of((0, 60, 1, 64)), source="<script>alert(1)</script>")
    plan = Plan(lambda _: trace, parse_hosts("1x4c8g"), "<b>", ["best-fit"], FILTERS, {})
    write_report(compare(plan), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text
    assert "<b>" not in text


def test_the_differences_are_taken_seed_by_seed() -> None:
    plan = Plan(
        lambda seed: generate(200, 4, seed), parse_hosts("3x16c32g"), "x",
        ["best-fit", "worst-fit"], FILTERS, {}, seeds=3,
    )
    found = compare(plan)
    first, second = found.rows
    pairs = [
        b.host_hours - a.host_hours
        for a, b in zip(first.outcomes, second.outcomes, strict=True)
    ]
    assert found.against_first(second, lambda one: one.host_hours) == Spread.of(pairs)
    assert found.against_first(first, lambda one: one.host_hours).mean == 0


class Oracle:
    """A predictor that knows: it is told all lifetimes before."""

    def __init__(self, lives: dict[str, float]) -> None:
        self.lives = lives
        self.told: dict[str, float] = {}

    def lifetime_s(self, request: PlacementRequest, /) -> float:
        return self.lives[request.instance_id]

    def ended(self, request: PlacementRequest, lifetime_s: float, /) -> None:
        self.told[request.instance_id] = lifetime_s


def test_a_predictor_is_asked_and_told_and_what_it_expects_is_on_the_hosts() -> None:
    # The third stays long: it belongs beside the first, though the second's host is fuller.
    trace = trace_of((0, 7200, 2, 1), (0, 600, 3, 1), (60, 7200, 1, 1), (120, 500, 1, 1))
    oracle = Oracle({one.name: one.until - one.at for one in trace.arrivals})
    registry = Registry()
    registry.add("predictor", "oracle", lambda: oracle)
    hosts = parse_hosts("2x4c8g")
    aware = Scheduler("lifetime-aware", FILTERS, {}, registry, predictor="oracle")
    out = replay(trace, hosts, aware)
    assert out.host_hours == pytest.approx(2 + 600 / 3600)
    assert oracle.told == {"v0": 7200, "v1": 600, "v2": 7140, "v3": 380}
    assert replay(trace, hosts, Scheduler("best-fit", FILTERS, {})).host_hours > out.host_hours


def test_the_sizes_of_the_trace_are_what_is_on_offer() -> None:
    trace = trace_of((0, 1, 2, 64), (0, 1, 1, 32), (5, 6, 2, 64))
    assert trace.sizes() == ((1, 32, 0), (2, 64, 0))
    assert trace.arrivals[0].request(0, trace.sizes()).flavors == trace.sizes()


@pytest.mark.parametrize("policy", sorted(set(Registry().names("policy")) - {"solver"}))
def test_every_policy_that_is_shipped_runs(policy: str) -> None:
    weighers = {"cpu_free": 1.0, "memory_free": 1.0} if policy == "weighted" else {}
    trace = generate(150, 3, 5)
    one, two = (
        replay(trace, parse_hosts("3x12c24g"), Scheduler(policy, FILTERS, weighers), seed=2)
        for _ in range(2)
    )
    assert one.placed + one.refused == 150
    assert one.placed > 0
    assert one.series == two.series


def test_balanced_fit_keeps_memory_for_the_cores_that_are_left() -> None:
    # Two with much memory and cores' worth of lean ones: best fit puts the fat ones together.
    fat = [(0.0, math.inf, 1, 6 * 1024), (1.0, math.inf, 1, 6 * 1024)]
    lean = [(-1.0, math.inf, 1, 1024), (-1.0, math.inf, 1, 1024)]
    later = [(2.0 + n, math.inf, 1, 1024) for n in range(12)]
    trace = trace_of(*lean, *fat, *later)
    hosts = [replace(host, instances=1) for host in parse_hosts("2x8c14g")]
    refused = {
        name: replay(trace, hosts, Scheduler(name, FILTERS, {})).refused
        for name in ("best-fit", "balanced-fit")
    }
    assert refused == {"best-fit": 4, "balanced-fit": 0}


def test_the_default_spreads_over_few_hosts_and_packs_on_many() -> None:
    assert load(None, {}).scheduler.policy == "adaptive"
    trace = trace_of(*((float(n), math.inf, 1, 1024) for n in range(4)))
    used = {
        number: replay(
            trace, parse_hosts(f"{number}x8c16g"), Scheduler("adaptive", FILTERS, {})
        ).most_hosts
        for number in (SMALL - 1, SMALL)
    }
    assert used == {SMALL - 1: 4, SMALL: 1}


def test_a_table_knows_when_there_are_few_hosts() -> None:
    table = HostTable(parse_hosts(f"{SMALL}x4c8g"))
    assert not table.small
    assert not table.columns().small
    view = table.view(5)
    assert view is not None
    table.put(replace(view, state="down"))
    assert table.small
    assert table.columns().small


def test_a_table_knows_when_empty_hosts_are_scarce() -> None:
    table = HostTable(parse_hosts("20x4c8g"))
    for host in range(1, 19):
        assert not table.scarce
        assert table.scarce == table.columns().scarce
        table.use(host, 1, 1, 0)
    assert not table.scarce
    table.use(19, 1, 1, 0)
    assert table.scarce
    assert table.columns().scarce
    table.use(5, -1, -1, 0, -1)
    assert not table.scarce
    view = table.view(5)
    assert view is not None
    table.put(replace(view, state="down"))
    assert table.scarce
    assert table.columns().scarce
    table.put(view)
    table.drop(20)
    assert table.scarce == table.columns().scarce


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=60))
@settings(max_examples=30, deadline=None)
def test_balanced_fit_picks_as_it_ranks(changes: list[tuple[int, bool]]) -> None:
    table = HostTable(parse_hosts("8x8c14g"))
    scheduler = Scheduler("balanced-fit", FILTERS, {})
    assert scheduler.keeps_scores
    for number, (host, comes) in enumerate(changes):
        row = table.rows[table.row_of(host) or 0]
        if comes and row.free_vcpus:
            table.use(host, 1, 1024, 0)
        elif not comes and row.instances:
            table.use(host, -1, -1024, 0, -1)
        for vcpus, mib in ((1, 1024), (1, 6144)):
            request = PlacementRequest(f"r{number}", vcpus, mib, 0)
            ranking, _ = scheduler.rank(table.columns(), request)
            first = int(ranking.ids[0]) if len(ranking) else None
            assert scheduler.pick(table, request) == first
