"""The worker's application: which routes there are, who may ask, and where URLs may lead."""

import socket

import pytest
from fuzzed_server import FuzzedServer
from pydantic import SecretStr

from tests.stream.webrtc.offers import offer

MACHINE = ["/health", "/health/", "/version", "/app-version", "/hardware/info", "/hardware/stats"]
OPEN = ["/", "/page/main.js", "/openapi.json", *MACHINE]
GUARDED = ["/sessions", "/sessions/x", "/metrics", "/stream/status", "/api/page", "/workflows"]
ACTING = [
    *(f"/{name}" for name in ("offer", "live/offer", "prompt", "whip", "whip/x", "whep/x", "stream/record")),
    *(
        f"/{name}"
        for name in ("text-to-image", "image-to-image", "image-to-video", "image-to-text", "upscale")
    ),
    *(f"/{name}" for name in ("audio-to-text", "text-to-speech", "segment-anything-2", "llm")),
    *(f"/v1/{name}" for name in ("chat/completions", "images/generations", "audio/speech")),
    *("/models/warm", "/models/unload", "/workflows/check", "/v1/audio/transcriptions"),
]
READING = [
    "/models",
    "/v1/models",
    "/capabilities",
    "/ice",
    "/peers",
    "/recordings",
    "/jobs/x",
    "/stream/events",
]
POSTED = ["/live-video-to-video", "/live-video-to-video/"] + [
    f"{prefix}/stream/{what}" for prefix in ("", "/api") for what in ("start", "stop", "params")
]


@pytest.fixture
def served():
    with FuzzedServer(pipeline="byoc", model_id="mirror") as server:
        yield server
        server.end_sessions()


def start(server, session="one", **urls):
    body = {"gateway_request_id": session, "params": {"workflow": "passthrough"}, **urls}
    return server.post("/stream/start", body)


def test_every_route_of_peers_is_there(served):
    for path in (*OPEN, *GUARDED):
        assert served.ask("GET", path).status in (200, 404 if path == "/sessions/x" else 200), path
    for path in POSTED:
        answer = served.post(path, [])
        assert answer.status == 400, path
        assert answer.data["detail"]["msg"]
    for path, status, code in (
        ("/nope", 404, "not_found"),
        ("/page/nope.js", 404, "not_found"),
        ("/stream/stop", 405, "method_not_allowed"),
    ):
        answer = served.ask("GET", path)
        assert (answer.status, answer.data["code"]) == (status, code)
        assert path in answer.data["message"]
    assert served.ask("GET", "/version").data["pipeline"] == "byoc"
    assert served.ask("GET", "/hardware/info").data["model_id"] == "mirror"


def test_with_a_token_what_acts_or_names_sessions_asks_for_it():
    with FuzzedServer(token=SecretStr("s3cret")) as server:
        for path in OPEN:
            assert server.ask("GET", path).status == 200, path
        for path in GUARDED:
            assert server.ask("GET", path).status == 401, path
            allowed = server.ask("GET", path, headers={"Authorization": "Bearer s3cret"})
            assert allowed.status in (200, 404), path
        for path in READING:
            assert server.ask("GET", path).status == 401, path
        for path in (*POSTED, *ACTING):
            assert server.post(path, {}).status == 401, path
        assert server.ask("DELETE", "/sessions/x").status == 401


WATCHING = ["/whep/x?wait=0", "/key/v1ew/whep/x"]
READING_OF_VIEWERS = ["/api/page", "/workflows", "/ice", "/stream/events", "/api/stream/events"]


def test_a_token_for_viewers_is_good_for_watching_and_nothing_else():
    viewer = {"Authorization": "Bearer v1ew"}
    with FuzzedServer(token=SecretStr("s3cret"), view_token=SecretStr("v1ew")) as server:
        for path in (*OPEN, *READING_OF_VIEWERS):
            # There is no session whose events could be read.
            assert server.ask("GET", path, headers=viewer).status in (200, 404), path
        for path in WATCHING:
            # Neither 401 nor 403: it is asked for an offer.
            assert server.post(path, {}, **viewer).status == 415, path
        refused = {path for path in (*GUARDED, *READING) if path not in READING_OF_VIEWERS}
        for path in refused:
            answer = server.ask("GET", path, headers=viewer)
            assert (answer.status, answer.data["code"]) == (403, "forbidden"), path
        for path in (*POSTED, *(path for path in ACTING if path not in ("/offer", "/live/offer", "/whep/x"))):
            assert server.post(path, {}, **viewer).status == 403, path
        for method in ("DELETE", "PUT", "PATCH"):
            assert server.ask(method, "/sessions/x", headers=viewer).status == 403
        assert server.ask("GET", "/no/such/route", headers=viewer).status == 403
        assert server.post("/stream/start", [], Authorization="Bearer s3cret").status == 400
        assert server.post("/whep/x", {}, Authorization="Bearer v1ew2").status == 401


@pytest.mark.parametrize("path", ["/offer", "/live/offer"])
def test_a_viewers_offer_may_only_receive(path):
    with FuzzedServer(token=SecretStr("s3cret"), view_token=SecretStr("v1ew")) as server:
        for direction, status in (("sendrecv", 403), ("sendonly", 403), ("recvonly", 404)):
            body = {
                "offer": {"type": "offer", "sdp": offer(("audio", direction), ("video", direction))},
                "session": "x",
            }
            answer = server.post(path, body, Authorization="Bearer v1ew")
            assert answer.status == status, (direction, answer.data)
        assert len(server.worker.table) == 0


def test_pages_of_other_sites_start_nothing(served):
    answer = served.post("/stream/start", {}, Origin="https://evil.example")
    assert (answer.status, answer.data["code"]) == (403, "forbidden")
    assert served.ask("GET", "/sessions").data["sessions"] == []


@pytest.mark.parametrize("name", ["subscribe_url", "publish_url", "control_url", "events_url", "data_url"])
def test_urls_lead_only_where_they_may(served, name):
    answer = start(served, **{name: "http://169.254.169.254/latest/meta-data"})
    assert (answer.status, answer.data["field"]) == (400, name)
    with FuzzedServer(allowed_hosts=("good.example", "10.0.0.0/8")) as strict:
        answer = start(strict, **{name: "http://192.0.2.1/channel"})
        assert (answer.status, answer.data["field"]) == (400, name)
        assert "HEADRACE_ALLOWED_HOSTS" in answer.data["message"]
        assert len(strict.worker.table) == 0


@pytest.mark.parametrize(("listed", "asked"), [("10.0.0.0/8", b""), ("127.0.0.0/8", b"GET /channel/")])
def test_a_name_is_held_to_the_rules_when_it_is_connected_to(listed, asked):
    with socket.create_server(("127.0.0.1", 0)) as listener, FuzzedServer(allowed_hosts=(listed,)) as server:
        url = f"http://localhost:{listener.getsockname()[1]}/channel"
        assert start(server, subscribe_url=url).status == 200
        listener.settimeout(10)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            assert connection.recv(len(asked) or 1) == asked
        server.end_sessions()


def test_figures_without_sessions_labels_where_they_are_not_wanted(served):
    assert start(served).status == 200
    assert 'session="one"' in served.ask("GET", "/metrics").body.decode()
    with FuzzedServer(session_metrics=False) as server:
        assert start(server).status == 200
        page = server.ask("GET", "/metrics").body.decode()
        assert "session=" not in page
        assert "headrace_frames_in_total 0" in page
        server.end_sessions()


def test_a_session_is_listed_and_ended(served):
    assert start(served).status == 200
    assert [session["id"] for session in served.ask("GET", "/sessions").data["sessions"]] == ["one"]
    ended = served.ask("DELETE", "/sessions/one")
    assert (ended.status, ended.data["session"]["reason"]) == (200, "stopped by request")
    assert served.ask("GET", "/sessions").data["sessions"] == []
