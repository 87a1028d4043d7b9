"""The paths of the OpenAPI document that are not of batch requests: the machine, discovery, live streams."""

from __future__ import annotations

from typing import Any

URLS = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")
START: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{name: {"type": "string", "description": "Trickle channel; may be left out."} for name in URLS},
        "gateway_request_id": {"type": "string", "description": "The stream's name."},
        "params": {
            "type": "object",
            "description": "`workflow` or `processor`, `width`, `height`, `max_framerate`; the rest is the "
            "workflow's.",
        },
    },
}
STREAM = {
    "name": "stream_id",
    "in": "query",
    "required": False,
    "description": "The stream; not needed where one runs. Or the header X-Stream-Id.",
    "schema": {"type": "string"},
}


def _get(summary: str, tag: str, kind: str = "application/json") -> dict[str, Any]:
    answer = {"200": {"description": "The answer.", "content": {kind: {}}}}
    return {"get": {"summary": summary, "tags": [tag], "responses": answer}}


def _open(summary: str) -> dict[str, Any]:
    """Asks for no token."""
    path = _get(summary, "machine")
    path["get"]["security"] = []
    return path


def _post(summary: str, body: dict[str, Any], *, named: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "tags": ["live"],
        "requestBody": {"content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {}}},
            "400": {"description": "The request cannot be used.", "content": {"application/json": {}}},
        },
    }
    if named:
        operation["parameters"] = [STREAM]
    return {"post": operation}


def _plain(method: str, summary: str, tag: str, *, kind: str | None = None) -> dict[str, Any]:
    """An operation whose bodies are described elsewhere; ``kind``: the type of the one that is sent."""
    operation: dict[str, Any] = {
        "summary": summary,
        "tags": [tag],
        "responses": {"default": {"description": "See the documentation."}},
    }
    if kind is not None:
        operation["requestBody"] = {"content": {kind: {}}}
    return {method: operation}


def _names(path: str) -> dict[str, Any]:
    """The parameters in a path."""
    found = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in found
    ]
    return {"parameters": parameters} if parameters else {}


JSON, SDP, FRAGMENT = "application/json", "application/sdp", "application/trickle-ice-sdpfrag"
_PLAIN: tuple[tuple[str, tuple[dict[str, Any], ...]], ...] = (
    (
        "/whip",
        (_plain("post", "Publish (WHIP, RFC 9725) into a session with a new name.", "webrtc", kind=SDP),),
    ),
    ("/whip/{session}", (_plain("post", "Publish into the session of that name.", "webrtc", kind=SDP),)),
    ("/whep", (_plain("post", "View (WHEP) the one session that runs.", "webrtc", kind=SDP),)),
    ("/whep/{session}", (_plain("post", "View the session of that name.", "webrtc", kind=SDP),)),
    *(
        (
            f"/{role}/{{session}}/{{peer}}",
            (
                _plain("patch", "Candidates, or an ICE restart.", "webrtc", kind=FRAGMENT),
                _plain("delete", "End the connection.", "webrtc"),
            ),
        )
        for role in ("whip", "whep")
    ),
    ("/offer", (_plain("post", "An offer with prompts, as ComfyStream takes it.", "webrtc", kind=JSON),)),
    ("/prompt", (_plain("post", "Another workflow for ComfyStream's streams.", "webrtc", kind=JSON),)),
    ("/ice", (_plain("get", "STUN and TURN servers for a peer.", "webrtc"),)),
    ("/peers", (_plain("get", "Every WebRTC connection with its figures.", "webrtc"),)),
    (
        "/stream/record",
        (
            _plain("post", "Record a stream: what comes in, what goes out, or both.", "recording", kind=JSON),
            _plain("get", "What is being recorded.", "recording"),
            _plain("delete", "End a recording.", "recording"),
        ),
    ),
    ("/recordings", (_plain("get", "The files that were recorded.", "recording"),)),
    ("/workflows", (_plain("get", "Kept and bundled workflows, and why one cannot run.", "workflows"),)),
    (
        "/workflows/check",
        (_plain("post", "The nodes and every problem of a workflow.", "workflows", kind=JSON),),
    ),
    (
        "/workflows/{id}",
        (
            _plain("get", "A workflow's file, with its ETag.", "workflows"),
            _plain("put", "Keep a workflow: JSON, or a picture that carries one.", "workflows", kind=JSON),
            _plain("delete", "Forget a kept workflow.", "workflows"),
        ),
    ),
    (
        "/workflows/{id}/schema",
        (_plain("get", "Its live parameters as JSON Schema.", "workflows"),),
    ),
    (
        "/workflows/{id}/save",
        (
            _plain(
                "post",
                "Keep what was tuned: `session`, or `values` for the kept one; `replace`.",
                "workflows",
                kind=JSON,
            ),
        ),
    ),
    (
        "/recordings/{file}",
        (
            _plain("get", "One of them.", "recording"),
            _plain("delete", "Delete it.", "recording"),
        ),
    ),
    ("/models", (_plain("get", "Models in memory and how far those are that load; `?disk=1`.", "models"),)),
    ("/models/warm", (_plain("post", "Load `model_id` and keep it.", "models", kind=JSON),)),
    ("/models/unload", (_plain("post", "Unload `model_id`; 409 while it is used.", "models", kind=JSON),)),
    ("/media/{file}", (_plain("get", "A file of an answer that was asked for as a URL.", "batch"),)),
    (
        "/image-to-video/result",
        (_plain("post", "A job of a video as gateways ask for it: `request_id`.", "jobs", kind=JSON),),
    ),
)


LIVE: dict[str, Any] = {
    "/health": _open("Whether the worker can take work: OK, LOADING, IDLE or ERROR."),
    "/version": _open("Pipeline, model and version."),
    "/hardware/info": _open("The machine's GPUs."),
    "/hardware/stats": _open("How busy they are."),
    "/capabilities": _get("Per pipeline: models, warm or cold, capacity, in use, memory.", "machine"),
    "/v1/models": _get("Models that a request may name (OpenAI).", "openai"),
    "/v1/models/{id}": _names("/v1/models/{id}") | _get("One of them; 404 where it is not here.", "openai"),
    "/metrics": _get("Figures in Prometheus' text format.", "machine", "text/plain"),
    "/sessions": _get("Every live session with its figures.", "live"),
    "/live-video-to-video": _post("Start a stream, as go-livepeer's live runner is asked to.", START),
    "/stream/start": _post("Start a stream.", START),
    "/stream/stop": _post("End a stream.", {"type": "object"}, named=True),
    "/stream/params": _post("Change parameters between two frames.", {"type": "object"}, named=True),
    "/stream/status": _get("State, rates and latency of every stage.", "live"),
    "/stream/events": _get("What streams tell, as server-sent events.", "live", "text/event-stream"),
    "/stream/schema": _get("The parameters of a stream as JSON Schema.", "live"),
    **{
        path: _names(path) | {method: told for one in operations for method, told in one.items()}
        for path, operations in _PLAIN
    },
}
