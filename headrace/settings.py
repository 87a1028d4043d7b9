"""Settings of a worker, from flags, the environment (``HEADRACE_*``) and defaults, in this order."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One typed object for everything that an operator can set."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs a token")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on (0: any free one)")
    token: SecretStr | None = Field(None, description="bearer token that every route that acts asks for")
    capacity: int = Field(4, ge=1, le=256, description="sessions at once")
    workflow: str = Field("passthrough", description="workflow of a stream that names none: name or file")
    width: int = Field(512, ge=16, le=4096, description="width of trickle streams that name none, pixels")
    height: int = Field(512, ge=16, le=4096, description="height of trickle streams that name none, pixels")
    max_framerate: float | None = Field(None, gt=0, le=240, description="cap on frames taken in, per second")
    bitrate: int = Field(2_000_000, ge=50_000, le=100_000_000, description="video out, bits per second")
    preset: str = Field("superfast", description="x264 preset")
    hardware: Literal["auto", "off", "require"] = Field("auto", description="NVDEC and NVENC")
    overlay: bool = Field(True, description="show a notice while there is no result")
    input_timeout: float = Field(60.0, gt=0, description="seconds without input after which a session ends")
    verify_tls: bool = Field(True, description="check the certificates of trickle servers")
    engine_python: str | None = Field(None, description="interpreter of the engine (default: this one)")
    engine_threads: int | None = Field(None, ge=1, description="torch threads of the engine")
    engine_device: str = Field("auto", description="cuda, cuda:1, cpu or auto")
    call_timeout: float = Field(5.0, gt=0, description="seconds after which a silent engine is restarted")
    allow_processors: bool = Field(
        False, description="let a stream name a Python class by params.processor (module:Class)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")


def settings_table() -> str:
    """Every setting as the rows of a Markdown table: variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `HEADRACE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"
