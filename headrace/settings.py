"""Settings of a worker: flags, the environment (``HEADRACE_*``), a TOML file and defaults, in this order."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, DirectoryPath, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from headrace.settings_sources import PEER_NAMES, PREFIX, ConfigFile, PeerNames
from stream.codecs.h264_options import TRICKLE_QUALITY
from stream.errors import InvalidInput
from stream.logs import LogFormat, LogLevel
from stream.webrtc.ice import BRIDGES


def _names(value: Any) -> Any:
    """A list, or its items with commas between them as the environment has them."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _object(value: Any) -> Any:
    """A JSON object, or its text as flags and the environment have it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


JsonObject = Annotated[dict[str, Any], NoDecode, BeforeValidator(_object)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class Settings(BaseSettings):
    """One typed object for everything that an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", env_ignore_empty=True, protected_namespaces=()
    )

    config: Path | None = Field(None, description="TOML file with any of these settings, as `port = 8000`")
    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs a token")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on (0: any free one)")
    token: SecretStr | None = Field(
        None, min_length=1, description="bearer token that every route that acts asks for"
    )
    view_token: SecretStr | None = Field(
        None, min_length=1, description="second token, good for watching only: WHEP, events and the page"
    )
    tls_certificate: Path | None = Field(None, description="PEM file with the certificates: listen by TLS")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's key")
    self_signed: bool = Field(False, description="listen by TLS with a certificate made for this machine")
    allowed_hosts: Names = Field(
        (), description="hosts that callers' URLs may lead to, with commas between them (none: see below)"
    )
    capacity: int = Field(4, ge=1, le=256, description="sessions at once")
    orchestrator: str | None = Field(
        None, description="service URL of the orchestrator to register with (none: it does not register)"
    )
    orchestrator_secret: SecretStr | None = Field(None, description="the orchestrator's `-orchSecret`")
    capabilities: Names = Field(
        (), description="names to register under, with commas between them (none: `model_id`)"
    )
    capability_url: str | None = Field(
        None, description="URL at which the orchestrator reaches this worker (default: `localhost`)"
    )
    capability_description: str = Field("", description="what the orchestrator is told of it")
    capability_price: int = Field(0, ge=0, lt=2**63, description="price of a second of work, in wei")
    capability_price_scaling: int = Field(1, ge=1, lt=2**63, description="by which the price is divided")
    registration_interval: float = Field(
        60.0, ge=5, le=3600, description="seconds after which the registration is repeated"
    )
    pipeline: str = Field(
        "live-video-to-video",
        description="pipeline that `/version` and `/hardware` name; `stream-diffusion` runs it for streams "
        "that name nothing",
    )
    pipeline_params: JsonObject = Field(
        {}, description="what the processor of streams that name nothing begins with, as a JSON object"
    )
    model_id: str = Field("headrace", description="model that `/version`, `/hardware` and status events name")
    workflow: str = Field("passthrough", description="workflow of a stream that names none: name or file")
    workflows: Path | None = Field(
        None, description="folder of your own workflows (default: `~/.local/share/headrace/workflows`)"
    )
    processor: str | None = Field(
        None,
        description="class of a stream that names nothing, as `package.module:Class`, in place of a workflow",
    )
    input_folder: DirectoryPath | None = Field(
        None, description="folder of the pictures that a workflow's LoadImage names"
    )
    width: int = Field(512, ge=16, le=4096, description="width of trickle streams that name none, pixels")
    height: int = Field(512, ge=16, le=4096, description="height of trickle streams that name none, pixels")
    max_framerate: float | None = Field(None, gt=0, le=240, description="cap on frames taken in, per second")
    bitrate: int = Field(
        2_000_000, ge=50_000, le=100_000_000, description="video out by trickle at most, bits per second"
    )
    quality: int = Field(
        TRICKLE_QUALITY,
        ge=0,
        le=51,
        description="x264's constant rate factor by trickle, 1 the best: no more bits than that takes "
        "(0: always the whole bitrate)",
    )
    preset: str = Field("superfast", description="x264 preset")
    hardware: Literal["auto", "off", "require"] = Field("auto", description="NVDEC and NVENC")
    overlay: bool = Field(True, description="show a notice while there is no result")
    input_timeout: float = Field(60.0, gt=0, description="seconds without input after which a session ends")
    verify_tls: bool = Field(True, description="check the certificates of trickle servers")
    engine_python: str | None = Field(None, description="interpreter of the engine (default: this one)")
    engine_threads: int | None = Field(None, ge=1, description="torch threads of the engine")
    engine_device: str = Field("auto", description="cuda, cuda:1, cpu or auto")
    call_timeout: float = Field(5.0, gt=0, description="seconds after which a silent engine is restarted")
    custom_nodes: DirectoryPath | None = Field(
        None, description="folder of custom nodes for our own engine, as ComfyUI's `custom_nodes`"
    )
    comfyui: DirectoryPath | None = Field(
        None, description="folder of an existing ComfyUI, whose nodes workflows may then name"
    )
    comfyui_python: str | None = Field(
        None, description="interpreter of that ComfyUI (default: the virtual environment in its folder)"
    )
    comfyui_args: str = Field(
        "", description="further arguments for that ComfyUI, as its `main.py` takes them"
    )
    object_info: str | None = Field(
        None,
        description="file or URL: a ComfyUI's `/object_info`, by which workflows are checked whose nodes no "
        "engine here has",
    )
    comfyui_prefer: bool = Field(False, description="run in ComfyUI what our own nodes could do as well")
    comfyui_classes: Names = Field(
        (), description="node classes that callers may use in ComfyUI, as `KSampler*` (none: all)"
    )
    comfyui_folders: Names = Field(
        (), description="further folders that workflows in ComfyUI may name by absolute paths"
    )
    comfyui_skip_packs: Names = Field(
        ("ComfyUI-Manager",), description="folders of custom nodes that are not loaded"
    )
    comfyui_prestart: bool = Field(False, description="run the pre-start scripts of custom nodes")
    comfyui_network: bool = Field(
        False, description="load ComfyUI's nodes for paid network services, and let nodes be given URLs"
    )
    comfyui_second: Literal["auto", "on", "off"] = Field(
        "auto",
        description="load another workflow in a second ComfyUI: when memory allows (auto), on, off",
    )
    allow_processors: bool = Field(
        False, description="let a stream name a Python class by params.processor (module:Class)"
    )
    publisher_grace: float = Field(
        30.0, ge=0, le=3600, description="seconds that a session outlives its publisher, who may come back"
    )
    max_viewers: int = Field(64, ge=1, le=10_000, description="WebRTC viewers at once, of all sessions")
    viewer_bitrate_min: int = Field(
        250_000,
        ge=100_000,
        le=100_000_000,
        description="bits per second below which a WebRTC viewer moves to a second, lower encoding",
    )
    viewer_bitrate_max: int = Field(
        6_000_000, ge=100_000, le=100_000_000, description="most bits per second for WebRTC viewers"
    )
    publisher_bitrate_max: int = Field(
        12_000_000, ge=300_000, le=100_000_000, description="most bits per second asked of browsers that send"
    )
    stun_servers: Names = Field((), description="STUN servers, as `stun:host:3478`")
    turn_servers: Names = Field(
        (), description="TURN servers, as `turn:host:3478?transport=udp` or `turns:host:5349`"
    )
    turn_username: str | None = Field(None, description="user name for the TURN servers")
    turn_credential: SecretStr | None = Field(None, description="password for the TURN servers")
    turn_secret: SecretStr | None = Field(
        None, description="instead of both: the secret shared with them (coturn: `static-auth-secret`)"
    )
    turn_ttl: float = Field(
        86_400.0, ge=60, description="seconds for which credentials made of `turn_secret` hold"
    )
    media_ports: str | None = Field(
        None, description="UDP ports for WebRTC, as `50000-50100` (none: any that is free)"
    )
    public_address: Names = Field(
        (), description="addresses that a 1:1 NAT maps to this machine (cloud machines), announced first"
    )
    host_candidates: Literal["all", "ipv4", "public", "none"] = Field(
        "all", description="which of the machine's own addresses are announced: all, ipv4, public, none"
    )
    ice_exclude: Names = Field(
        BRIDGES, description="interfaces (`docker*`) and networks (`10.8.0.0/16`) that are not announced"
    )
    gather_timeout: float = Field(
        2.0, gt=0, le=30, description="seconds that a WebRTC answer waits for STUN and TURN servers"
    )
    allowed_origins: Names = Field(
        (), description="other sites whose pages may use this worker, as `https://example.org`, or `*`"
    )
    models_folder: Path | None = Field(
        None, description="folder of your own models (default: `~/.local/share/headrace/models`)"
    )
    models_budget: int | None = Field(
        None, ge=1 << 20, description="bytes that models may take of a device (default: 80 % of its memory)"
    )
    share_weights: Literal["auto", "on", "off"] = Field(
        "off",
        description="one process holds weights for all engines of a device: off, auto (CUDA alone), on",
    )
    batch: bool = Field(True, description="answer the batch endpoints")
    one_engine: bool = Field(
        False,
        description="live and batch work in one process: models are shared, delays and faults too",
    )
    batch_models: Names = Field(
        (), description="models of requests that name none, as `text-to-image=owner/name`, commas between"
    )
    demo_weights: bool | None = Field(
        None, description="let small models of the demo stand in for missing ones (default: as `demo`)"
    )
    parler_python: str | None = Field(
        None, description="interpreter with torch and parler-tts, for text to speech by Parler-TTS models"
    )
    batch_queue: int = Field(20, ge=1, le=1000, description="batch requests that may wait")
    batch_places: int = Field(2, ge=1, le=64, description="batch requests that run at once")
    batch_timeout: float = Field(600.0, gt=0, description="seconds for a batch request, its wait included")
    batch_uploads: int = Field(
        1 << 30, ge=1 << 20, description="bytes of all batch requests' uploads together"
    )
    clip_seconds: float = Field(60.0, gt=0, description="seconds of a clip that a workflow is run over")
    media_bytes: int = Field(1 << 30, ge=1 << 20, description="bytes of answers' files kept for URLs")
    media_seconds: float = Field(3600.0, gt=0, description="seconds for which these are kept")
    recordings: Path | None = Field(
        None, description="folder that streams are recorded to on request (none: they cannot be)"
    )
    recording_limit: float = Field(
        4 * 3600.0, gt=0, description="seconds after which a recording ends by itself"
    )
    recording_reserve: int = Field(
        1 << 30, ge=0, description="bytes of its disk that recording leaves free; there it ends"
    )
    demo: bool = Field(False, description="run a generated test pattern as the session `demo`")
    demo_fps: float = Field(30.0, ge=1, le=120, description="pictures a second of that pattern")
    session_metrics: bool = Field(True, description="tell figures at `/metrics` for each session")
    log_level: LogLevel = Field("info", description="least level logged: debug, info, warning, error")
    log_format: LogFormat = Field("text", description="text, or json for one object a line")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = init_settings().get("config") or os.environ.get(f"{PREFIX}CONFIG")
        file = ConfigFile(settings_cls, Path(path) if path else None)
        return init_settings, env_settings, PeerNames(settings_cls), file

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are given together or not at all")
        if self.self_signed and self.tls_certificate is not None:
            raise ValueError("give a tls_certificate or self_signed, not both")
        return self

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.view_token is not None and (self.token is None or self.token == self.view_token):
            raise ValueError("a view_token needs a token beside it, which must be another")
        return self

    @property
    def encrypted(self) -> bool:
        """Whether the worker listens by TLS."""
        return self.self_signed or self.tls_certificate is not None


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """The settings with ``flags`` on top; those that are None were not given. Raises `InvalidInput`."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = [
            {"field": ".".join(map(str, p["loc"])) or "settings", "message": p["msg"]} for p in error.errors()
        ]
        text = "; ".join(f"{p['field']}: {p['message']}" for p in problems)
        raise InvalidInput(text, field=problems[0]["field"]) from None


def settings_table() -> str:
    """Every setting as the rows of a Markdown table: variables, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        others = "".join(f", `{other}`" for other in PEER_NAMES.get(name, ()))
        value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        default = "" if value in (None, "") else f"`{value}`"
        rows.append(f"| `{PREFIX}{name.upper()}`{others} | {default} | {field.description} |")
    return "\n".join(rows) + "\n"
