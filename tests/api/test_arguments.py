"""Whatever is sent, the answer is JSON with the documented key, and says what to change."""

from __future__ import annotations

import json
import random
import string
import time
from typing import Any
from urllib.parse import quote

import pytest
from cloudkit import INSIDES, Cloud, assert_failure, assert_no_insides
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_classic_calls import FAILURES

from treadle.api.classic import CALLS

NUMBERED = [
    ("/vm/query", "vmid"), ("/vm/destroy", "vmid"), ("/vm/stop", "vmid"), ("/vm/start", "vmid"),
    ("/vm/reboot", "vmid"), ("/vm/pause", "vmid"), ("/vm/resume", "vmid"), ("/vm/suspend", "vmid"),
    ("/pm/query", "pmid"), ("/pm/listvms", "pmid"),
]
NOT_NUMBERS = [
    "", "0", "-1", "-0", "+1", "1.0", "1e3", "0x1", "1_0", " 1", "1 ", "01x", "abc", "NaN", "null",
    "None", "true", "1;2", "1,2", "[1]", "1'", '1"', "1 OR 1=1", "1%00", "1\n", "\u0661", "\u00b2",
    "\uff11", "1" * 19, "9" * 10_000, "-" + "9" * 30, "../1", "*", "%",
]


@pytest.mark.parametrize(("path", "name"), NUMBERED)
def test_a_number_that_is_none_is_refused(shared: Cloud, path: str, name: str) -> None:
    for text in NOT_NUMBERS:
        shared.fails(f"{path}?{name}={quote(text)}", 400, FAILURES[path], name)


@pytest.mark.parametrize(("path", "name"), NUMBERED)
def test_an_argument_that_is_missing_or_repeated_or_unknown_is_named(
    shared: Cloud, path: str, name: str
) -> None:
    failure = FAILURES[path]
    takes = ", ".join(sorted(next(one for one in CALLS if one.path == path).arguments))
    shared.fails(path, 400, failure, f"add {name}=NUMBER")
    shared.fails(f"{path}?", 400, failure, name)
    shared.fails(f"{path}?{name}=1&{name}=1", 400, failure, "given twice")
    shared.fails(f"{path}?{name}=1&{name}=2", 400, failure, "given twice")
    shared.fails(f"{path}?{name}=1&force=1", 400, failure, f"{path} takes {takes}")
    shared.fails(f"{path}?{name.upper()}=1", 400, failure, f"{path} takes {takes}")
    shared.fails(f"{path}?{name}%20=1", 400, failure, f"{path} takes {takes}")
    shared.fails(f"{path}?{name}[]=1", 400, failure, f"{path} takes {takes}")


@pytest.mark.parametrize("path", ["/vm/list", "/vm/types", "/pm/list", "/image/list"])
def test_a_call_without_arguments_takes_none(shared: Cloud, path: str) -> None:
    shared.fails(f"{path}?vmid=1", 400, FAILURES[path], f"{path} takes none")
    shared.fails(f"{path}?x", 400, FAILURES[path])
    assert shared.get(f"{path}?").status_code == 200


@pytest.mark.parametrize("name", ["instance_type", "image_id", "count"])
def test_the_numbers_of_create_are_checked(shared: Cloud, name: str) -> None:
    whole = {"name": "a", "instance_type": "1", "image_id": "1", "count": "1"}
    before = shared.ok("/vm/list")
    for text in NOT_NUMBERS:
        query = "&".join(f"{k}={quote(v)}" for k, v in {**whole, name: text}.items())
        shared.fails(f"/vm/create?{query}", 400, {"vmid": 0}, name)
        shared.fails(f"/vm/create?{query}&{name}=1", 400, {"vmid": 0}, "given twice")
    assert shared.ok("/vm/list") == before


BAD_NAMES = [
    "", " ", "-a", "a b", "../../etc/passwd", "a/b", "a\\b", "a'b", 'a"b', "a;rm -rf", "a\0b",
    "a\nb", "a\r\nX-Injected: 1", "<domain/>", "a&b", "é", "\U0001f9f5", "\u202e", "x" * 64,
    "x" * 10_000, "'; DROP TABLE instance; --", "%s", "{0}", "${x}", "$(reboot)", "`id`",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda text: ascii(text)[:20])
def test_a_name_that_could_be_read_as_anything_else_is_refused(shared: Cloud, name: str) -> None:
    before = shared.ok("/vm/list")
    says = shared.fails(
        f"/vm/create?name={quote(name, safe='')}&instance_type=1", 400, {"vmid": 0}, "name is"
    )
    assert len(says) < 300
    answer = shared.client.post("/vm/create", data={"name": name, "instance_type": "1"})
    assert_failure(answer, 400, {"vmid": 0}, "name is")
    assert shared.ok("/vm/list") == before


@pytest.mark.parametrize(
    "query",
    [
        "vmid", "vmid=1&", "&vmid=1", "vmid=1&&vmid=2", "=", "=1", "&", "&&&", "vmid=%", "vmid=%G1",
        "vmid=%E9", "vmid=%FF%FE", "vmid=%C0%80", "vmid=%ED%A0%80", "vmid=%00", "%76mid=%31%",
        "vmid=1;vmid=2", "vmid==1", "vmid=1=2", "?vmid=1", "vmid=1?vmid=2",
        "&".join(f"a{n}=1" for n in range(100)), "vmid=" + "%41" * 3000, "%" * 3000,
    ],
    ids=lambda text: text[:16],
)
def test_nonsense_in_place_of_arguments_is_refused(shared: Cloud, query: str) -> None:
    shared.fails(f"/vm/query?{query}", 400, {"vmid": 0})
    body = query.encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = shared.client.post("/vm/stop", content=body, headers=kind)
    assert_failure(answer, 400, {"status": 0})


def test_an_encoded_argument_is_decoded_once(shared: Cloud) -> None:
    vmid = shared.ok("/vm/list")["vmids"][0]
    encoded = "".join(f"%{ord(c):02X}" for c in str(vmid))
    assert shared.ok(f"/vm/query?%76%6d%69d={encoded}")["vmid"] == vmid
    twice = quote(encoded)
    shared.fails(f"/vm/query?vmid={twice}", 400, {"vmid": 0})


# -- bodies


def test_a_body_that_is_too_large_is_refused(shared: Cloud) -> None:
    for size in (64 * 1024 + 1, 1 << 20, 8 << 20):
        answer = shared.client.post(
            "/vm/create", content=b"name=" + b"a" * size,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert_failure(answer, 400, {"vmid": 0}, "at most 65536")
    assert shared.get("/vm/list").status_code == 200


def test_a_body_of_another_kind_is_refused(shared: Cloud) -> None:
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain", "nonsense"):
        answer = shared.client.post(
            "/vm/create", content=b'{"name": "a"}', headers={"Content-Type": kind}
        )
        assert_failure(answer, 400, {"vmid": 0}, "application/x-www-form-urlencoded")


def test_bytes_that_are_no_text_are_refused(shared: Cloud) -> None:
    for body in (b"\xff\xfe\x00", b"name=\xe9&instance_type=1", b"\0" * 100, bytes(range(256))):
        answer = shared.client.post(
            "/vm/create", content=body,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert_failure(answer, 400, {"vmid": 0})


def test_an_argument_may_not_be_in_both_the_query_and_the_form(shared: Cloud) -> None:
    answer = shared.client.post("/vm/stop?vmid=1", data={"vmid": "1"})
    assert_failure(answer, 400, {"status": 0}, "given twice")


def test_a_body_that_breaks_off_harms_nobody(shared: Cloud) -> None:
    head = (
        b"POST /vm/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname=a&inst"
    )
    before = shared.ok("/vm/list")
    shared.raw(head)
    native = head.replace(b"/vm/create", b"/treadle/v1/hosts").replace(
        b"Content-Type", b"Authorization: Bearer "
        + shared.treadle.context.admin_token.encode() + b"\r\nContent-Type"
    )
    shared.raw(native)
    assert shared.ok("/vm/list") == before


# -- paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/", "/vm", "/vm/", "/vm/list/", "/vm/create/", "/vm/create/x", "/VM/list", "/vm//list",
        "//vm/list", "/vm/../vm/nothing", "/vm/%2e%2e/pm/list/x", "/vm/list%00", "/vm/list%2f",
        "/vm/destroy%3Fvmid=1", "/volume", "/pm", "/images", "/favicon.ico", "/.git/config",
        "/" + "a" * 5000, "/%ff%fe", "/%", "/\u00e9", "/<script>", "/vm/fly?vmid=1",
        "/treadle", "/healthz/x", "/docs/x",
    ],
)
def test_an_unknown_path_is_json_too(shared: Cloud, path: str) -> None:
    said = shared.raw(
        b"GET " + path.encode("latin-1" if path.isascii() else "utf-8")
        + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )
    head, _, body = said.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status == 400 and not path.isascii():
        return  # bytes that HTTP does not allow in a path never get as far as the application
    assert status == 404, head
    assert b"application/json" in head
    answer = json.loads(body)
    assert set(answer) == {"status", "error"}
    assert answer["status"] == 0
    assert len(answer["error"]) < 300


@pytest.mark.parametrize("host", ["[", "]", "[::", "a/b", "a/treadle/v1", "a?b", "a#b", "@", "%zz"])
def test_a_host_header_does_not_change_which_path_was_asked_for(shared: Cloud, host: str) -> None:
    answer = shared.get("/nowhere/at/all", headers={"Host": host})
    assert_failure(answer, 404, {"status": 0}, "there is no call /nowhere/at/all")
    answer = shared.get("/vm/list/", headers={"Host": host})
    assert_failure(answer, 404, {"status": 0}, "there is no call /vm/list/")
    answer = shared.get("/treadle/v1/nothing", headers={"Host": host})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFound"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "POST", "TRACE"])
def test_another_method_is_answered_in_the_shape_of_the_call(shared: Cloud, method: str) -> None:
    for spec in CALLS:
        if method == "POST" and spec.changes:
            continue
        answer = shared.client.request(method, spec.path)
        assert_failure(answer, 405, FAILURES[spec.path], f"{spec.path} does not take {method}")
        allowed = set(answer.headers["allow"].split(", "))
        assert allowed == ({"GET", "POST"} if spec.changes else {"GET", "HEAD"})


# -- anything at all

KEYS = {spec.path: spec.key for spec in CALLS}
READS = [spec.path for spec in CALLS if not spec.changes]
ARGUMENTS = sorted({name for spec in CALLS for name in spec.arguments})
FUZZ = settings(
    max_examples=100, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def words(**limits: Any) -> st.SearchStrategy[str]:
    """Any text but what an answer may not have in it: what a caller has sent may come back to him,
    and Hypothesis tries the words that stand in this program."""
    return st.text(**limits).filter(lambda text: not any(one in text for one in INSIDES))


def check(cloud: Cloud, path: str, query: str) -> None:
    """The rules that hold of every answer."""
    answer = cloud.get(f"{path}?{query}" if query else path)
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    if answer.status_code == 200:
        assert not KEYS[path] or KEYS[path] in body
    else:
        error = body.pop("error")
        assert isinstance(error, str)
        assert error
        assert body == FAILURES[path]
    assert_no_insides(answer.text)


@FUZZ
@given(path=st.sampled_from(sorted(KEYS)), query=words(alphabet=string.printable, max_size=60))
@example(path="/vm/query", query="vmid=1&vmid=%00")
def test_any_text_as_a_query_gets_an_answer(shared: Cloud, path: str, query: str) -> None:
    check(shared, path, quote(query, safe="=&%+;?/:@!$'()*,[]"))


@FUZZ
@given(
    path=st.sampled_from([path for path in sorted(KEYS) if path != "/vm/create"]),
    pairs=st.lists(
        st.tuples(
            st.sampled_from(ARGUMENTS),
            st.one_of(words(max_size=20), st.integers(-10, 10**20).map(str)),
        ),
        max_size=4,
    ),
)
def test_any_arguments_get_an_answer(
    shared: Cloud, path: str, pairs: list[tuple[str, str]]
) -> None:
    resident = str(shared.ok("/vm/list")["vmids"][0])
    pairs = [(name, value) for name, value in pairs if value.strip() != resident]
    query = "&".join(
        f"{name}={quote(value.encode('utf-8', 'surrogatepass'), safe='')}" for name, value in pairs
    )
    check(shared, path, query)


@FUZZ
@given(
    pairs=st.dictionaries(
        st.sampled_from(["name", "instance_type", "image_id", "count", "wait", "x"]),
        st.one_of(words(max_size=20), st.integers(-10, 10**20).map(str)), max_size=5,
    )
)
def test_any_wish_gets_an_answer(shared: Cloud, pairs: dict[str, str]) -> None:
    query = "&".join(
        f"{name}={quote(value.encode('utf-8', 'surrogatepass'), safe='')}"
        for name, value in {**pairs, "instance_type": "77"}.items()
    )
    check(shared, "/vm/create", query)


def test_bytes_that_are_hardly_http_do_no_harm(shared: Cloud) -> None:
    rng = random.Random(7)
    head = b"GET /vm/query?vmid=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    end = time.monotonic() + 2.0
    tried = 0
    while tried < 150 and time.monotonic() < end:
        spoiled = bytearray(head)
        for _ in range(rng.randint(1, 6)):
            spoiled[rng.randrange(len(spoiled) - 4)] = rng.randrange(256)
        try:
            said = shared.raw(bytes(spoiled))
        except (ConnectionError, TimeoutError):
            said = b""
        if said:
            assert int(said.split()[1]) < 500
        tried += 1
    assert tried
    assert shared.get("/healthz").status_code == 200
