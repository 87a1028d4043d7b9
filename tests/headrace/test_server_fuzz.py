"""Whatever is sent to the worker, no answer is a fault of ours and nothing stays behind."""

import json
import time
import zlib

import pytest
from fuzzed_server import FuzzedServer, descriptors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

GONE = "http://127.0.0.1:1/gone"
"""Nobody listens there."""
JSON = "application/json"
POSTS = [
    "/stream/start",
    "/api/stream/start",
    "/live-video-to-video",
    "/stream/params",
    "/stream/stop",
    "/api/demo/start",
]
PATHS = [
    *POSTS,
    "/stream/status",
    "/health",
    "/version/",
    "/hardware/info",
    "/sessions",
    "/sessions/%00",
    "/sessions/one",
    "/metrics",
    "/workflows",
    "/api/page?session=one",
    "/",
    "/page/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"]
POST = b"POST /stream/start HTTP/1.1\r\nHost: localhost\r\n"
AS_JSON = POST + b"Content-Type: application/json\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def server(monkeypatch):
    """One worker for all examples of a test; at the end it must be as it was at the beginning."""
    monkeypatch.setattr("stream.routes.BODY_TIMEOUT", 1.0)
    with FuzzedServer() as made:
        made.ask("GET", "/health")
        before, opened = made.tasks(), descriptors()
        yield made
        made.end_sessions()
        assert len(made.worker.table) == 0
        end = time.monotonic() + 5
        while (left := made.tasks() - before) or descriptors() > opened:
            assert time.monotonic() < end, f"left behind: {left}, {descriptors() - opened} descriptors"
            time.sleep(0.05)
        health = made.ask("GET", "/health")
        assert (health.status, health.data["status"]) == (200, "LOADING")


# -- what is sent ------------------------------------------------------------------------------------------

odd = [GONE, "passthrough", "edges", "16", "1e9", -1, 10**400, "\ud800", "\x00", "../x", "{", "[]"]
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(odd)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
classes = ["LoadTensor", "SaveTensor", "ImageInvert", "Nothing"]
inputs = st.dictionaries(st.sampled_from(["image", "images", "x"]), values, max_size=3)
node = st.fixed_dictionaries(
    {}, optional={"class_type": st.sampled_from(classes) | values, "inputs": inputs | values}
)
workflow = st.dictionaries(st.sampled_from(["1", "2", "3", "x"]), node | values, max_size=4)
names = ["width", "height", "max_framerate", "workflow", "prompts", "prompt", "processor", "1.x", ""]
params = st.dictionaries(st.sampled_from(names), values | workflow | workflow.map(json.dumps), max_size=5)
urls = ["subscribe_url", "publish_url", "control_url", "events_url", "data_url"]
ids = ["gateway_request_id", "stream_id", "manifest_id", "model_id"]
start = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(urls, st.just(GONE) | values),
        **dict.fromkeys(ids, values),
        "params": params | values,
    },
)
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"))
# aiohttp itself answers 500 to an Expect that is not UTF-8, before any of our code runs.
headers = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("X-Stream-Id", "Accept", "Cookie", "Range", "If-None-Match", "Origin"), header_text),
        "Expect": st.sampled_from(["100-continue", "nonsense"]),
        "Upgrade": st.sampled_from(["websocket", "h2c"]),
    },
)
types = st.sampled_from([*[JSON] * 6, "", "text/plain", "a/b+json", f"{JSON}; charset=undefined"])
encodings = st.sampled_from([*[""] * 6, "gzip", "deflate", "br", "zstd", "identity", "nonsense"])
bodies = values.map(json.dumps).map(str.encode) | st.binary(max_size=300)


def as_bytes(texts):
    return {name: value.encode("latin-1") for name, value in texts.items() if value}


def check(answer):
    assert answer.is_meant(), (answer.status, answer.body[:500])


# -- and what comes of it ----------------------------------------------------------------------------------


@fuzz
@given(st.sampled_from(POSTS), start, headers)
@example("/stream/start", {"params": {"width": 10**400, "height": "1"}}, {})
@example("/stream/start", {"gateway_request_id": "\ud800"}, {})
@example("/stream/start", {"gateway_request_id": "a\nb"}, {})
@example("/stream/start", {"params": {"workflow": {"1": float("nan")}}}, {})
@example("/stream/start", {"params": {"a": "\ud800"}}, {})
@example("/live-video-to-video", {"subscribe_url": GONE, "params": {"width": "64", "height": 64}}, {})
def test_bodies_of_the_right_kind_with_any_values(server, path, body, extra):
    answer = server.post(path, body, **as_bytes(extra))
    check(answer)
    if answer.status == 200:
        for page in ("/stream/status", "/sessions", "/metrics", "/api/page"):
            told = server.ask("GET", page)
            assert told.status == 200, (page, told.body[:500])
            if page != "/metrics":
                json.loads(told.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    server.end_sessions()


@fuzz
@given(st.sampled_from(POSTS), bodies, headers, types, encodings)
@example("/stream/start", b"{" * 100_000, {}, JSON, "")
@example("/stream/start", b'{"a":' * 500 + b"1" + b"}" * 500, {}, JSON, "")
@example("/stream/start", b'{"params": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}", {}, JSON, "")
@example("/stream/start", b"9" * 5000, {}, JSON, "")
@example("/stream/start", b'{"params": {"a": 1e999}}', {}, JSON, "")
@example("/stream/start", b"\xff\xfe{\x00}\x00", {}, JSON, "")
@example("/stream/start", b"{}", {}, f"{JSON}; charset=undefined", "")
@example("/stream/start", zlib.compress(b" " * (64 << 20)), {}, JSON, "deflate")
@example("/stream/start", b"", {}, JSON, "deflate")
@example("/stream/start", b"no gzip", {}, JSON, "gzip")
def test_any_body_of_any_kind(server, path, body, extra, content_type, encoding):
    described = {"Content-Type": content_type, "Content-Encoding": encoding}
    check(server.ask("POST", path, body, as_bytes(extra | described)))
    server.end_sessions()


@fuzz
@given(st.sampled_from(METHODS), st.sampled_from(PATHS), headers)
def test_any_method_on_any_path(server, method, path, extra):
    answer = server.ask(method, path, None, as_bytes(extra))
    check(answer)
    assert b"root:" not in answer.body
    server.end_sessions()


@fuzz
@given(st.tuples(st.sampled_from([b"", GET, POST, AS_JSON]), st.binary(max_size=300)).map(b"".join))
@example(AS_JSON + b"Content-Length: -1\r\n\r\n")
@example(AS_JSON + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
@example(AS_JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(AS_JSON + b"Content-Length: 10\r\n\r\n{")
@example(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
@example(GET + b"x: y\r\n" * 5_000 + b"\r\n")
def test_any_bytes(server, data):
    check(server.send(data))


@settings(fuzz, max_examples=20)
@given(st.dictionaries(st.text(max_size=20), values, max_size=5))
def test_any_parameters_of_a_running_session_are_answered_and_harm_nothing(server, body):
    wanted = {"gateway_request_id": "one", "params": {"workflow": "passthrough"}}
    assert server.post("/stream/start", wanted).status in (200, 409)
    check(server.post("/stream/params", body, **{"X-Stream-Id": "one"}))
    assert server.ask("GET", "/sessions/one").data["reason"] is None


def test_a_body_over_the_limit_is_refused_whichever_way_it_comes(server):
    assert server.send(AS_JSON + b"Content-Length: 99999999\r\n\r\n", end=False).status == 413
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 12 + b"0\r\n\r\n"
    assert server.send(AS_JSON + body, end=False).status == 413


def test_a_body_that_does_not_come_is_not_waited_for(server):
    answer = server.send(AS_JSON + b"Content-Length: 10\r\n\r\n{", end=False)
    assert answer.status == 400


def test_no_more_than_its_capacity_is_taken(server):
    statuses = [server.post("/stream/start", {"gateway_request_id": str(n)}).status for n in range(4)]
    assert statuses == [200, 200, 503, 503]
    assert server.post("/live-video-to-video", {}).status == 500
