"""The command line's part for the worker: ``headrace serve``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli_running import announce, log_at, require_engine, run
from stream.errors import InvalidInput

Host = Annotated[str | None, typer.Option(help="Address to listen on (HEADRACE_HOST).")]
Port = Annotated[int | None, typer.Option(help="Port to listen on (HEADRACE_PORT).")]
Workflow = Annotated[str | None, typer.Option("--workflow", "-w", help="For streams that name none.")]
Processor = Annotated[
    str | None,
    typer.Option(help="A FrameProcessor class instead, as package.module:Class (HEADRACE_PROCESSOR)."),
]
Pipeline = Annotated[
    str | None, typer.Option(help="stream-diffusion: real-time diffusion for streams that name nothing.")
]
PipelineParams = Annotated[
    str | None, typer.Option(help="JSON object that the pipeline or processor begins with.")
]
Capacity = Annotated[int | None, typer.Option(help="Sessions at once (HEADRACE_CAPACITY).")]
InsecureTls = Annotated[
    bool, typer.Option("--insecure-tls", help="Accept self-signed certificates of trickle servers.")
]
AllowProcessors = Annotated[
    bool, typer.Option("--allow-processors", help="Let a stream name a Python class.")
]
Recordings = Annotated[Path | None, typer.Option(help="Folder that streams are recorded to on request.")]
Comfyui = Annotated[
    Path | None,
    typer.Option(help="Folder of an existing ComfyUI to run in (HEADRACE_COMFYUI)."),
]
ComfyuiPython = Annotated[str | None, typer.Option(help="Its interpreter (default: the one in its folder).")]
CustomNodes = Annotated[
    Path | None, typer.Option(help="Folder of custom nodes for our engine (HEADRACE_CUSTOM_NODES).")
]
ObjectInfo = Annotated[
    str | None,
    typer.Option(metavar="FILE|URL", help="A ComfyUI's nodes, to check workflows by (docs/workflows.md)."),
]
Demo = Annotated[bool, typer.Option("--demo", help="Show a test pattern through the workflow.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings (HEADRACE_CONFIG).")]
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM file: listen by TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.")]
SelfSigned = Annotated[
    bool, typer.Option("--self-signed", help="Listen by TLS with a certificate made for this machine.")
]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]
LogFormat = Annotated[str | None, typer.Option(help="text or json.")]


def serve(
    host: Host = None,
    port: Port = None,
    workflow: Workflow = None,
    processor: Processor = None,
    pipeline: Pipeline = None,
    pipeline_params: PipelineParams = None,
    capacity: Capacity = None,
    insecure_tls: InsecureTls = False,
    allow_processors: AllowProcessors = False,
    recordings: Recordings = None,
    comfyui: Comfyui = None,
    comfyui_python: ComfyuiPython = None,
    custom_nodes: CustomNodes = None,
    object_info: ObjectInfo = None,
    demo: Demo = False,
    config: Config = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    self_signed: SelfSigned = False,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Run the worker. All settings, from the environment or a file: docs/running.md."""
    from headrace.settings import Settings, load_settings
    from headrace.settings_sources import notes_on_environment

    if workflow is not None and processor is not None:
        raise InvalidInput("give --workflow or --processor, not both", field="--processor")
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "workflow": workflow,
        "processor": processor,
        "pipeline": pipeline,
        "pipeline_params": pipeline_params,
        "capacity": capacity,
        "verify_tls": False if insecure_tls else None,
        "allow_processors": allow_processors or None,
        "recordings": recordings,
        "comfyui": comfyui,
        "comfyui_python": comfyui_python,
        "custom_nodes": custom_nodes,
        "object_info": object_info,
        "demo": demo or None,
        "config": config,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "self_signed": self_signed or None,
        "log_level": log_level,
        "log_format": log_format,
    }
    settings = load_settings(given)
    log_at(settings.log_level, settings.log_format)
    for note in notes_on_environment(os.environ, Settings.model_fields):
        logging.getLogger(__name__).warning(note)
    if settings.engine_python is None:
        require_engine()
    from headrace.server.app import serve as run_server

    run(run_server(settings, _announce_page))


def _announce_page(url: str) -> None:
    announce(url)
    sys.stdout.write(f"open {url}/ in a browser: live picture, latency, parameters\n")
    sys.stdout.flush()
