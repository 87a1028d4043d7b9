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


LIVE: dict[str, Any] = {
    "/health": _open("Whether the worker can take work: OK, LOADING, IDLE or ERROR."),
    "/version": _open("Pipeline, model and version."),
    "/hardware/info": _open("The machine's GPUs."),
    "/hardware/stats": _open("How busy they are."),
    "/capabilities": _get("Per pipeline: models, warm or cold, capacity, in use, memory.", "machine"),
    "/v1/models": _get("Models that a request may name (OpenAI).", "openai"),
    "/metrics": _get("Figures in Prometheus' text format.", "machine", "text/plain"),
    "/sessions": _get("Every live session with its figures.", "live"),
    "/live-video-to-video": _post("Start a stream, as go-livepeer's live runner is asked to.", START),
    "/stream/start": _post("Start a stream.", START),
    "/stream/stop": _post("End a stream.", {"type": "object"}, named=True),
    "/stream/params": _post("Change parameters between two frames.", {"type": "object"}, named=True),
    "/stream/status": _get("State, rates and latency of every stage.", "live"),
}
