"""Calls of tools in what a model said: ``<tool_call>{...}</tool_call>``, as Hermes, Qwen and others do it."""

from __future__ import annotations

import json
import uuid
from typing import Any

OPENING = "<tool_call>"
_CLOSING = "</tool_call>"


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text before the first call, and the calls in OpenAI's form.

    What looks like a call and is none stays text: then there are no calls at all.
    """
    before, *rest = text.split(OPENING)
    calls = [_call(part.partition(_CLOSING)[0]) for part in rest]
    found = [call for call in calls if call is not None]
    if len(found) < len(calls):
        return text, []
    return (before.rstrip(), found) if found else (text, [])


def _call(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str):
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
