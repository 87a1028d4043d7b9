"""Bodies of requests and answers, and the rules for parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from byoc.utils.hardware import GPUComputeInfo, GPUUtilizationInfo
from stream.errors import InvalidInput
from stream.requests import take_media_params

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


def checked_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with those of the media coerced: ``width`` and ``height`` (only both), ``max_framerate`` and
    ``detect_out_resolution``; whatever else there is stays as it is. Raises `InvalidInput`."""
    for key in params:
        if not isinstance(key, str):
            raise InvalidInput(f"the name of a parameter must be text, not {key!r}", field="params")
    media, _ = take_media_params(params)
    checked = dict(params)
    if media.width is not None:
        checked["width"], checked["height"] = media.width, media.height
    if media.max_framerate is not None:
        rate = media.max_framerate
        checked["max_framerate"] = int(rate) if rate == int(rate) else rate
    if "detect_out_resolution" in params:
        checked["detect_out_resolution"] = as_flag("detect_out_resolution", params["detect_out_resolution"])
    return checked


def as_flag(name: str, value: Any) -> bool:
    """A boolean that may have come as a number or as text; raises `InvalidInput`."""
    if isinstance(value, (bool, int)):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in TRUE + FALSE:
        return value.strip().lower() in TRUE
    raise InvalidInput(f"{name} must be true or false, not {value!r}", field=name)


def _checked(params: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return checked_params(params)
    except InvalidInput as error:
        # What pydantic takes for a problem of the field.
        raise ValueError(error.message) from None


class StreamParamsUpdateRequest(BaseModel):
    """Any parameters, as a flat object."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    def validate_params(cls, v: Any) -> Any:
        """The parameters, checked and coerced (None stays None); raises `ValueError`."""
        if v is None:
            return v
        if not isinstance(v, dict):
            raise ValueError(f"params must be an object, not {type(v).__name__}")
        return _checked(v)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        return super().model_validate(cls.validate_params(obj) if isinstance(obj, dict) else obj, **options)


class StreamStartRequest(BaseModel):
    """What starts a stream. Every URL is a trickle channel and may be left out."""

    subscribe_url: str | None = None
    publish_url: str | None = None
    control_url: str | None = None
    events_url: str | None = None
    data_url: str | None = None
    gateway_request_id: str
    params: dict[str, Any] | None = None

    @field_validator("params")
    @classmethod
    def validate_optional_params_dict(cls, value: Any) -> Any:
        return StreamParamsUpdateRequest.validate_params(value)


class StreamResponse(BaseModel):
    status: str
    message: str
    request_id: str | None = None
    config: dict[str, Any] | None = None


class StreamStatusResponse(BaseModel):
    processing_active: bool
    stream_count: int
    message: str | None = None
    current_stream: dict[str, Any] | None = None
    all_streams: dict[str, Any] | None = None


class HealthCheckResponse(BaseModel):
    status: str
    service: str
    version: str
    stream_manager_ready: bool | None = None
    error: str | None = None


class ServiceInfoResponse(BaseModel):
    service: str
    version: str
    description: str
    capabilities: list[Any]
    endpoints: dict[str, Any]


class HealthStatus(BaseModel):
    status: str
    error_message: str | None = None
    pipeline_ready: bool = False
    active_streams: int = 0
    startup_complete: bool = False
    additional_info: dict[str, Any] | None = None


class Version(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    pipeline: str = "byoc"
    model_id: str
    version: str


class HardwareInformation(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    pipeline: str
    model_id: str
    gpu_info: dict[int, GPUComputeInfo] = Field(default_factory=dict)


class HardwareStats(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    pipeline: str
    model_id: str
    gpu_stats: dict[int, GPUUtilizationInfo] = Field(default_factory=dict)
