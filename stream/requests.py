"""What callers send to start a stream: PyTrickle's and ai-runner's bodies in one model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, UrlConstraints, ValidationError

from stream.errors import InvalidInput

MAX_SIZE = 4096
MIN_SIZE = 16
MAX_FRAMERATE = 240.0

ChannelUrl = Annotated[AnyUrl, UrlConstraints(max_length=2048, allowed_schemes=["http", "https"])]


class StreamStart(BaseModel):
    """Body of ``POST /stream/start`` (go-livepeer BYOC, PyTrickle) and ``POST /live-video-to-video``
    (go-livepeer live runner, ai-runner). Every URL is a trickle channel and may be left out or empty."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    subscribe_url: ChannelUrl | None = None
    publish_url: ChannelUrl | None = None
    control_url: ChannelUrl | None = None
    events_url: ChannelUrl | None = None
    data_url: ChannelUrl | None = None
    gateway_request_id: str | None = Field(default=None, max_length=256)
    manifest_id: str | None = Field(default=None, max_length=256)
    stream_id: str | None = Field(default=None, max_length=256)
    model_id: str | None = Field(default=None, max_length=256)
    params: dict[str, Any] | None = None

    def url(self, name: str) -> str | None:
        """The URL of that name as text without a slash at its end."""
        value = getattr(self, f"{name}_url")
        return str(value).rstrip("/") if value is not None else None


def parse_start(body: Any) -> StreamStart:
    """Check a decoded JSON body; `InvalidInput` lists every problem."""
    if not isinstance(body, dict):
        raise InvalidInput(f"expected a JSON object, got {type(body).__name__}", field="body")
    cleaned = {key: None if value == "" else value for key, value in body.items()}
    try:
        return StreamStart.model_validate(cleaned)
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, p["loc"])), "message": p["msg"], "value": repr(p["input"])[:100]}
            for p in error.errors()
        ]
        first = problems[0]
        text = "; ".join(f"{p['field']}: {p['message']} (got {p['value']})" for p in problems)
        raise InvalidInput(text, field=first["field"], details=problems) from None


@dataclass(frozen=True, slots=True)
class MediaParams:
    """The parameters of a start that concern the media, and not the processor."""

    width: int | None
    height: int | None
    max_framerate: float | None


def take_media_params(params: Mapping[str, Any]) -> tuple[MediaParams, dict[str, Any]]:
    """Split a start's parameters: those of the media, checked and coerced, and the processor's own."""
    rest = dict(params)
    if ("width" in rest) != ("height" in rest):
        present, absent = ("width", "height") if "width" in rest else ("height", "width")
        raise InvalidInput(
            f"Both 'width' and 'height' must be provided together; {absent} is missing", field=present
        )
    width = _size("width", rest.pop("width", None))
    height = _size("height", rest.pop("height", None))
    rate = rest.pop("max_framerate", None)
    return MediaParams(width, height, None if rate is None else _rate(rate)), rest


def _size(name: str, value: Any) -> int | None:
    if value is None:
        return None
    number = _number(name, value)
    if number != int(number) or not MIN_SIZE <= number <= MAX_SIZE:
        raise InvalidInput(
            f"{name} must be a whole number from {MIN_SIZE} to {MAX_SIZE}, not {value!r}", field=name
        )
    return int(number)


def _rate(value: Any) -> float:
    number = _number("max_framerate", value)
    if not 1 <= number <= MAX_FRAMERATE:
        raise InvalidInput(
            f"max_framerate must be from 1 to {MAX_FRAMERATE:.0f}, not {value!r}", field="max_framerate"
        )
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InvalidInput(f"{name} must be a number, not {repr(value)[:60]}", field=name)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name} must be a number, not {repr(value)[:60]}", field=name) from None
    if not math.isfinite(number):
        raise InvalidInput(f"{name} must be a finite number, not {repr(value)[:60]}", field=name)
    return number
